// The blocked matrix product that the ops stand on: out[r][c] = sum over k of rows[r][k] * panel[k][c].
//
//                                  columns (tokens, or queries)
//                                 +---------------+-------+---+
//                          depth  |       :       |       |   |  panel: packed once, read again for every tile
//                            |    |       :       |       |   |
//                            v    |       :       |       |   |
//             depth -->           +-------:-------+-------+---+
//         +------------------+    +-------v-------+-------+---+
//         | ...............> | -> | register tile |       |   |  out
//   rows  +------------------+    +---------------+-------+---+
//         | fetched early    |    |               |       |   |  a tile: tile_rows rows by up to 3 vectors of columns
//         +------------------+    +---------------+-------+---+
//
//   for tile_rows rows at a time                        block_gemm
//     for 3 vectors of columns (then 2, or 1)           for_each_column_block
//       for summed_depth elements of the depth          a sum of its own, added to `out`
//         for a cache line of each row                  fetches the same line of the next tile's rows
//           for each element k of it                    multiply_tile: all sums stay in registers
//             sums[r][v] += rows[r][k] * panel[k][v]
//
// What is built on it, per tile of 64 units (or keys):
//   forward        scores = units x tokens, then the running softmax or maximum of each token
//   backward       the same scores, turned into gradients in place; then by multiply_tile alone
//                  units' gradient = scores x tokens, tokens' gradient += transposed scores x units
//   significance   scores = keys x queries, then the softmax of each query
#pragma once
#include "cpu/vector.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// As many sums as the registers hold beside the operands of one step.
constexpr int tile_rows = vector_registers == 32 ? 8 : 4;
constexpr int tile_vectors = 3;

// Two neighbors in a row, multiplied with two others in one step where the processor can.
struct Pair {
  bfloat16 first, second;
};
#if defined(__AMX_BF16__) || defined(__AMXBF16__)  // GCC's name, and Clang's
#define PAD_HAS_TILES 1                            // tiles.h: faster than pairs
#endif
#if defined(__AVX512BF16__) && !defined(PAD_HAS_TILES)
template <class T> constexpr bool multiplies_pairs = std::is_same_v<T, bfloat16>;
#else
template <class T> constexpr bool multiplies_pairs = false;
#endif

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

inline float sum_of_squares(const Pair* row, int64_t depth) {
  constexpr int64_t taken = lanes<float>;
  Vector<float> sums[2] = {};
  const auto add = [](Vector<float>& sum, __m512bh pairs) { sum = multiply_add(sum, pairs, pairs); };
  int64_t k = 0;
  for (; k + 2 * taken <= depth; k += 2 * taken)
    for (int v = 0; v < 2; ++v) add(sums[v], operand(row + k + v * taken));
  for (; k + taken <= depth; k += taken) add(sums[0], operand(row + k));
  if (k < depth) {
    const auto rest = static_cast<__mmask16>((1u << (depth - k)) - 1);
    add(sums[1], bit_cast<__m512bh>(_mm512_maskz_loadu_epi32(rest, row + k)));
  }
  return sum_lanes<float>(sums[0] + sums[1]);
}
#endif

// sums[r][v] += sum over k of a(r, k) * b(k)[v], k ascending: the sum of an element does not depend on
// which tile it falls into.
template <class S, int vectors, class A, class B>
inline __attribute__((always_inline)) void multiply_tile(int64_t depth, const A& a, const B& b,
                                                         Vector<S> (&sums)[tile_rows][vectors]) {
#if defined(__x86_64__)
// Once for four elements the pointers of the rows move on: that takes ports of the multiplications.
#pragma GCC unroll 4
#endif
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

// Calls action(r, v) for the sums of the first `rows` rows. Unrolled: with an index the sums would leave the registers.
template <int vectors, class Action>
inline __attribute__((always_inline)) void for_each_sum(int64_t rows, const Action& action) {
#pragma GCC unroll 8
  for (int r = 0; r < tile_rows; ++r) {
    if (r >= rows) continue;
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) action(r, v);
  }
}

