// Backward of the soft alignment: with the weights V_kj of score_kernels.h
//   grad u_k = sum_j V_kj t_j - along_k u_k,   grad t_j = sum_k V_kj u_k - along_j t_j.
// In float16, whose range weights with norms would leave, rows are divided by their norms instead. Every sum has one
// owner and a fixed order.
#pragma once
#include "score_kernels.h"

namespace pad::cuda {

constexpr int GRADIENT_UNITS = 32;  // of a tile

struct GradientParameters {
  AlignmentBackward a;
  Units units;
  Weights weights;
  void* grad_units;    // [batch, units, grad_pitch]: of frames, or of pooled units; null: not wanted
  int64_t grad_pitch;  // columns
  int slabs;           // of the width
  int parts;           // of an utterance: tiles of tokens, or groups of tiles of units
  int tiles_per_part;
  bool text_aligned, grad_units_aligned, grad_text_aligned;
};

template <class T>
struct GradientTile {
  static constexpr int COLUMNS = 8 * VECTOR<T>;  // of a slab
  static constexpr int STRIDE = COLUMNS + VECTOR<T>;
  static constexpr int WEIGHT_STRIDE = TOKENS + VECTOR<T>;
  using OfUnits = Product<T, GRADIENT_UNITS, COLUMNS, false, false>;
  using OfText = Product<T, TOKENS, COLUMNS, true, false>;

  union {
    struct {
      alignas(128) T units[2][GRADIENT_UNITS * STRIDE];
      alignas(128) T weights[2][GRADIENT_UNITS * WEIGHT_STRIDE];
      alignas(128) T text[2][TOKENS * STRIDE];
    };
    alignas(128) float text_gradient[OfText::SCRATCH];  // once all steps are done
  };
  float text_along[2][TOKENS];  // of half of the tiles of units each
  // float32: in place of the weights, which the step is done with.
  alignas(128) float unit_gradient[sizeof(T) == 2 ? OfUnits::SCRATCH : 32];

