// Sums and maxima over a block, in an order that is always the same.
#pragma once
#include <cuda_runtime.h>

namespace pad::cuda {

struct Add {
  template <class S>
  __device__ S operator()(S a, S b) const {
    return a + b;
  }
};

// Over the values of a block, the same for every thread; barriers before and after its use of `scratch`, which has room
// for a value of each warp.
template <int THREADS, class S, class Combine = Add>
__device__ S block_reduce(S value, S* scratch, Combine combine = {}) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, distance));
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  value = scratch[0];
#pragma unroll
  for (int warp = 1; warp < THREADS / 32; ++warp) value = combine(value, scratch[warp]);
  return value;
}

}  // namespace pad::cuda
