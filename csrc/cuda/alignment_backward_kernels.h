// Backward of the soft alignment. Cosines are recomputed tile by tile; with
//   w_jk = A_jk (1 + (phi_jk - similarity_j) / tau),   g_j the gradient of similarity_j,
//   grad u_k = sum_j g_j w_jk (t_j / |t_j| - phi_jk u_k / |u_k|) / |u_k|,   grad t_j likewise over k.
// Every sum has one owner and a fixed order.
#pragma once
#include <type_traits>

#include "partition.h"
#include "reduce.h"
#include "similarity.h"

namespace pad::cuda {

// A range of frames with the gradient of its pooled unit: what the frames gather from.
struct Pieces {
  int64_t count;    // of an utterance
  int* start;       // [batch, count]
  int* end;         // start == end: nothing here
  float* total;     // sum of the priors in the range
  float* gradient;  // [batch, count, width]
};

struct SoftParameters {
  AlignmentBackward a;
  Partition units;
  int64_t slabs;
  float* frame_gradient;  // [batch, frames, width] where it takes more than one step, else null
  Pieces pieces;          // of spans
  float* text_partial;    // [batch, parts, tokens, width]
  float* text_along;      // [batch, parts, tokens]: sum_k w_jk phi_jk
};

// The weights over the norms of the right factor's rows, times sqrt(width), which keeps them in float16's
// range, are the left factor of the products below. Half precision: they are rounded into the chunk buffer that
// is free, and the product passes through the place of the cosines. float32: the other way round.
template <class T>
struct Weights {
  static constexpr bool HALF = sizeof(T) == 2;
  static constexpr int STRIDE = HALF ? Tile<T>::STRIDE : Tile<T>::COSINE_STRIDE;
  static constexpr int OUT_STRIDE = HALF ? Tile<T>::COSINE_STRIDE : Tile<T>::STRIDE;

  T* weights;
  float* out;

