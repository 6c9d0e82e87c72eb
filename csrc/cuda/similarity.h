// A tile of cosines, 64 tokens by 64 units, that lives in shared memory alone. Units are pooled from their
// frames as they are loaded, and all norms come from the same pass.
#pragma once
#include "alignment.h"
#include "product.h"

namespace pad::cuda {

constexpr float EPSILON = static_cast<float>(norm_epsilon);

// Elements of the tensors, and of the factors of the products: pooled units are not rounded to half precision.
template <class T, bool POOLED>
struct Kind {
  using Element = T;
  using Factor = std::conditional_t<POOLED, float, T>;
  static constexpr bool SPANS = POOLED;
};

// The width is walked in chunks; rows are padded so that neighbouring rows lie in other banks.
template <class T>
struct Tile {
  static constexpr int CHUNK = sizeof(T) == 2 ? 64 : 32;
  static constexpr int STRIDE = CHUNK + 16 / static_cast<int>(sizeof(T));
  static constexpr int COSINE_STRIDE = TILE + 4;

  alignas(128) T text[TILE * STRIDE];
  alignas(128) T units[TILE * STRIDE];
  alignas(128) float cosine[TILE * COSINE_STRIDE];
  float partial[2 * THREADS];

  bool valid[TILE];          // of the tokens
  float text_inverse[TILE];  // 1 / max(|t|, eps)
  float text_norm[TILE];

