// Weighted sums of rows. A warp takes every eighth row, a lane two columns; the warps' sums are added in order.
#pragma once
#include "numeric.h"
#include "pooling.h"

namespace pad::cuda {

constexpr int POOLING_THREADS = 256;
constexpr int POOLING_COLUMNS = 64;  // of a block

struct PoolingForwardParameters {
  PoolingForward a;
  int64_t slabs;
};

template <class T>
__global__ void __launch_bounds__(POOLING_THREADS) pooling_forward_kernel(PoolingForwardParameters p) {
  using S = Wide<T>;
  constexpr int WARPS = POOLING_THREADS / 32;
  __shared__ S partial[WARPS][POOLING_COLUMNS];
  const PoolingForward& a = p.a;
  const int64_t slab = blockIdx.x % p.slabs, b = blockIdx.x / p.slabs;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = slab * POOLING_COLUMNS + lane;
  const T* values = static_cast<const T*>(a.values.data) + b * a.values.batch_stride + column;
  const S* weights = static_cast<const S*>(a.weights) + b * a.length;
  S sum[2] = {};
  for (int64_t l = warp; l < a.length; l += WARPS) {
    const S weight = weights[l];
    if (weight == 0) continue;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (column + 32 * i < a.width) sum[i] += weight * wide(values[l * a.values.row_stride + 32 * i]);
  }
  partial[warp][lane] = sum[0];
  partial[warp][lane + 32] = sum[1];
  __syncthreads();
  const int64_t own = slab * POOLING_COLUMNS + threadIdx.x;
  if (threadIdx.x >= POOLING_COLUMNS || own >= a.width) return;
  S total = 0;
  for (int w = 0; w < WARPS; ++w) total += partial[w][threadIdx.x];
  static_cast<S*>(a.out)[b * a.width + own] = total;
}

template <class T>
__global__ void __launch_bounds__(POOLING_THREADS) pooling_backward_kernel(PoolingBackward a) {
  using S = Wide<T>;
  const int64_t i = int64_t{blockIdx.x} * POOLING_THREADS + threadIdx.x;
  if (i >= a.batch * a.length * a.width) return;
  const int64_t row = i / a.width;
  const S weight = static_cast<const S*>(a.weights)[row];
  S value = 0;
  if (weight != 0) value = weight * static_cast<const S*>(a.grad)[row / a.length * a.width + i % a.width];
  static_cast<T*>(a.grad_values)[i] = narrow<T>(value);
}

}  // namespace pad::cuda