  __device__ float* units_out(int stage) {
    return sizeof(T) == 2 ? unit_gradient : reinterpret_cast<float*>(weights[stage]);
  }
};

// A vector of a row over the row's norm, rounded.
__device__ inline void divide_by_norm(float16* vector, float inverse) {
  float values[VECTOR<float16>];
  unpack<float16>(*vector_at(vector), values);
#pragma unroll
  for (int v = 0; v < VECTOR<float16>; ++v) values[v] *= inverse;
  *reinterpret_cast<uint4*>(vector) = pack<float16>(values);
}

// scale * (value - along * row) of a vector; zeros, whatever the values, where the scale is 0.
template <int COUNT>
__device__ void finish(float (&values)[COUNT], float scale, float along, const float (&row)[COUNT]) {
#pragma unroll
  for (int v = 0; v < COUNT; ++v) {
    const float value = along == 0 ? values[v] : values[v] - along * row[v];
    values[v] = scale == 0 ? 0.0f : scale * value;
  }
}

// A block has a slab of columns: of a part of the units, and, where the text's gradient is wanted, of one tile of
// tokens and all units. Both gradients take one pass over the units if the tokens are no more than a tile.
template <class T, class Out, bool OF_UNITS, bool OF_TEXT>
__global__ void __launch_bounds__(THREADS, 3) gradient_kernel(GradientParameters p) {
  using Tile = GradientTile<T>;
  constexpr bool NORMED = !std::is_same_v<T, float16>;
  constexpr int STRIDE = Tile::STRIDE, WEIGHT_STRIDE = Tile::WEIGHT_STRIDE, ROWS = THREADS / 8, V = VECTOR<T>;
  constexpr int OWN = GRADIENT_UNITS / ROWS;  // rows of units that a thread copies and writes
  __shared__ Tile tile;
  __shared__ float scratch[THREADS / 32];
  const AlignmentBackward& a = p.a;
  const int width = static_cast<int>(a.width), tokens = static_cast<int>(a.tokens), count = p.units.count;
  const int slab = blockIdx.x % p.slabs, rest = blockIdx.x / p.slabs, part = rest % p.parts;
  const int64_t b = rest / p.parts;
  const int row = threadIdx.x / 8, vector = threadIdx.x % 8 * V, column = slab * Tile::COLUMNS + vector;
  const int token_tiles = p.weights.token_tiles, unit_tiles = (count + GRADIENT_UNITS - 1) / GRADIENT_UNITS;
  const int first_tile = OF_TEXT ? 0 : part * p.tiles_per_part;
  const int past_tile = OF_TEXT ? unit_tiles : min(first_tile + p.tiles_per_part, unit_tiles);
  const int first_token_tile = OF_TEXT ? part : 0, past_token_tile = OF_TEXT ? part + 1 : token_tiles;
  const bool text_stays = past_token_tile - first_token_tile == 1;  // through all steps
  const float largest = NORMED ? 1.0f : largest_gradient(a, b, scratch);

  const T* text = static_cast<const T*>(a.text.data) + b * a.text.batch_stride;
  const T* units = static_cast<const T*>(p.units.rows.data) + b * p.units.rows.batch_stride;
  const T* weights = static_cast<const T*>(p.weights.weights) + b * count * p.weights.pitch;
  const auto is_valid = [&](int token) {
    return token < tokens && a.token_mask[b * tokens + token] && a.unit[b * tokens + token] >= 0;
  };
  // Whether the units that this thread copies take part; asked for a step before they are copied.
  const auto ask = [&](int unit_tile, bool (&valid)[OWN]) {
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      const int unit = unit_tile * GRADIENT_UNITS + row + i * ROWS;
      valid[i] = unit_tile < past_tile && unit < count && p.units.prior[b * count + unit] > 0;
    }
  };
  const auto load_text = [&](int stage, int token_tile) {
#pragma unroll
    for (int i = 0; i < TOKENS; i += ROWS) {
      const int token = token_tile * TOKENS + row + i;
      copy_vector(tile.text[stage] + (row + i) * STRIDE + vector, text + token * a.text.row_stride, column, width,
                  p.text_aligned, is_valid(token));
    }
  };
  const auto load = [&](int stage, int unit_tile, int token_tile, const bool (&valid)[OWN]) {
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      const int unit = unit_tile * GRADIENT_UNITS + row + i * ROWS;
      copy_vector(tile.units[stage] + (row + i * ROWS) * STRIDE + vector, units + unit * p.units.rows.row_stride,
                  column, p.units.width, p.units.aligned, valid[i]);
#pragma unroll
      for (int j = 0; j < TOKENS; j += 8 * V)
        copy_vector(tile.weights[stage] + (row + i * ROWS) * WEIGHT_STRIDE + vector + j,
                    weights + static_cast<int64_t>(unit) * p.weights.pitch, token_tile * TOKENS + vector + j,
                    p.weights.pitch, true, valid[i]);
    }
    if (!text_stays) load_text(stage, token_tile);
    __pipeline_commit();
  };

  typename Tile::OfUnits unit_product;
  typename Tile::OfText text_product;
  text_product.zero();
  bool valid[OWN], next_valid[OWN];
  ask(first_tile, valid);
  ask(first_tile + 1, next_valid);
  if (text_stays) load_text(0, first_token_tile);
  if (first_tile < past_tile) load(0, first_tile, first_token_tile, valid);
  if constexpr (OF_TEXT) {
    const int token = part * TOKENS + threadIdx.x % TOKENS, half = threadIdx.x / TOKENS;
    const int tiles = p.weights.unit_tiles;
    float along = 0;
#pragma unroll 4
    for (int t = half * (tiles + 1) / 2; t < (half ? tiles : (tiles + 1) / 2) && token < tokens; ++t)
      along += p.weights.text_along[(b * tiles + t) * tokens + token];
    tile.text_along[half][threadIdx.x % TOKENS] = along;
  }
  int unit_tile = first_tile, token_tile = first_token_tile;
  for (int stage = 0; unit_tile < past_tile; stage ^= 1) {
    const bool last_tokens = token_tile + 1 == past_token_tile;
    if (!last_tokens) load(stage ^ 1, unit_tile, token_tile + 1, valid);
    else if (unit_tile + 1 < past_tile) load(stage ^ 1, unit_tile + 1, first_token_tile, next_valid);
    else __pipeline_commit();
    __pipeline_wait_prior(1);
    const int text_stage = text_stays ? 0 : stage;
    if constexpr (!NORMED) {  // what this thread has copied
#pragma unroll
      for (int i = 0; i < OWN; ++i) {
        const int unit = unit_tile * GRADIENT_UNITS + row + i * ROWS;
        if (valid[i])
          divide_by_norm(tile.units[stage] + (row + i * ROWS) * STRIDE + vector,
                         p.weights.unit_inverse[b * count + unit]);
      }
#pragma unroll
      for (int i = 0; i < TOKENS; i += ROWS) {
        const int token = token_tile * TOKENS + row + i;
        if ((!text_stays || unit_tile == first_tile) && is_valid(token))
          divide_by_norm(tile.text[text_stage] + (row + i) * STRIDE + vector,
                         p.weights.text_inverse[b * tokens + token]);
      }
    }
    float along[OWN] = {}, scale[OWN];
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      const int unit = unit_tile * GRADIENT_UNITS + row + i * ROWS;
      scale[i] = valid[i] ? 1 : 0;
      if constexpr (OF_UNITS) {
        if (!last_tokens || !valid[i]) continue;
        for (int t = 0; t < token_tiles; ++t) along[i] += p.weights.unit_along[(b * token_tiles + t) * count + unit];
        if (!NORMED) scale[i] = largest * p.weights.unit_inverse[b * count + unit];
      }
    }
    __syncthreads();
    if constexpr (OF_TEXT)
      text_product.add(tile.weights[stage], WEIGHT_STRIDE, tile.units[stage], STRIDE, GRADIENT_UNITS);
    if constexpr (OF_UNITS) {
      if (token_tile == first_token_tile) unit_product.zero();
      const int depth = min(TOKENS, (tokens - token_tile * TOKENS + 15) / 16 * 16);
      unit_product.add(tile.weights[stage], WEIGHT_STRIDE, tile.text[text_stage], STRIDE, depth);
    }
    if (OF_UNITS && last_tokens) {
      if (sizeof(T) != 2) __syncthreads();
      float* scratch_rows = tile.units_out(stage);
      unit_product.store(scratch_rows);
      __syncthreads();
      Out* out = static_cast<Out*>(p.grad_units);
#pragma unroll
      for (int i = 0; i < OWN; ++i) {
        const int unit = unit_tile * GRADIENT_UNITS + row + i * ROWS;
        if (unit >= count) break;
        float values[V], own[V];
        load_floats(scratch_rows + (row + i * ROWS) * Tile::OfUnits::SCRATCH_STRIDE + vector, values);
        unpack<T>(*vector_at(tile.units[stage] + (row + i * ROWS) * STRIDE + vector), own);
        finish(values, scale[i], along[i], own);
        Out* to = out + (b * count + unit) * p.grad_pitch;
        store_columns<T>(to, column, static_cast<int>(p.grad_pitch), p.grad_units_aligned, values);
      }
    }
    __syncthreads();
    if (!last_tokens) {
      ++token_tile;
      continue;
    }
    token_tile = first_token_tile;
    ++unit_tile;
#pragma unroll
    for (int i = 0; i < OWN; ++i) valid[i] = next_valid[i];
    ask(unit_tile + 1, next_valid);
  }
  if constexpr (!OF_TEXT) return;
  text_product.store(tile.text_gradient);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < TOKENS; i += ROWS) {
    const int token = first_token_tile * TOKENS + row + i;
    if (token >= tokens) break;
    const bool taking_part = is_valid(token);
    float values[V], own[V] = {}, scale = taking_part ? 1 : 0;
    float along = tile.text_along[0][row + i] + tile.text_along[1][row + i];
    load_floats(tile.text_gradient + (row + i) * Tile::OfText::SCRATCH_STRIDE + vector, values);
    if (taking_part) {
      load_vector(text + token * a.text.row_stride, column, width, p.text_aligned, own);
      const float inverse = p.weights.text_inverse[b * tokens + token];
      if (!NORMED) {
        scale = largest * inverse;
        along *= inverse;
      }
    }
    finish(values, scale, along, own);
    store_vector(static_cast<T*>(a.grad_text) + (b * tokens + token) * width, column, width, p.grad_text_aligned,
                 values);
  }
}

}  // namespace pad::cuda
