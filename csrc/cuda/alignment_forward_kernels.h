// Forward alignment. A block takes 64 tokens and a part of the units; the parts are merged in order.
#pragma once
#include "partition.h"
#include "similarity.h"

namespace pad::cuda {

// What a range of units says of a token: the online softmax, and the best unit.
struct RowState {
  // A NaN beats any score, and stays: it has to reach the loss.
  __device__ static bool better(float score, float best) { return score > best || (score != score && best == best); }

  float highest;   // of the scores
  float sum;       // of exp(score - highest)
  float weighted;  // the same, times the cosine
  float best;      // score of the best unit
  float cosine;    // of the best unit
  int unit;        // -1: none yet

  __device__ static RowState none() { return {-INFINITY, 0, 0, -INFINITY, 0, -1}; }

  __device__ void merge(const RowState& other) {
    if (other.unit < 0) return;
    if (unit < 0 || better(other.best, best) || (other.best == best && other.unit < unit)) {
      best = other.best;
      cosine = other.cosine;
      unit = other.unit;
    }
    const float top = fmaxf(highest, other.highest);
    const float mine = expf(highest - top), theirs = expf(other.highest - top);
    sum = sum * mine + other.sum * theirs;
    weighted = weighted * mine + other.weighted * theirs;
    highest = top;
  }
};

struct ForwardParameters {
  AlignmentForward a;
  Partition units;
  RowState* states;  // [batch, parts, tokens]
};

// Of every fourth unit of a tile, by one thread.
template <class T>
__device__ void visit(const Tile<T>& tile, int row, int strip, int64_t first, float inverse_temperature,
                      RowState& state) {
  const float* cosine = tile.cosine + row * Tile<T>::COSINE_STRIDE;
  const bool soft = inverse_temperature > 0;
  const auto score = [&](int i) { return soft ? cosine[i] * inverse_temperature + logf(tile.prior[i]) : cosine[i]; };
  float top = state.highest;
  for (int i = strip; i < TILE; i += 4) {
    if (!(tile.prior[i] > 0)) continue;
    const float value = score(i);
    top = fmaxf(top, value);
    if (state.unit < 0 || RowState::better(value, state.best)) {
      state.best = value;
      state.cosine = cosine[i];
      state.unit = static_cast<int>(first) + i;
    }
  }
  if (!soft || state.unit < 0) return;
  const float old = expf(state.highest - top);
  state.sum *= old;
  state.weighted *= old;
  state.highest = top;
  for (int i = strip; i < TILE; i += 4) {
    if (!(tile.prior[i] > 0)) continue;
    const float weight = expf(score(i) - top);
    state.sum += weight;
    state.weighted += weight * cosine[i];
  }
}

template <class K>
__global__ void __launch_bounds__(THREADS, 1) forward_kernel(ForwardParameters p) {
  using T = typename K::Factor;
  __shared__ Tile<T> tile;
  const AlignmentForward& a = p.a;
  const int64_t part = blockIdx.x % p.units.parts, rest = blockIdx.x / p.units.parts;
  const int64_t first_token = rest % p.units.token_tiles * TILE, b = rest / p.units.token_tiles;
  const float inverse_temperature = a.temperature > 0 ? static_cast<float>(1 / a.temperature) : 0.0f;
  const int row = threadIdx.x / 4, strip = threadIdx.x % 4;

  RowState state = RowState::none();
  if (find_tokens<T>(a, nullptr, b, first_token, tile)) {
    const int64_t past = min((part + 1) * p.units.tiles_per_part * TILE, a.units);
    for (int64_t first = part * p.units.tiles_per_part * TILE; first < past; first += TILE) {
      if (!find_units<K>(a, b, first, tile)) continue;
      similarities<K>(a, b, first_token, tile);
      visit(tile, row, strip, first, inverse_temperature, state);
      __syncthreads();
    }
  }
  // Strips of a row are merged in order; the cosines are done with.
  RowState* strips = reinterpret_cast<RowState*>(tile.cosine);
  static_assert(sizeof(RowState) * THREADS <= sizeof(tile.cosine), "the states do not fit");
  __syncthreads();
  strips[threadIdx.x] = state;
  __syncthreads();
  if (strip == 0 && first_token + row < a.tokens) {
    for (int i = 1; i < 4; ++i) state.merge(strips[threadIdx.x + i]);
    if (!tile.valid[row]) state = RowState::none();
    p.states[(b * p.units.parts + part) * a.tokens + first_token + row] = state;
  }
}

// A template so that the header can be included anywhere; a thread is a token.
template <int = 0>
__global__ void __launch_bounds__(THREADS, 1) merge_kernel(ForwardParameters p) {
  const AlignmentForward& a = p.a;
  const int64_t token = int64_t{blockIdx.x} * THREADS + threadIdx.x;
  if (token >= a.batch * a.tokens) return;
  const int64_t b = token / a.tokens;
  RowState state = RowState::none();
  for (int64_t part = 0; part < p.units.parts; ++part)
    state.merge(p.states[(b * p.units.parts + part) * a.tokens + token % a.tokens]);
  const bool soft = a.temperature > 0 && state.unit >= 0;
  static_cast<float*>(a.similarity)[token] = soft ? state.weighted / state.sum : state.cosine;
  static_cast<float*>(a.log_normalizer)[token] = soft ? state.highest + logf(state.sum) : 0.0f;
  a.unit[token] = state.unit;
}

}  // namespace pad::cuda
