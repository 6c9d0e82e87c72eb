// Weighted sums of rows. A warp takes every eighth row, a lane two columns; the warps' sums are added in order.
#pragma once
#include "numeric.h"
#include "pooling.h"
#include "reduce.h"

namespace pad::cuda {

constexpr int POOLING_THREADS = 256;
constexpr int POOLING_COLUMNS = 64;  // of a block

struct PooledDifferenceParameters {
  PooledDistanceForward a;
  int64_t slabs;
};

// The weights of an utterance's side and their sum, the same for the whole block.
template <class S>
struct PooledSide {
  const S* weights;
  S total;
};

template <class S>
__device__ PooledSide<S> pooled_side(const PooledDistanceForward& a, int side, int64_t b, S* scratch) {
  const S* weights = static_cast<const S*>(a.weights[side]) + b * a.lengths[side];
  S own = 0;
  for (int64_t l = threadIdx.x; l < a.lengths[side]; l += POOLING_THREADS) own += weights[l];
  return {weights, block_sum<POOLING_THREADS>(own, scratch)};
}

// Adds the rows of this thread's warp, each times its weight over `total`, in this lane's two columns.
template <class T, class S = OpMath<T>>
__device__ void add_pooled_rows(S (&sum)[2], const Rows& values, const S* weights, S total, int64_t length, int64_t b,
                                int64_t column, int64_t width) {
  const T* rows = static_cast<const T*>(values.data) + b * values.batch_stride + column;
  for (int64_t l = threadIdx.x / 32; l < length; l += POOLING_THREADS / 32) {
    if (weights[l] == 0) continue;
    const S scale = weights[l] / total;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (column + 32 * i < width) sum[i] += scale * to_opmath(rows[l * values.row_stride + 32 * i]);
  }
}

// A block is an utterance's columns of one slab.
template <class T>
__global__ void __launch_bounds__(POOLING_THREADS) pooled_difference_kernel(PooledDifferenceParameters p) {
  using S = OpMath<T>;
  constexpr int WARPS = POOLING_THREADS / 32;
  __shared__ S scratch[POOLING_THREADS];
  __shared__ S partial[WARPS][POOLING_COLUMNS];
  const PooledDistanceForward& a = p.a;
  const int64_t slab = blockIdx.x % p.slabs, b = blockIdx.x / p.slabs;
  const PooledSide<S> speech = pooled_side(a, SPEECH, b, scratch), text = pooled_side(a, TEXT, b, scratch);
  if (slab == 0 && threadIdx.x == 0) {
    static_cast<S*>(a.totals)[2 * b] = speech.total;
    static_cast<S*>(a.totals)[2 * b + 1] = text.total;
  }

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = slab * POOLING_COLUMNS + lane;
  S sum[2] = {};
  if (speech.total != 0 && text.total != 0) {
    add_pooled_rows<T>(sum, a.values[SPEECH], speech.weights, speech.total, a.lengths[SPEECH], b, column, a.width);
    add_pooled_rows<T>(sum, a.values[TEXT], text.weights, -text.total, a.lengths[TEXT], b, column, a.width);
  }
  partial[warp][lane] = sum[0];
  partial[warp][lane + 32] = sum[1];
  __syncthreads();
  const int64_t own = slab * POOLING_COLUMNS + threadIdx.x;
  if (threadIdx.x >= POOLING_COLUMNS || own >= a.width) return;
  S difference = 0;
  for (int w = 0; w < WARPS; ++w) difference += partial[w][threadIdx.x];
  static_cast<S*>(a.difference)[b * a.width + own] = difference;
}

// A block is an utterance.
template <class S>
__global__ void __launch_bounds__(POOLING_THREADS) pooled_distance_kernel(PooledDistanceForward a) {
  __shared__ S scratch[POOLING_THREADS];
  const S* difference = static_cast<const S*>(a.difference) + int64_t{blockIdx.x} * a.width;
  S own = 0;
  for (int64_t d = threadIdx.x; d < a.width; d += POOLING_THREADS)
    own += difference[d] < 0 ? -difference[d] : difference[d];
  const S distance = block_sum<POOLING_THREADS>(own, scratch);
  if (threadIdx.x == 0) static_cast<S*>(a.distance)[blockIdx.x] = distance;
}

struct PooledGradientParameters {
  PooledDistanceBackward a;
  int side;
};

// A thread is an element of one side's gradient.
template <class T>
__global__ void __launch_bounds__(POOLING_THREADS) pooled_gradient_kernel(PooledGradientParameters p) {
  using S = OpMath<T>;
  const PooledDistanceBackward& a = p.a;
  const int side = p.side;
  const int64_t i = int64_t{blockIdx.x} * POOLING_THREADS + threadIdx.x;
  if (i >= a.batch * a.lengths[side] * a.width) return;
  const int64_t row = i / a.width, b = row / a.lengths[side];
  const S weight = static_cast<const S*>(a.weights[side])[row];
  S value = 0;
  if (weight != 0) {
    const S total = static_cast<const S*>(a.totals)[2 * b + side], grad = static_cast<const S*>(a.grad)[b];
    const S difference = static_cast<const S*>(a.difference)[b * a.width + i % a.width];
    // A difference that is NaN keeps its gradient so.
    const S grad_pooled = difference > 0 ? grad : difference < 0 ? -grad : difference;
    value = weight / (side == SPEECH ? total : -total) * grad_pooled;
  }
  static_cast<T*>(a.grad_values[side])[i] = from_opmath<T>(value);
}

}  // namespace pad::cuda