  int start[TILE];  // frames of the unit
  int end[TILE];
  float prior[TILE];  // 0: the unit is not valid
  float total[TILE];  // sum of the frames' priors
  float unit_inverse[TILE];
  float unit_norm[TILE];
};

__device__ inline int clamp(int value, int64_t high) {
  return value < 0 ? 0 : value > high ? static_cast<int>(high) : value;
}

struct Unit {
  int start, end;
  float prior, total;
};

template <bool SPANS>
__device__ Unit find_unit(const AlignmentArguments& a, int64_t b, int64_t unit) {
  const float* prior = static_cast<const float*>(a.frame_prior) + b * a.frames;
  if (!SPANS) return {static_cast<int>(unit), static_cast<int>(unit) + 1, prior[unit], prior[unit]};
  Unit found{clamp(a.start[b * a.units + unit], a.frames), clamp(a.end[b * a.units + unit], a.frames), 0, 0};
  int real = 0;
  for (int i = found.start; i < found.end; ++i) {
    found.total += fmaxf(prior[i], 0.0f);
    real += prior[i] >= 0;
  }
  if (found.total > 0) found.prior = found.total / real;
  return found;
}

// One element of a unit: of its frame, or sum p_i s_i / sum p_i. Frames of prior 0 are not read.
template <class K>
__device__ float unit_element(const AlignmentArguments& a, int64_t b, const Unit& unit, int64_t column) {
  using T = typename K::Element;
  const T* speech = static_cast<const T*>(a.speech.data) + b * a.speech.batch_stride + column;
  if (!K::SPANS) return unit.prior > 0 ? to_opmath(speech[unit.start * a.speech.row_stride]) : 0.0f;
  const float* prior = static_cast<const float*>(a.frame_prior) + b * a.frames;
  float sum = 0;
  for (int i = unit.start; i < unit.end; ++i)
    if (prior[i] > 0) sum += prior[i] / unit.total * to_opmath(speech[i * a.speech.row_stride]);
  return sum;
}

template <class T>
__device__ Unit unit_of(const Tile<T>& tile, int row) {
  return {tile.start[row], tile.end[row], tile.prior[row], tile.total[row]};
}

template <class T>
__device__ float text_element(const AlignmentArguments& a, int64_t b, int64_t token, int64_t column) {
  return to_opmath(static_cast<const T*>(a.text.data)[b * a.text.batch_stride + token * a.text.row_stride + column]);
}

// Priors and ranges of the units of a tile; false if none is valid. Ends in a barrier.
template <class K, class T>
__device__ bool find_units(const AlignmentArguments& a, int64_t b, int64_t first, Tile<T>& tile) {
  const int row = threadIdx.x;
  bool any = false;
  if (row < TILE) {
    Unit unit{0, 0, 0, 0};
    if (first + row < a.units) unit = find_unit<K::SPANS>(a, b, first + row);
    tile.start[row] = unit.start;
    tile.end[row] = unit.end;
    tile.prior[row] = unit.prior;
    tile.total[row] = unit.total;
    any = unit.prior > 0;
  }
  return __syncthreads_or(any);
}

// Which tokens of a tile are valid: unmasked ones, and in the backward (`unit` given) those that found a unit.
// False if none is. Ends in a barrier.
template <class T>
__device__ bool find_tokens(const AlignmentArguments& a, const int64_t* unit, int64_t b, int64_t first, Tile<T>& tile) {
  const int row = threadIdx.x;
  bool valid = false;
  if (row < TILE) {
    const int64_t token = b * a.tokens + first + row;
    valid = first + row < a.tokens && a.token_mask[token] && (!unit || unit[token] >= 0);
    tile.valid[row] = valid;
  }
  return __syncthreads_or(valid);
}

// Columns [column, column + CHUNK) of the tile's rows, each warp a row at a time; zeros for what is not valid.
template <class K, class T>
__device__ void load_units(const AlignmentArguments& a, int64_t b, int64_t column, Tile<T>& tile) {
  for (int row = threadIdx.x / 32; row < TILE; row += THREADS / 32) {
    const Unit unit = unit_of(tile, row);
    for (int i = threadIdx.x % 32; i < Tile<T>::CHUNK; i += 32) {
      float value = 0;
      if (unit.prior > 0 && column + i < a.width) value = unit_element<K>(a, b, unit, column + i);
      tile.units[row * Tile<T>::STRIDE + i] = from_opmath<T>(value);
    }
  }
}

template <class K, class T>
__device__ void load_text(const AlignmentArguments& a, int64_t b, int64_t first, int64_t column, Tile<T>& tile) {
  for (int row = threadIdx.x / 32; row < TILE; row += THREADS / 32) {
    for (int i = threadIdx.x % 32; i < Tile<T>::CHUNK; i += 32) {
      float value = 0;
      if (tile.valid[row] && column + i < a.width)
        value = text_element<typename K::Element>(a, b, first + row, column + i);
      tile.text[row * Tile<T>::STRIDE + i] = from_opmath<T>(value);
    }
  }
}

// Fills tile.cosine and the norms for the tokens from `first` and the units found before. Ends in a barrier.
template <class K, class T>
__device__ void similarities(const AlignmentArguments& a, int64_t b, int64_t first, Tile<T>& tile) {
  const int row = threadIdx.x / 4, strip = threadIdx.x % 4;
  Product<T, TILE> product;
  product.zero();
  float text_square = 0, unit_square = 0;
  for (int64_t column = 0; column < a.width; column += Tile<T>::CHUNK) {
    __syncthreads();
    load_text<K>(a, b, first, column, tile);
    load_units<K>(a, b, column, tile);
    __syncthreads();
    product.template add<false, true>(tile.text, Tile<T>::STRIDE, tile.units, Tile<T>::STRIDE, Tile<T>::CHUNK);
    for (int i = strip; i < Tile<T>::CHUNK; i += 4) {
      const float t = to_opmath(tile.text[row * Tile<T>::STRIDE + i]),
                  u = to_opmath(tile.units[row * Tile<T>::STRIDE + i]);
      text_square += t * t;
      unit_square += u * u;
    }
  }
  product.store(tile.cosine, Tile<T>::COSINE_STRIDE);
  tile.partial[threadIdx.x] = text_square;
  tile.partial[THREADS + threadIdx.x] = unit_square;
  __syncthreads();
  if (threadIdx.x < 2 * TILE) {
    const bool text = threadIdx.x < TILE;
    const float* part = tile.partial + 4 * threadIdx.x;
    const float norm = sqrtf(part[0] + part[1] + part[2] + part[3]), inverse = 1 / fmaxf(norm, EPSILON);
    const int i = threadIdx.x % TILE;
    (text ? tile.text_norm : tile.unit_norm)[i] = norm;
    (text ? tile.text_inverse : tile.unit_inverse)[i] = inverse;
  }
  __syncthreads();
  for (int i = strip; i < TILE; i += 4)
    tile.cosine[row * Tile<T>::COSINE_STRIDE + i] *= tile.text_inverse[row] * tile.unit_inverse[i];
  __syncthreads();
}

}  // namespace pad::cuda