// Calls action(std::integral_constant<int, vectors>, column) for blocks of whole vectors, at most so many, that cover
// `columns`.
template <class S, int most = tile_vectors, class Action>
inline __attribute__((always_inline)) void for_each_column_block(int64_t columns, const Action& action) {
  int64_t column = 0, left = (columns + lanes<S> - 1) / lanes<S>;
  for (; left >= most; left -= most, column += most * lanes<S>) action(std::integral_constant<int, most>{}, column);
  static_assert(most == 2 || most == 3);
  if (most > 2 && left == 2) action(std::integral_constant<int, 2>{}, column);
  if (left == 1) action(std::integral_constant<int, 1>{}, column);
}

// Longer sums are made of sums of so many products: the rounding of one grows with its length.
constexpr int64_t summed_depth = 128;

// The rows of a later product, perhaps of narrower elements, fetched into the second cache: one with each row that is
// multiplied.
struct Later {
  const void* const* rows;
  int64_t count;
  int64_t element_bytes;
};

template <class E>
struct BlockGemm {
  const E* const* rows;  // [count] rows of [depth]
  int64_t count;
  int64_t readable;  // at least `count`: so many rows exist, and are fetched into the cache before they are asked for
  Later later{};
  int64_t depth;
  const E* panel;   // [depth, columns]
  int64_t columns;  // whole vectors
  Sum<E>* out;      // [count, columns]
};

// `visit(row, n)` is called before rows [row, row + n) are multiplied. The arguments come by value: what is behind a
// reference would be read anew after each store to `out`.
template <class E, class Visit>
inline __attribute__((always_inline)) void block_gemm(const BlockGemm<E> gemm, const Visit& visit) {
  using S = Sum<E>;
  constexpr int64_t step = cache_line / static_cast<int64_t>(sizeof(E));
  for (int64_t row = 0; row < gemm.count; row += tile_rows) {
    const E* pointers[tile_rows];
    for (int r = 0; r < tile_rows; ++r) pointers[r] = gemm.rows[minimum(row + r, gemm.count - 1)];
    const E* const* next = gemm.rows + row + tile_rows;
    const int64_t next_count = maximum(0, minimum(tile_rows, gemm.readable - row - tile_rows));
    const int64_t later_count = maximum(0, minimum(tile_rows, gemm.later.count - row));
    visit(row, minimum(tile_rows, gemm.count - row));
    for_each_column_block<S>(gemm.columns, [&](auto vectors, int64_t column) __attribute__((always_inline)) {
      constexpr int width = decltype(vectors)::value;
      for (int64_t from = 0; from < gemm.depth; from += summed_depth) {
        const int64_t to = minimum(gemm.depth, from + summed_depth);
        Vector<S> sums[tile_rows][width] = {};
        for (int64_t k = from; k < to; k += step) {
          if (column == 0) {
            for (int64_t r = 0; r < next_count; ++r) __builtin_prefetch(next[r] + k);
            const int64_t offset = k * gemm.later.element_bytes;
            if (offset % cache_line == 0)
              for (int64_t r = 0; r < later_count; ++r)
                __builtin_prefetch(static_cast<const char*>(gemm.later.rows[row + r]) + offset, 0, 2);
          }
          multiply_tile<S, width>(
              minimum(step, to - k), [&](int r, int64_t i) { return pointers[r][k + i]; },
              [&](int64_t i) { return gemm.panel + (k + i) * gemm.columns + column; }, sums);
        }
        S* const out = gemm.out + row * gemm.columns + column;
        for_each_sum<width>(gemm.count - row, [&](int r, int v) __attribute__((always_inline)) {
          S* place = out + r * gemm.columns + v * lanes<S>;
          store(place, from == 0 ? sums[r][v] : load(place) + sums[r][v]);
        });
      }
    });
  }
}

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
