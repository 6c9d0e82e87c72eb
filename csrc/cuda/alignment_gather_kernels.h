// Backward of the hard alignment, and the frames' gathering from the spans that cover them.
#pragma once
#include "alignment_backward_kernels.h"

namespace pad::cuda {

struct HardParameters {
  AlignmentBackward a;
  Pieces pieces;  // of spans: one for each token, at the first token of a unit
};

// A block is a token. The first token of a unit sums the unit's gradient over all that chose it, in order.
template <class K>
__global__ void __launch_bounds__(THREADS, 1) hard_kernel(HardParameters p) {
  using T = typename K::Element;
  constexpr bool SPANS = K::SPANS;
  __shared__ float scratch[THREADS];
  constexpr int COUNT = static_cast<int>(max_width) / THREADS;
  const AlignmentBackward& a = p.a;
  const int64_t token = blockIdx.x % a.tokens, b = blockIdx.x / a.tokens, row = b * a.tokens;
  const float* gradient = static_cast<const float*>(a.grad_similarity) + row;
  const float* similarity = static_cast<const float*>(a.similarity) + row;
  const uint8_t* mask = a.token_mask + row;
  const int64_t* chosen = a.unit + row;
  const int64_t unit = chosen[token];
  const bool valid = mask[token] && unit >= 0 && unit < a.units;

  Unit found{0, 0, 0, 0};
  float units[COUNT], text[COUNT];
  float unit_square = 0, text_square = 0;
  if (valid) found = find_unit<SPANS>(a, b, unit);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    const int64_t column = threadIdx.x + i * THREADS;
    units[i] = text[i] = 0;
    if (!valid || column >= a.width) continue;
    units[i] = unit_element<K>(a, b, found, column);
    text[i] = text_element<T>(a, b, token, column);
    unit_square += units[i] * units[i];
    text_square += text[i] * text[i];
  }
  const float unit_norm = sqrtf(block_sum<THREADS>(unit_square, scratch)), unit_inverse = 1 / fmaxf(unit_norm, EPSILON);
  const float text_norm = sqrtf(block_sum<THREADS>(text_square, scratch)), text_inverse = 1 / fmaxf(text_norm, EPSILON);

  if (a.grad_text) {
    const float through_norm = text_norm > EPSILON ? similarity[token] * text_inverse : 0;
    T* out = static_cast<T*>(a.grad_text) + (row + token) * a.width;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int64_t column = threadIdx.x + i * THREADS;
      if (column >= a.width) continue;
      const float value = gradient[token] * text_inverse * (units[i] * unit_inverse - through_norm * text[i]);
      out[column] = from_opmath<T>(valid ? value : 0.0f);
    }
  }
  if (!a.grad_speech) return;

  bool earlier = !valid;
  for (int64_t j = threadIdx.x; j < token && valid; j += THREADS) earlier |= mask[j] && chosen[j] == unit;
  earlier = __syncthreads_or(earlier);
  if (SPANS && threadIdx.x == 0) {
    p.pieces.start[row + token] = earlier ? 0 : found.start;
    p.pieces.end[row + token] = earlier ? 0 : found.end;
    p.pieces.total[row + token] = found.total;
  }
  if (earlier) return;
  float sum[COUNT] = {};
  const float through_norm = unit_norm > EPSILON ? unit_inverse : 0;
  for (int64_t j = token; j < a.tokens; ++j) {
    if (!mask[j] || chosen[j] != unit) continue;
    float square = 0;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int64_t column = threadIdx.x + i * THREADS;
      text[i] = column < a.width ? text_element<T>(a, b, j, column) : 0;
      square += text[i] * text[i];
    }
    const float inverse = 1 / fmaxf(sqrtf(block_sum<THREADS>(square, scratch)), EPSILON);
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
      sum[i] += gradient[j] * unit_inverse * (text[i] * inverse - through_norm * similarity[j] * units[i]);
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    const int64_t column = threadIdx.x + i * THREADS;
    if (column >= a.width) continue;
    if (SPANS) p.pieces.gradient[(row + token) * a.width + column] = sum[i];
    else static_cast<T*>(a.grad_speech)[(b * a.frames + unit) * a.width + column] = from_opmath<T>(sum[i]);
  }
}

constexpr int GATHER_COLUMNS = 4;  // of a thread

struct GatherParameters {
  AlignmentBackward a;
  Pieces pieces;
  int64_t slabs;
};

// A block is a frame and a slab of the width: sums p_i / (sum p) of the gradients of the ranges that cover it.
template <class T>
__global__ void __launch_bounds__(THREADS, 1) gather_kernel(GatherParameters p) {
  __shared__ float share[THREADS];
  const AlignmentBackward& a = p.a;
  const int64_t slab = blockIdx.x % p.slabs, frame = blockIdx.x / p.slabs % a.frames;
  const int64_t b = blockIdx.x / p.slabs / a.frames;
  const int64_t first_column = slab * THREADS * GATHER_COLUMNS + threadIdx.x;
  const float prior = static_cast<const float*>(a.frame_prior)[b * a.frames + frame];
  float sum[GATHER_COLUMNS] = {};
  for (int64_t first = 0; prior > 0 && first < p.pieces.count; first += THREADS) {
    __syncthreads();
    const int64_t own = b * p.pieces.count + first + threadIdx.x;
    const bool covers =
        first + threadIdx.x < p.pieces.count && p.pieces.start[own] <= frame && frame < p.pieces.end[own];
    share[threadIdx.x] = covers ? prior / p.pieces.total[own] : 0;
    __syncthreads();
    for (int64_t k = 0; k < THREADS && first + k < p.pieces.count; ++k) {
      if (share[k] == 0) continue;
      const float* gradient = p.pieces.gradient + (b * p.pieces.count + first + k) * a.width;
#pragma unroll
      for (int i = 0; i < GATHER_COLUMNS; ++i)
        if (first_column + i * THREADS < a.width) sum[i] += share[k] * gradient[first_column + i * THREADS];
    }
  }
  T* out = static_cast<T*>(a.grad_speech) + (b * a.frames + frame) * a.width;
#pragma unroll
  for (int i = 0; i < GATHER_COLUMNS; ++i)
    if (first_column + i * THREADS < a.width) out[first_column + i * THREADS] = from_opmath<T>(sum[i]);
}

template <class T>
__global__ void __launch_bounds__(THREADS, 1) convert_kernel(const float* from, T* to, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * THREADS + threadIdx.x;
  if (i < count) to[i] = from_opmath<T>(from[i]);
}

}  // namespace pad::cuda
