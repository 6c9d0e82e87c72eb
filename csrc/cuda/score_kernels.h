// Scores a tile of units against a tile of tokens. Forward: what the tile says of each token. Backward: with
//   w_jk = A_jk (1 + (phi_jk - similarity_j) / tau),   g_j the gradient of similarity_j,
// the weights g_j w_jk / (|t_j| |u_k|) that both gradients are products of, and what is along their own directions.
#pragma once
#include "reduce.h"
#include "units.h"

namespace pad::cuda {

constexpr int TOKENS = 64;  // of a tile

// What a range of units says of a token: the online softmax, and the best unit.
struct alignas(16) RowState {
  float highest;   // of the scores
  float sum;       // of exp(score - highest)
  float weighted;  // the same, times the cosine
  int unit;        // the first of the highest score; -1: none yet

  __device__ static RowState none() { return {-INFINITY, 0, 0, -1}; }

  // A NaN beats any score, and stays: it has to reach the loss.
  __device__ static bool better(float score, float best) { return score > best || (score != score && best == best); }

  // `other` is of later units.
  __device__ void merge(const RowState& other) {
    if (other.unit < 0) return;
    const bool take = unit < 0 || better(other.highest, highest);
    const float top = take ? other.highest : highest;
    const float mine = unit < 0 ? 0.0f : expf(highest - top), theirs = expf(other.highest - top);
    sum = sum * mine + other.sum * theirs;
    weighted = weighted * mine + other.weighted * theirs;
    highest = top;
    if (take) unit = other.unit;
  }
};

struct ForwardParameters {
  AlignmentForward a;
  int unit_tiles;
  RowState* states;  // [batch, unit_tiles, tokens]
};

// What the backward keeps of all units and tokens.
struct Weights {
  void* weights;  // [batch, units, pitch], of the elements' type; float16: over `largest_gradient`, without the norms
  float* unit_inverse;  // [batch, units]: 1 / max(|u|, eps)
  float* unit_along;    // [batch, token_tiles, units]: part of the factor of the unit's own row
  float* text_inverse;  // [batch, tokens]
  float* text_along;    // [batch, unit_tiles, tokens]
  int pitch, token_tiles, unit_tiles;
};

struct ScoreParameters {
  AlignmentBackward a;  // forward: without gradients
  Units units;
  RowState* states;
  Weights out;
  int token_tiles, unit_tiles;
  float inverse_temperature;  // 0: hard
  bool text_aligned;
};

template <class T, bool POOLED>
struct ScoreTile {
  static constexpr int UNITS = POOLED ? 32 : 64;
  static constexpr int COLUMNS = 8 * VECTOR<T>;  // of a step through the width
  static constexpr int STRIDE = COLUMNS + VECTOR<T>;
  static constexpr int WEIGHT_STRIDE = TOKENS + VECTOR<T>;
  static constexpr bool SPLIT = POOLED && sizeof(T) == 2;
  using Cosines = Product<T, UNITS, TOKENS, false, true>;

