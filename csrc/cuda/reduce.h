// Sums over a block.
#pragma once
#include <cuda_runtime.h>

namespace pad::cuda {

// The sum of a block's values, the same for every thread; barriers before and after its use of `scratch`.
template <int THREADS, class S>
__device__ S block_sum(S value, S* scratch) {
  __syncthreads();
  scratch[threadIdx.x] = value;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) scratch[threadIdx.x] += scratch[threadIdx.x + half];
  }
  __syncthreads();
  return scratch[0];
}

}  // namespace pad::cuda
