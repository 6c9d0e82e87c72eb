// Weighted sums of rows. All rows are read and written a vector of 16 bytes at a time.
#pragma once
#include "pooling.h"
#include "reduce.h"
#include "vector.h"

namespace pad::cuda {

constexpr int POOLING_THREADS = 256;
constexpr int POOLING_LANES = 8;                               // that share a row
constexpr int POOLING_ROWS = POOLING_THREADS / POOLING_LANES;  // that are read at a time
constexpr int GRADIENT_ROWS = 32;                              // of a block
constexpr int ROWS_OF_WARP = GRADIENT_ROWS * 32 / POOLING_THREADS;

struct PooledDifferenceParameters {
  PooledDistanceForward a;
  int slabs;
  bool aligned[2];
};

// What a thread sums of one side: its vector of columns over every POOLING_ROWS-th row, and those rows' weights.
template <class T>
struct PooledPart {
  OpMath<T> sum[VECTOR<T>] = {};
  OpMath<T> total = 0;
};

template <class T>
__device__ PooledPart<T> pool_rows(const T* rows, int64_t row_stride, const OpMath<T>* weights, int64_t length,
                                   int column, int width, bool aligned) {
  using S = OpMath<T>;
  constexpr int BATCH = 4;  // rows on their way at a time
  PooledPart<T> part;
  for (int64_t first = threadIdx.x / POOLING_LANES; first < length; first += BATCH * POOLING_ROWS) {
    S weight[BATCH];
    uint4 bits[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      const int64_t row = first + i * POOLING_ROWS;
      weight[i] = row < length ? weights[row] : S(0);
      bits[i] = load_bits(rows + (weight[i] != 0 ? row : 0) * row_stride, column, width, aligned, weight[i] != 0);
    }
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      S values[VECTOR<T>];
      unpack<T>(bits[i], values);
#pragma unroll
      for (int v = 0; v < VECTOR<T>; ++v) part.sum[v] += weight[i] * values[v];
      part.total += weight[i];
    }
  }
  return part;
}

// A block is an utterance's columns of one slab: POOLING_LANES vectors.
template <class T>
__global__ void __launch_bounds__(POOLING_THREADS) pooled_difference_kernel(PooledDifferenceParameters p) {
  using S = OpMath<T>;
  constexpr int COLUMNS = POOLING_LANES * VECTOR<T>;
  __shared__ S partial[POOLING_ROWS][COLUMNS];
  __shared__ S partial_total[POOLING_ROWS];
  const PooledDistanceForward& a = p.a;
  const int slab = blockIdx.x % p.slabs, width = static_cast<int>(a.width);
  const int64_t b = blockIdx.x / p.slabs;
  const int lane = threadIdx.x % POOLING_LANES, row = threadIdx.x / POOLING_LANES;
  const int column = slab * COLUMNS + lane * VECTOR<T>;
  S total[2], mean[2];
#pragma unroll
  for (int side = SPEECH; side <= TEXT; ++side) {
    const Rows& values = a.values[side];
    const int64_t length = a.lengths[side];
    const PooledPart<T> part =
        pool_rows<T>(static_cast<const T*>(values.data) + b * values.batch_stride, values.row_stride,
                     static_cast<const S*>(a.weights[side]) + b * length, length, column, width, p.aligned[side]);
    __syncthreads();
#pragma unroll
    for (int v = 0; v < VECTOR<T>; ++v) partial[row][lane * VECTOR<T> + v] = part.sum[v];
    if (lane == 0) partial_total[row] = part.total;
    __syncthreads();
    total[side] = mean[side] = 0;
    for (int r = 0; r < POOLING_ROWS; ++r) {
      total[side] += partial_total[r];
      mean[side] += partial[r][threadIdx.x % COLUMNS];
    }
    mean[side] /= total[side];
  }
  if (slab == 0 && threadIdx.x == 0) {
    static_cast<S*>(a.totals)[2 * b] = total[SPEECH];
    static_cast<S*>(a.totals)[2 * b + 1] = total[TEXT];
  }
  const int own = slab * COLUMNS + threadIdx.x;
  if (threadIdx.x >= COLUMNS || own >= width) return;
  const bool empty = total[SPEECH] == 0 || total[TEXT] == 0;
  static_cast<S*>(a.difference)[b * width + own] = empty ? S(0) : mean[SPEECH] - mean[TEXT];
}

