// Blocked matrix product in registers: a few rows of A times a few vectors of B's columns.
#pragma once
#include "simd.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// One register tile: tile_rows x (up to tile_vectors vectors) sums, and as many operands as are left.
constexpr int tile_rows = vector_registers == 32 ? 8 : 4;
constexpr int tile_vectors = 3;
constexpr int64_t cache_line = 64;

// What a row's elements are multiplied as: one at a time, or two bfloat16 in one step, exactly, summed in float32.
inline Vector<float> operand(const float* data) { return load(data); }
inline Vector<double> operand(const double* data) { return load(data); }
inline Vector<float> spread(float value) { return broadcast(value); }
inline Vector<double> spread(double value) { return broadcast(value); }
template <class V> inline V multiply_add(V sum, V a, V b) { return sum + a * b; }
template <class E> using Sum = std::conditional_t<std::is_same_v<E, Pair>, float, E>;

#if defined(__AVX512BF16__)
inline __m512bh operand(const Pair* data) { return bit_cast<__m512bh>(_mm512_loadu_si512(data)); }
inline __m512bh spread(Pair value) { return bit_cast<__m512bh>(_mm512_set1_epi32(bit_cast<int32_t>(value))); }
inline Vector<float> multiply_add(Vector<float> sum, __m512bh a, __m512bh b) {
  return bit_cast<Vector<float>>(_mm512_dpbf16_ps(bit_cast<__m512>(sum), a, b));
}
#endif

// sums[r][v] += sum over k of a(r, k) * b(k)[v], k ascending: the sum of an element does not depend on
// which tile it falls into.
template <class S, int vectors, class A, class B>
inline __attribute__((always_inline)) void multiply_tile(int64_t depth, const A& a, const B& b,
                                                         Vector<S> (&sums)[tile_rows][vectors]) {
  for (int64_t k = 0; k < depth; ++k) {
    const auto* columns = b(k);
    decltype(operand(columns)) column[vectors];
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) column[v] = operand(columns + v * lanes<S>);
#pragma GCC unroll 8
    for (int r = 0; r < tile_rows; ++r) {
      const auto value = spread(a(r, k));
#pragma GCC unroll 3
      for (int v = 0; v < vectors; ++v) sums[r][v] = multiply_add(sums[r][v], value, column[v]);
    }
  }
}

// Calls action.template operator()<vectors>(column) for blocks of whole vectors that cover `columns`.
template <class S, class Action>
inline __attribute__((always_inline)) void for_each_column_block(int64_t columns, const Action& action) {
  int64_t column = 0, left = (columns + lanes<S> - 1) / lanes<S>;
  for (; left >= 3; left -= 3, column += 3 * lanes<S>) action(std::integral_constant<int, 3>{}, column);
  if (left == 2) action(std::integral_constant<int, 2>{}, column);
  if (left == 1) action(std::integral_constant<int, 1>{}, column);
}

// Longer sums are made of sums of so many products: the rounding of one grows with its length.
constexpr int64_t summed_depth = 128;

// out[r][c] = sum over k of rows[r][k] * panel[k][c], for `count` rows and `columns` (rounded up to vectors).
// `visit(row, n)` is called before rows [row, row + n) are multiplied. While one tile is multiplied the next
// rows, up to `readable`, are fetched into the cache.
template <class E, class Visit>
inline void multiply_rows(const E* const* rows, int64_t count, int64_t readable, int64_t depth, const E* panel,
                          int64_t panel_stride, int64_t columns, Sum<E>* out, int64_t out_stride,
                          const Visit& visit) {
  using S = Sum<E>;
  constexpr int64_t step = cache_line / static_cast<int64_t>(sizeof(E));
  for (int64_t row = 0; row < count; row += tile_rows) {
    const E* pointers[tile_rows];
    for (int r = 0; r < tile_rows; ++r) pointers[r] = rows[minimum(row + r, count - 1)];
    const E* const* next = rows + row + tile_rows;
    const int64_t next_count = maximum(0, minimum(tile_rows, readable - row - tile_rows));
    visit(row, minimum(tile_rows, count - row));
    for_each_column_block<S>(columns, [&](auto vectors, int64_t column) __attribute__((always_inline)) {
      constexpr int width = decltype(vectors)::value;
      for (int64_t from = 0; from < depth; from += summed_depth) {
        const int64_t to = minimum(depth, from + summed_depth);
        Vector<S> sums[tile_rows][width] = {};
        for (int64_t k = from; k < to; k += step) {
          if (column == 0)
            for (int64_t r = 0; r < next_count; ++r) __builtin_prefetch(next[r] + k);
          multiply_tile<S, width>(
              minimum(step, to - k), [&](int r, int64_t i) { return pointers[r][k + i]; },
              [&](int64_t i) { return panel + (k + i) * panel_stride + column; }, sums);
        }
        for (int r = 0; r < tile_rows && row + r < count; ++r)
          for (int v = 0; v < width; ++v) {
            S* place = out + (row + r) * out_stride + column + v * lanes<S>;
            store(place, from == 0 ? sums[r][v] : load(place) + sums[r][v]);
          }
      }
    });
  }
}

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