  __device__ Weights(Tile<T>& tile, T* free)
      : weights(HALF ? free : reinterpret_cast<T*>(tile.cosine)),
        out(HALF ? tile.cosine : reinterpret_cast<float*>(free)) {}
};

// Stores weight * factor and gives the weight as it was rounded: what is subtracted later must know of the
// rounding, or it would be laid bare where the two nearly cancel.
template <class T>
__device__ float store_weight(float weight, float factor, T* place) {
  float folded = weight * factor;
  if (std::is_same_v<T, float16> && fabsf(folded) > 65504.0f) folded = copysignf(65504.0f, folded);
  *place = from_opmath<T>(folded);
  return to_opmath(*place) / factor;
}

// What the backward keeps of each token of a tile.
struct TokenRows {
  float gradient[TILE], similarity[TILE], log_normalizer[TILE];
};

__device__ inline float weight_of(float cosine, float log_prior, float inverse_temperature, float similarity,
                                  float log_normalizer) {
  const float exponent = cosine * inverse_temperature + log_prior - log_normalizer;
  const float posterior = expf(exponent > 0 ? 0.0f : exponent);  // rounding, at a low temperature
  return posterior * (1 + (cosine - similarity) * inverse_temperature);
}

__device__ inline void load_rows(const AlignmentBackward& a, int64_t b, int64_t first, TokenRows& rows) {
  const int row = threadIdx.x;
  if (row >= TILE) return;
  const int64_t token = b * a.tokens + first + row;
  const bool inside = first + row < a.tokens;
  rows.gradient[row] = inside ? static_cast<const float*>(a.grad_similarity)[token] : 0;
  rows.similarity[row] = inside ? static_cast<const float*>(a.similarity)[token] : 0;
  rows.log_normalizer[row] = inside ? static_cast<const float*>(a.log_normalizer)[token] : 0;
}

// The largest gradient of the valid tokens is taken out of the weights, for half precision's sake.
template <class T>
__device__ float largest_gradient(const Tile<T>& tile, const TokenRows& rows) {
  float largest = 0;
  for (int i = 0; i < TILE; ++i)
    if (tile.valid[i]) largest = fmaxf(largest, fabsf(rows.gradient[i]));
  return largest > 0 ? largest : 1.0f;
}

// Gradient of the units of a tile: of frames, or of pooled spans.
template <class K>
__global__ void __launch_bounds__(THREADS, 1) soft_units_kernel(SoftParameters p) {
  using T = typename K::Factor;
  using Element = typename K::Element;
  constexpr bool SPANS = K::SPANS;
  __shared__ Tile<T> tile;
  __shared__ TokenRows rows;
  __shared__ float along[TILE];
  const AlignmentBackward& a = p.a;
  const int64_t first_unit = blockIdx.x % p.units.unit_tiles * TILE, b = blockIdx.x / p.units.unit_tiles;
  const float inverse_temperature = static_cast<float>(1 / a.temperature);
  const float root = sqrtf(static_cast<float>(a.width));
  const Weights<T> buffers(tile, tile.units);
  const int unit = threadIdx.x % TILE, quarter = threadIdx.x / TILE;
  float* opmath_out = SPANS ? p.pieces.gradient : p.frame_gradient;
  Element* out = opmath_out ? nullptr : static_cast<Element*>(a.grad_speech);
  const auto emit = [&](int row, int64_t column, float value, bool add) {
    const int64_t place = (b * a.units + first_unit + row) * a.width + column;
    if (opmath_out) opmath_out[place] = add ? opmath_out[place] + value : value;
    else out[place] = from_opmath<Element>(value);
  };

  const bool any_unit = find_units<K>(a, b, first_unit, tile);
  if (SPANS && threadIdx.x < TILE && first_unit + threadIdx.x < a.units) {
    const int64_t place = b * a.units + first_unit + threadIdx.x;
    const bool valid = tile.prior[threadIdx.x] > 0;
    p.pieces.start[place] = valid ? tile.start[threadIdx.x] : 0;
    p.pieces.end[place] = valid ? tile.end[threadIdx.x] : 0;
    p.pieces.total[place] = tile.total[threadIdx.x];
  }
  bool written = false;
  for (int64_t first = 0; any_unit && first < a.tokens; first += TILE) {
    __syncthreads();
    load_rows(a, b, first, rows);
    if (!find_tokens<T>(a, a.unit, b, first, tile)) continue;
    similarities<K>(a, b, first, tile);

    const float scale = largest_gradient(tile, rows);
    const float log_prior = logf(tile.prior[unit]);
    float part = 0;
    for (int i = 0; i < TILE / 4; ++i) {
      const int row = quarter * (TILE / 4) + i;
      const float cosine = tile.cosine[row * Tile<T>::COSINE_STRIDE + unit];
      float weight = 0;
      if (tile.valid[row] && tile.prior[unit] > 0)
        weight = rows.gradient[row] / scale *
                 weight_of(cosine, log_prior, inverse_temperature, rows.similarity[row], rows.log_normalizer[row]);
      weight = store_weight(weight, root * tile.text_inverse[row], buffers.weights + row * Weights<T>::STRIDE + unit);
      part += weight * cosine;
    }
    tile.partial[threadIdx.x] = part;
    __syncthreads();
    if (threadIdx.x < TILE) {
      along[unit] = 0;
      for (int i = 0; i < 4; ++i) along[unit] += tile.partial[i * TILE + unit];
    }
    for (int64_t column = 0; column < a.width; column += Tile<T>::CHUNK) {
      load_text<K>(a, b, first, column, tile);
      __syncthreads();
      Product<T, Tile<T>::CHUNK> product;
      product.zero();
      product.template add<true, false>(buffers.weights, Weights<T>::STRIDE, tile.text, Tile<T>::STRIDE, TILE);
      product.store(buffers.out, Weights<T>::OUT_STRIDE);
      __syncthreads();
      for (int row = threadIdx.x / 32; row < TILE && first_unit + row < a.units; row += THREADS / 32) {
        const Unit found = unit_of(tile, row);
        const float inverse = tile.unit_inverse[row];
        const float through_norm = tile.unit_norm[row] > EPSILON ? along[row] * inverse : 0;
        for (int i = threadIdx.x % 32; i < Tile<T>::CHUNK && column + i < a.width; i += 32) {
          float value = 0;
          if (found.prior > 0)
            value = scale * inverse *
                    (buffers.out[row * Weights<T>::OUT_STRIDE + i] / root -
                     through_norm * unit_element<K>(a, b, found, column + i));
          emit(row, column + i, value, written);
        }
      }
    }
    written = true;
  }
  if (written) return;
  for (int row = threadIdx.x / 32; row < TILE && first_unit + row < a.units; row += THREADS / 32)
    for (int64_t column = threadIdx.x % 32; column < a.width; column += 32) emit(row, column, 0, false);
}

constexpr int SLAB_CHUNKS = 4;  // of a row of the text gradient, held in registers

// Sums w_jk u_k / |u_k| over a part of the units, for 64 tokens and a slab of the width.
template <class K>
__global__ void __launch_bounds__(THREADS, 1) soft_text_kernel(SoftParameters p) {
  using T = typename K::Factor;
  __shared__ Tile<T> tile;
  __shared__ TokenRows rows;
  constexpr int CHUNK = Tile<T>::CHUNK;
  const AlignmentBackward& a = p.a;
  const int64_t slab = blockIdx.x % p.slabs, part = blockIdx.x / p.slabs % p.units.parts;
  const int64_t rest = blockIdx.x / p.slabs / p.units.parts;
  const int64_t first_token = rest % p.units.token_tiles * TILE, b = rest / p.units.token_tiles;
  const int64_t first_column = slab * SLAB_CHUNKS * CHUNK;
  const float inverse_temperature = static_cast<float>(1 / a.temperature);
  const float root = sqrtf(static_cast<float>(a.width));
  const Weights<T> buffers(tile, tile.text);
  const int row = threadIdx.x / 4, strip = threadIdx.x % 4;

  Product<T, CHUNK> products[SLAB_CHUNKS];
#pragma unroll
  for (int c = 0; c < SLAB_CHUNKS; ++c) products[c].zero();
  float along = 0;
  load_rows(a, b, first_token, rows);
  if (find_tokens<T>(a, a.unit, b, first_token, tile)) {
    const int64_t past = min((part + 1) * p.units.tiles_per_part * TILE, a.units);
    for (int64_t first = part * p.units.tiles_per_part * TILE; first < past; first += TILE) {
      __syncthreads();
      if (!find_units<K>(a, b, first, tile)) continue;
      similarities<K>(a, b, first_token, tile);
      for (int i = strip; i < TILE; i += 4) {
        const float cosine = tile.cosine[row * Tile<T>::COSINE_STRIDE + i];
        float weight = 0;
        if (tile.valid[row] && tile.prior[i] > 0)
          weight = weight_of(cosine, logf(tile.prior[i]), inverse_temperature, rows.similarity[row],
                             rows.log_normalizer[row]);
        weight = store_weight(weight, root * tile.unit_inverse[i], buffers.weights + row * Weights<T>::STRIDE + i);
        along += weight * cosine;
      }
#pragma unroll
      for (int c = 0; c < SLAB_CHUNKS; ++c) {
        __syncthreads();
        load_units<K>(a, b, first_column + c * CHUNK, tile);
        __syncthreads();
        products[c].template add<false, false>(buffers.weights, Weights<T>::STRIDE, tile.units, Tile<T>::STRIDE, TILE);
      }
    }
  }
  tile.partial[threadIdx.x] = along;
  const int64_t first_place = (b * p.units.parts + part) * a.tokens + first_token;
#pragma unroll
  for (int c = 0; c < SLAB_CHUNKS; ++c) {
    const int64_t column = first_column + c * CHUNK;
    __syncthreads();
    products[c].store(buffers.out, Weights<T>::OUT_STRIDE);
    __syncthreads();
    for (int r = threadIdx.x / 32; r < TILE && first_token + r < a.tokens; r += THREADS / 32)
      for (int i = threadIdx.x % 32; i < CHUNK && column + i < a.width; i += 32)
        p.text_partial[(first_place + r) * a.width + column + i] = buffers.out[r * Weights<T>::OUT_STRIDE + i] / root;
  }
  if (slab == 0 && strip == 0 && first_token + row < a.tokens) {
    const float* four = tile.partial + threadIdx.x;
    p.text_along[first_place + row] = four[0] + four[1] + four[2] + four[3];
  }
}

// A block is a token: the parts summed in order, and the way through the token's norm.
template <class T>
__global__ void __launch_bounds__(THREADS, 1) text_reduce_kernel(SoftParameters p) {
  __shared__ float scratch[THREADS];
  const AlignmentBackward& a = p.a;
  const int64_t token = blockIdx.x % a.tokens, b = blockIdx.x / a.tokens, place = b * a.tokens + token;
  T* out = static_cast<T*>(a.grad_text) + place * a.width;
  const bool valid = a.token_mask[place] && a.unit[place] >= 0;
  float square = 0;
  for (int64_t column = threadIdx.x; valid && column < a.width; column += THREADS) {
    const float value = text_element<T>(a, b, token, column);
    square += value * value;
  }
  const float norm = sqrtf(block_sum<THREADS>(square, scratch)), inverse = 1 / fmaxf(norm, EPSILON);
  const float gradient = valid ? static_cast<const float*>(a.grad_similarity)[place] : 0;
  float along = 0;
  for (int64_t part = 0; valid && norm > EPSILON && part < p.units.parts; ++part)
    along += p.text_along[(b * p.units.parts + part) * a.tokens + token];
  for (int64_t column = threadIdx.x; column < a.width; column += THREADS) {
    float sum = 0;
    for (int64_t part = 0; valid && part < p.units.parts; ++part)
      sum += p.text_partial[((b * p.units.parts + part) * a.tokens + token) * a.width + column];
    if (valid) sum = gradient * inverse * (sum - along * inverse * text_element<T>(a, b, token, column));
    out[column] = from_opmath<T>(sum);
  }
}

}  // namespace pad::cuda
