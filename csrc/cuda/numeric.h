// Element types and the type their sums are kept in.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>

#include "tensor.h"

namespace pad::cuda {

using bfloat16 = __nv_bfloat16;
using float16 = __half;

template <class T>
struct OpMathOf {
  using type = float;
};
template <>
struct OpMathOf<double> {
  using type = double;
};
template <class T>
using OpMath = typename OpMathOf<T>::type;

__device__ inline float to_opmath(float value) { return value; }
__device__ inline double to_opmath(double value) { return value; }
__device__ inline float to_opmath(bfloat16 value) { return __bfloat162float(value); }
__device__ inline float to_opmath(float16 value) { return __half2float(value); }

template <class T>
__device__ T from_opmath(OpMath<T> value) {
  return value;
}
template <>
__device__ inline bfloat16 from_opmath<bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ inline float16 from_opmath<float16>(float value) {
  return __float2half_rn(value);
}

// Calls function(T{}) for the element type.
template <class Function>
void with_element(Element element, Function function) {
  switch (element) {
    case Element::float32: return function(float{});
    case Element::bfloat16: return function(bfloat16{});
    case Element::float16: return function(float16{});
    default: throw std::invalid_argument("pad_kernels: CUDA: unsupported element type");
  }
}

}  // namespace pad::cuda