  struct Stage {
    alignas(128) T text[TOKENS * STRIDE];
    alignas(128) T units[UNITS * STRIDE];
    alignas(128) T remainder[SPLIT ? UNITS * STRIDE : 64];
  };
  struct Scores {
    alignas(128) float cosine[Cosines::SCRATCH];
    alignas(128) T weights[UNITS * WEIGHT_STRIDE];
  };
  union {
    Stage stages[2];
    Scores scores;  // once all steps are done
  };
  RowState states[TOKENS];
  float prior[UNITS], log_prior[UNITS], unit_norm[UNITS], unit_inverse[UNITS];
  float text_norm[TOKENS], text_inverse[TOKENS], part[THREADS];
  bool valid[TOKENS];
};

// Adds the squares of a row of a tile.
template <class T, int COLUMNS, bool SPLIT>
__device__ void add_squares(const T* row, const T* remainder, float& squares) {
#pragma unroll
  for (int i = 0; i < COLUMNS; i += VECTOR<T>) {
    float values[VECTOR<T>], rest[VECTOR<T>];
    unpack<T>(*vector_at(row + i), values);
    if (SPLIT) unpack<T>(*vector_at(remainder + i), rest);
#pragma unroll
    for (int v = 0; v < VECTOR<T>; ++v) {
      const float value = SPLIT ? values[v] + rest[v] : values[v];
      squares += value * value;
    }
  }
}

// Fills the scores' cosines, still without the norms, and the inverse norms. Ends in a barrier.
template <class T, bool POOLED>
__device__ void find_cosines(const ScoreParameters& p, int64_t b, int first_token, int first_unit,
                             ScoreTile<T, POOLED>& tile) {
  using Tile = ScoreTile<T, POOLED>;
  constexpr int STRIDE = Tile::STRIDE, ROWS = THREADS / 8;  // that are copied at a time
  const int width = static_cast<int>(p.a.width), row = threadIdx.x / 8, vector = threadIdx.x % 8 * VECTOR<T>;
  const T* text =
      static_cast<const T*>(p.a.text.data) + b * p.a.text.batch_stride + (first_token + row) * p.a.text.row_stride;
  const int64_t unit_offset = b * p.units.rows.batch_stride + (first_unit + row) * p.units.rows.row_stride;
  const T* units = static_cast<const T*>(p.units.rows.data) + unit_offset;
  const T* remainder = static_cast<const T*>(p.units.remainder) + unit_offset;

  const auto load = [&](int stage, int first_column) {
    typename Tile::Stage& to = tile.stages[stage];
    const int column = first_column + vector;
#pragma unroll
    for (int i = 0; i < TOKENS; i += ROWS)
      copy_vector(to.text + (row + i) * STRIDE + vector, text + i * p.a.text.row_stride, column, width, p.text_aligned,
                  tile.valid[row + i]);
#pragma unroll
    for (int i = 0; i < Tile::UNITS; i += ROWS) {
      const int64_t from = i * p.units.rows.row_stride;
      const int place = (row + i) * STRIDE + vector;
      const bool valid = tile.prior[row + i] > 0;
      copy_vector(to.units + place, units + from, column, p.units.width, p.units.aligned, valid);
      if (Tile::SPLIT) copy_vector(to.remainder + place, remainder + from, column, p.units.width, true, valid);
    }
    __pipeline_commit();
  };

  typename Tile::Cosines product;
  product.zero();
  float squares = 0;  // of a token, or after them of a unit
  const int past = max(width, p.units.width);
  load(0, 0);
  for (int column = 0, stage = 0; column < past; column += Tile::COLUMNS, stage ^= 1) {
    if (column + Tile::COLUMNS < past) load(stage ^ 1, column + Tile::COLUMNS);
    else __pipeline_commit();
    __pipeline_wait_prior(1);
    __syncthreads();
    const typename Tile::Stage& from = tile.stages[stage];
    product.add(from.units, STRIDE, from.text, STRIDE, Tile::COLUMNS);
    if (Tile::SPLIT) product.add(from.remainder, STRIDE, from.text, STRIDE, Tile::COLUMNS);
    const int own = threadIdx.x % TOKENS;
    if (threadIdx.x < TOKENS) add_squares<T, Tile::COLUMNS, false>(from.text + own * STRIDE, nullptr, squares);
    else if (own < Tile::UNITS)
      add_squares<T, Tile::COLUMNS, Tile::SPLIT>(from.units + own * STRIDE, from.remainder + own * STRIDE, squares);
    __syncthreads();
  }
  product.store(tile.scores.cosine);
  const int own = threadIdx.x % TOKENS;
  const float norm = fmaxf(sqrtf(squares), EPSILON);
  if (threadIdx.x < TOKENS) {
    tile.text_norm[own] = norm;
    tile.text_inverse[own] = 1 / norm;
  } else if (own < Tile::UNITS) {
    tile.unit_norm[own] = norm;
    tile.unit_inverse[own] = 1 / norm;
    tile.log_prior[own] = logf(tile.prior[own]);
  }
  __syncthreads();
}

template <class T, bool POOLED>
__device__ float cosine_of(const ScoreTile<T, POOLED>& tile, int unit, int token) {
  return tile.scores.cosine[unit * ScoreTile<T, POOLED>::Cosines::SCRATCH_STRIDE + token] * tile.unit_inverse[unit] *
         tile.text_inverse[token];
}

// The state of each token, by two threads that have half of the units each.
template <class T, bool POOLED>
__device__ void find_states(const ScoreParameters& p, int64_t b, int first_token, int first_unit,
                            ScoreTile<T, POOLED>& tile) {
  constexpr int HALF = ScoreTile<T, POOLED>::UNITS / 2;
  const float inverse_temperature = p.inverse_temperature;
  const int token = threadIdx.x % TOKENS, first = threadIdx.x / TOKENS * HALF;
  RowState state = RowState::none();
  const auto score = [&](int unit, float cosine) {
    return inverse_temperature > 0 ? cosine * inverse_temperature + tile.log_prior[unit] : cosine;
  };
  if (tile.valid[token]) {
    for (int unit = first; unit < first + HALF; ++unit) {
      if (!(tile.prior[unit] > 0)) continue;
      const float value = score(unit, cosine_of(tile, unit, token));
      if (state.unit >= 0 && !RowState::better(value, state.highest)) continue;
      state.highest = value;
      state.unit = first_unit + unit;
    }
    for (int unit = first; inverse_temperature > 0 && unit < first + HALF; ++unit) {
      if (!(tile.prior[unit] > 0)) continue;
      const float cosine = cosine_of(tile, unit, token), weight = expf(score(unit, cosine) - state.highest);
      state.sum += weight;
      state.weighted += weight * cosine;
    }
  }
  if (first) tile.states[token] = state;
  __syncthreads();
  if (first || first_token + token >= p.a.tokens) return;
  state.merge(tile.states[token]);
  p.states[(b * p.unit_tiles + first_unit / ScoreTile<T, POOLED>::UNITS) * p.a.tokens + first_token + token] = state;
}

// The largest gradient of an utterance's tokens; 1 where all are 0.
__device__ inline float largest_gradient(const AlignmentBackward& a, int64_t b, float* scratch) {
  float largest = 0;
  for (int64_t token = b * a.tokens + threadIdx.x; token < (b + 1) * a.tokens; token += THREADS)
    if (a.token_mask[token] && a.unit[token] >= 0)
      largest = fmaxf(largest, fabsf(static_cast<const float*>(a.grad_similarity)[token]));
  largest = block_reduce<THREADS>(largest, scratch, [](float x, float y) { return fmaxf(x, y); });
  return largest > 0 ? largest : 1.0f;
}

// A cosine's weight, and what is written of it. The gradient along a direction is that of the weight as it was rounded:
// where it nearly cancels, the rounding would be laid bare.
template <class T, bool POOLED>
__device__ void find_weights(const ScoreParameters& p, int64_t b, int token_tile, int unit_tile,
                             ScoreTile<T, POOLED>& tile) {
  using Tile = ScoreTile<T, POOLED>;
  constexpr bool NORMED = !std::is_same_v<T, float16>;  // the weights have the norms in them
  constexpr int UNITS = Tile::UNITS, HALF = UNITS / 2, STRIDE = Tile::WEIGHT_STRIDE;
  const AlignmentBackward& a = p.a;
  const Weights& out = p.out;
  const int first_token = token_tile * TOKENS, first_unit = unit_tile * UNITS;
  const float inverse_temperature = p.inverse_temperature;
  const float largest = NORMED ? 1.0f : largest_gradient(a, b, tile.part);
  __syncthreads();

  const int token = threadIdx.x % TOKENS, first = threadIdx.x / TOKENS * HALF;
  const int64_t row = b * a.tokens + first_token + token;
  const bool valid = tile.valid[token];
  const float text_inverse = tile.text_inverse[token];
  const float gradient = valid ? static_cast<const float*>(a.grad_similarity)[row] : 0;
  const float similarity = valid ? static_cast<const float*>(a.similarity)[row] : 0;
  const float log_normalizer = valid ? static_cast<const float*>(a.log_normalizer)[row] : 0;
  const float factor = NORMED ? gradient * text_inverse : gradient / largest;
  float along = 0;
  for (int unit = first; unit < first + HALF; ++unit) {
    float weight = 0;
    if (valid && tile.prior[unit] > 0) {
      const float cosine = cosine_of(tile, unit, token);
      const float exponent = cosine * inverse_temperature + tile.log_prior[unit] - log_normalizer;
      const float posterior = expf(exponent > 0 ? 0.0f : exponent);  // rounding, at a low temperature
      weight = posterior * (1 + (cosine - similarity) * inverse_temperature) * factor;
      if (NORMED) weight *= tile.unit_inverse[unit];
      const T rounded = from_opmath<T>(weight);
      tile.scores.weights[unit * STRIDE + token] = rounded;
      along += to_opmath(rounded) * cosine * (NORMED ? tile.unit_norm[unit] : 1.0f);
    } else {
      tile.scores.weights[unit * STRIDE + token] = from_opmath<T>(0);
    }
  }
  tile.part[threadIdx.x] = along;
  __syncthreads();
  if (threadIdx.x < TOKENS && first_token + token < a.tokens) {
    along = has_direction(text_inverse) ? along + tile.part[TOKENS + token] : 0.0f;
    out.text_along[(b * out.unit_tiles + unit_tile) * a.tokens + first_token + token] =
        NORMED ? along * text_inverse : along;
    if (unit_tile == 0) out.text_inverse[row] = text_inverse;
  }
  __syncthreads();

  // Whole vectors of a unit's weights, by a few threads.
  constexpr int SHARERS = THREADS / UNITS, OWN = TOKENS / SHARERS;
  const int unit = threadIdx.x / SHARERS, begin = threadIdx.x % SHARERS * OWN;
  const int64_t place = b * p.units.count + first_unit + unit;
  const bool inside = first_unit + unit < p.units.count;
  T* weights = static_cast<T*>(out.weights) + place * out.pitch;
  along = 0;
#pragma unroll
  for (int i = begin; i < begin + OWN; i += VECTOR<T>) {
    const uint4 bits = *vector_at(tile.scores.weights + unit * STRIDE + i);
    if (inside && first_token + i < out.pitch) *reinterpret_cast<uint4*>(weights + first_token + i) = bits;
    float values[VECTOR<T>], products[VECTOR<T>];
    unpack<T>(bits, values);
    load_floats(tile.scores.cosine + unit * Tile::Cosines::SCRATCH_STRIDE + i, products);
#pragma unroll
    for (int v = 0; v < VECTOR<T>; ++v) along += values[v] * products[v] * (NORMED ? 1.0f : tile.text_inverse[i + v]);
  }
  // A cosine times the token's norm is a product over the unit's.
  const float unit_inverse = tile.unit_inverse[unit];
  along *= unit_inverse;
  tile.part[threadIdx.x] = along;
  __syncthreads();
  if (begin || !inside) return;
#pragma unroll
  for (int i = 1; i < SHARERS; ++i) along += tile.part[threadIdx.x + i];
  if (!has_direction(unit_inverse)) along = 0;
  out.unit_along[(b * out.token_tiles + token_tile) * p.units.count + first_unit + unit] =
      NORMED ? along * unit_inverse : along;
  if (token_tile == 0) out.unit_inverse[place] = unit_inverse;
}

// A tile in which nothing takes part.
template <class T, bool POOLED>
__device__ void write_nothing(const ScoreParameters& p, int64_t b, int token_tile, int unit_tile) {
  using Tile = ScoreTile<T, POOLED>;
  const Weights& out = p.out;
  const int first_token = token_tile * TOKENS, first_unit = unit_tile * Tile::UNITS, own = threadIdx.x % TOKENS;
  const float zeros[VECTOR<T>] = {};
  for (int i = threadIdx.x; i < Tile::UNITS * TOKENS / VECTOR<T>; i += THREADS) {
    const int unit = first_unit + i / (TOKENS / VECTOR<T>), token = first_token + i % (TOKENS / VECTOR<T>)*VECTOR<T>;
    if (unit < p.units.count)
      store_vector(static_cast<T*>(out.weights) + (b * p.units.count + unit) * out.pitch, token, out.pitch, true,
                   zeros);
  }
  if (threadIdx.x < TOKENS) {
    if (first_token + own < p.a.tokens)
      out.text_along[(b * out.unit_tiles + unit_tile) * p.a.tokens + first_token + own] = 0;
  } else if (own < Tile::UNITS && first_unit + own < p.units.count) {
    out.unit_along[(b * out.token_tiles + token_tile) * p.units.count + first_unit + own] = 0;
  }
}

template <class T, bool POOLED, bool BACKWARD>
__global__ void __launch_bounds__(THREADS) score_kernel(ScoreParameters p) {
  using Tile = ScoreTile<T, POOLED>;
  __shared__ Tile tile;
  const int token_tile = blockIdx.x % p.token_tiles, rest = blockIdx.x / p.token_tiles;
  const int unit_tile = rest % p.unit_tiles, own = threadIdx.x % TOKENS;
  const int64_t b = rest / p.unit_tiles;
  const int first_token = token_tile * TOKENS, first_unit = unit_tile * Tile::UNITS;
  bool is_token = false, is_unit = false;
  if (threadIdx.x < TOKENS) {
    const int64_t token = b * p.a.tokens + first_token + own;
    is_token = first_token + own < p.a.tokens && p.a.token_mask[token] && (!BACKWARD || p.a.unit[token] >= 0);
    tile.valid[own] = is_token;
  } else if (own < Tile::UNITS) {
    const int unit = first_unit + own;
    tile.prior[own] = unit < p.units.count ? p.units.prior[b * p.units.count + unit] : 0;
    is_unit = tile.prior[own] > 0;
  }
  const bool tokens = __syncthreads_or(is_token), units = __syncthreads_or(is_unit);
  // In the backward the first tiles find the norms of the other side too.
  const bool some = tokens && units;
  if (BACKWARD ? some || (tokens && unit_tile == 0) || (units && token_tile == 0) : some) {
    find_cosines(p, b, first_token, first_unit, tile);
    if constexpr (BACKWARD) find_weights(p, b, token_tile, unit_tile, tile);
    else find_states(p, b, first_token, first_unit, tile);
  } else if (BACKWARD) {
    write_nothing<T, POOLED>(p, b, token_tile, unit_tile);
  } else if (threadIdx.x < TOKENS && first_token + own < p.a.tokens) {
    p.states[(b * p.unit_tiles + unit_tile) * p.a.tokens + first_token + own] = RowState::none();
  }
}

// A template so that the header can be included anywhere; a thread is a token.
template <int = 0>
__global__ void __launch_bounds__(THREADS) merge_kernel(ForwardParameters p) {
  constexpr int AHEAD = 4;  // states on their way at a time
  const AlignmentForward& a = p.a;
  const int tokens = static_cast<int>(a.tokens);
  const int64_t token = int64_t{blockIdx.x} * THREADS + threadIdx.x;
  if (token >= a.batch * tokens) return;
  const int64_t b = token / tokens;
  const RowState* states = p.states + b * p.unit_tiles * tokens + token % tokens;
  RowState state = RowState::none();
  for (int first = 0; first < p.unit_tiles; first += AHEAD) {
    RowState next[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i)
      next[i] = first + i < p.unit_tiles ? states[int64_t{first + i} * tokens] : RowState::none();
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) state.merge(next[i]);
  }
  const bool found = state.unit >= 0, soft = a.temperature > 0 && found;
  static_cast<float*>(a.similarity)[token] = soft ? state.weighted / state.sum : found ? state.highest : 0.0f;
  static_cast<float*>(a.log_normalizer)[token] = soft ? state.highest + logf(state.sum) : 0.0f;
  a.unit[token] = state.unit;
}

}  // namespace pad::cuda