// A block is an utterance.
template <class S>
__global__ void __launch_bounds__(POOLING_THREADS) pooled_distance_kernel(PooledDistanceForward a) {
  __shared__ S scratch[POOLING_THREADS / 32];
  const int width = static_cast<int>(a.width);
  const S* difference = static_cast<const S*>(a.difference) + int64_t{blockIdx.x} * width;
  S own = 0;
  for (int d = threadIdx.x; d < width; d += POOLING_THREADS) own += difference[d] < 0 ? -difference[d] : difference[d];
  const S distance = block_reduce<POOLING_THREADS>(own, scratch);
  if (threadIdx.x == 0) static_cast<S*>(a.distance)[blockIdx.x] = distance;
}

struct PooledGradientParameters {
  PooledDistanceBackward a;
  int tiles[2];  // of GRADIENT_ROWS rows; none where the gradient is not wanted
  bool aligned[2];
};

// The rows of a warp, each its share of the gradient of the pooled row; `sign` is that of the side.
template <class T>
__device__ void write_gradients(const PooledGradientParameters& p, int64_t b, int tile, OpMath<T> sign, T* gradients,
                                const OpMath<T>* weights, int64_t length, OpMath<T> total, bool aligned) {
  using S = OpMath<T>;
  const int width = static_cast<int>(p.a.width);
  const S* difference = static_cast<const S*>(p.a.difference) + b * width;
  const S grad = sign * static_cast<const S*>(p.a.grad)[b];
  const int64_t first = int64_t{tile} * GRADIENT_ROWS + threadIdx.x / 32 * ROWS_OF_WARP;
  S share[ROWS_OF_WARP];
#pragma unroll
  for (int i = 0; i < ROWS_OF_WARP; ++i) {
    const S weight = first + i < length ? weights[b * length + first + i] : S(0);
    share[i] = weight != 0 ? weight / total : S(0);
  }
  for (int column = threadIdx.x % 32 * VECTOR<T>; column < width; column += 32 * VECTOR<T>) {
    S pooled[VECTOR<T>];
#pragma unroll
    for (int v = 0; v < VECTOR<T>; ++v) {
      const S value = column + v < width ? difference[column + v] : S(0);
      // A difference that is NaN keeps its gradient so.
      pooled[v] = value > 0 ? grad : value < 0 ? -grad : value;
    }
#pragma unroll
    for (int i = 0; i < ROWS_OF_WARP; ++i) {
      if (first + i >= length) break;
      S values[VECTOR<T>];
#pragma unroll
      for (int v = 0; v < VECTOR<T>; ++v) values[v] = share[i] != 0 ? share[i] * pooled[v] : S(0);
      store_vector(gradients + (b * length + first + i) * width, column, width, aligned, values);
    }
  }
}

// A block is a tile of frames, or after them of tokens, of an utterance; a warp writes whole rows.
template <class T>
__global__ void __launch_bounds__(POOLING_THREADS) pooled_gradient_kernel(PooledGradientParameters p) {
  using S = OpMath<T>;
  const PooledDistanceBackward& a = p.a;
  const int tiles = p.tiles[SPEECH] + p.tiles[TEXT], tile = blockIdx.x % tiles;
  const int64_t b = blockIdx.x / tiles;
  const S* totals = static_cast<const S*>(a.totals) + 2 * b;
  if (tile < p.tiles[SPEECH])
    write_gradients<T>(p, b, tile, 1, static_cast<T*>(a.grad_values[SPEECH]), static_cast<const S*>(a.weights[SPEECH]),
                       a.lengths[SPEECH], totals[SPEECH], p.aligned[SPEECH]);
  else
    write_gradients<T>(p, b, tile - p.tiles[SPEECH], -1, static_cast<T*>(a.grad_values[TEXT]),
                       static_cast<const S*>(a.weights[TEXT]), a.lengths[TEXT], totals[TEXT], p.aligned[TEXT]);
}

}  // namespace pad::cuda
