// Backward of the hard alignment: a token's gradient needs its unit alone, and a unit's the tokens that chose it.
#pragma once
#include "reduce.h"
#include "units.h"

namespace pad::cuda {

struct HardParameters {
  AlignmentBackward a;
  Units units;
  Pieces spans;   // of pooled units; else without any
  Pieces pieces;  // of the tokens: the gradient of a unit, at the first token that chose it
  bool text_aligned, grad_speech_aligned, grad_text_aligned;
};

template <class T>
struct HardRow {
  static constexpr int COUNT = static_cast<int>(max_width) / (THREADS * VECTOR<T>);  // vectors of a thread
  float values[COUNT][VECTOR<T>];

  __device__ static int column(int i) { return (i * THREADS + threadIdx.x) * VECTOR<T>; }

  // Gives the sum of this thread's squares.
  __device__ float load(const T* row, int width, bool aligned) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      load_vector(row, column(i), width, aligned, values[i]);
#pragma unroll
      for (int v = 0; v < VECTOR<T>; ++v) squares += values[i][v] * values[i][v];
    }
    return squares;
  }

  __device__ void store(T* row, int width, bool aligned) const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) store_vector(row, column(i), width, aligned, values[i]);
  }

  template <class Function>
  __device__ void each(Function function) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
#pragma unroll
      for (int v = 0; v < VECTOR<T>; ++v) function(values[i][v], i, v);
  }
};

// A unit's row, with what its rounding left over.
template <class T>
__device__ float load_unit(const Units& units, int64_t offset, HardRow<T>& row) {
  const float squares = row.load(static_cast<const T*>(units.rows.data) + offset, units.width, units.aligned);
  if (!units.remainder) return squares;
  HardRow<T> rest;
  rest.load(static_cast<const T*>(units.remainder) + offset, units.width, true);
  float sum = 0;
  row.each([&](float& value, int i, int v) {
    value += rest.values[i][v];
    sum += value * value;
  });
  return sum;
}

// A block is a token. The first token of a unit sums the unit's gradient over all that chose it, in order.
template <class T, bool POOLED>
__global__ void __launch_bounds__(THREADS) hard_kernel(HardParameters p) {
  __shared__ float scratch[THREADS / 32];
  const AlignmentBackward& a = p.a;
  const int tokens = static_cast<int>(a.tokens), width = static_cast<int>(a.width);
  const int token = blockIdx.x % tokens;
  const int64_t b = blockIdx.x / tokens, first_row = b * tokens;
  const float* gradient = static_cast<const float*>(a.grad_similarity) + first_row;
  const float* similarity = static_cast<const float*>(a.similarity) + first_row;
  const uint8_t* mask = a.token_mask + first_row;
  const int64_t* chosen = a.unit + first_row;
  const T* text = static_cast<const T*>(a.text.data) + b * a.text.batch_stride;
  const int64_t unit = chosen[token];
  const bool valid = mask[token] && unit >= 0 && unit < p.units.count;

  HardRow<T> own, other;
  float unit_inverse = 0;
  if (valid) {
    const int64_t offset = b * p.units.rows.batch_stride + unit * p.units.rows.row_stride;
    unit_inverse = inverse_norm(block_reduce<THREADS>(load_unit(p.units, offset, own), scratch));
  }
  if (a.grad_text) {
    if (valid) {
      const float squares = other.load(text + token * a.text.row_stride, width, p.text_aligned);
      const float inverse = inverse_norm(block_reduce<THREADS>(squares, scratch));
      const float through_norm = has_direction(inverse) ? similarity[token] * inverse : 0;
      other.each([&](float& value, int i, int v) {
        value = gradient[token] * inverse * (own.values[i][v] * unit_inverse - through_norm * value);
      });
    } else {
      other.each([](float& value, int, int) { value = 0; });
    }
    other.store(static_cast<T*>(a.grad_text) + (first_row + token) * width, width, p.grad_text_aligned);
  }
  if (!a.grad_speech) return;

  bool earlier = !valid;
  for (int j = threadIdx.x; j < token && valid; j += THREADS) earlier |= mask[j] && chosen[j] == unit;
  earlier = __syncthreads_or(earlier);
  if (POOLED && threadIdx.x == 0) {
    const int64_t place = b * p.units.count + (earlier ? 0 : unit);
    p.pieces.start[first_row + token] = earlier ? 0 : p.spans.start[place];
    p.pieces.end[first_row + token] = earlier ? 0 : p.spans.end[place];
    p.pieces.total[first_row + token] = earlier ? 1.0f : p.spans.total[place];
  }
  if (earlier) return;
  HardRow<T> sum;
  sum.each([](float& value, int, int) { value = 0; });
  const float through_norm = has_direction(unit_inverse) ? unit_inverse : 0;
  for (int j = token; j < tokens; ++j) {
    if (!mask[j] || chosen[j] != unit) continue;
    const float squares = other.load(text + j * a.text.row_stride, width, p.text_aligned);
    const float inverse = inverse_norm(block_reduce<THREADS>(squares, scratch));
    const float along = through_norm * similarity[j], factor = gradient[j] * unit_inverse;
    sum.each([&](float& value, int i, int v) {
      value += factor * (other.values[i][v] * inverse - along * own.values[i][v]);
    });
  }
  if constexpr (!POOLED) {
    sum.store(static_cast<T*>(a.grad_speech) + (b * a.frames + unit) * width, width, p.grad_speech_aligned);
  } else {
    auto* out = static_cast<PieceElement<T>*>(p.pieces.gradient) + (first_row + token) * p.pieces.pitch;
#pragma unroll
    for (int i = 0; i < HardRow<T>::COUNT; ++i)
      store_columns<T>(out, HardRow<T>::column(i), p.pieces.pitch, true, sum.values[i]);
  }
}

}  // namespace pad::cuda
