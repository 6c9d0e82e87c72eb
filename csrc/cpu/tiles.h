// Matrix products in the tile registers of Intel's AMX: bfloat16 times bfloat16, exact, summed in float32.
//
// Other numbers are sums of two bfloat16 parts: float16 exactly, float32 to 2^-17. Without the product of the two
// lesser parts, those of rows that are alike would all be too small.
#pragma once
#include "cpu/block_gemm.h"
#include "cpu/rows.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

#if defined(PAD_HAS_TILES)

constexpr int64_t tile_side = 16;   // rows and columns of a tile of sums
constexpr int64_t tile_depth = 32;  // elements of a row that a tile holds
constexpr int64_t block_side = 2 * tile_side;

template <class T> constexpr int parts_of_element = std::is_same_v<T, bfloat16> ? 1 : 2;

// Shapes the calling thread's tiles, and gives them back as they were: torch's kernels use them too.
class TileShapes {
 public:
  TileShapes() {
    _tile_storeconfig(before_);
    alignas(64) uint8_t shapes[64] = {1};  // palette 1
    for (int tile = 0; tile < 8; ++tile) {
      shapes[16 + 2 * tile] = cache_line;  // bytes of a row
      shapes[48 + tile] = tile_side;
    }
    load_shapes(shapes);
  }
  ~TileShapes() { load_shapes(before_); }
  TileShapes(const TileShapes&) = delete;
  TileShapes& operator=(const TileShapes&) = delete;

 private:
  static void load_shapes(const uint8_t* shapes) {
    if (shapes[0]) _tile_loadconfig(shapes);
    else _tile_release();
  }
  alignas(64) uint8_t before_[64];
};

// 16 rows in parts: element k of part p of row r lies at data[p * part_stride + r * row_stride + k].
struct TileRows {
  const bfloat16* data;
  int64_t row_stride, part_stride;
};

// Two times 16 rows.
struct TileRowPair {
  TileRows upper, lower;
};

// Neighbors of the depth in pairs: elements 2k and 2k + 1 of column c of part p lie at
// data[p * part_stride + k * columns + c].
struct TilePanel {
  const Pair* data;
  int64_t columns, part_stride;
};

// Where the sums go, and whether they are added to what is there.
struct TileSums {
  float* data;
  int64_t stride;
  bool add;
};

// sums[r][c] = sum over k of rows[r][k] * panel[k][c], for `row_tiles` times 16 rows and `column_tiles` times 16
// columns. `visit(k)` is called before elements [k, k + 32) are multiplied.
template <int row_parts, int panel_parts, int row_tiles, int column_tiles, class Visit>
inline __attribute__((always_inline)) void multiply_tiles(const TileRowPair rows, const TilePanel panel, int64_t depth,
                                                          const TileSums sums, const Visit& visit) {
  const int64_t stride = sums.stride * static_cast<int64_t>(sizeof(float)), below = tile_side * sums.stride;
  asm volatile("" ::: "memory");  // what the tiles are loaded from has been stored
  if (sums.add) {
    _tile_loadd(0, sums.data, stride);
    if constexpr (column_tiles == 2) _tile_loadd(1, sums.data + tile_side, stride);
    if constexpr (row_tiles == 2) _tile_loadd(2, sums.data + below, stride);
    if constexpr (row_tiles == 2 && column_tiles == 2) _tile_loadd(3, sums.data + below + tile_side, stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const int64_t panel_stride = panel.columns * static_cast<int64_t>(sizeof(Pair));
  for (int64_t k = 0; k < depth; k += tile_depth) {
    visit(k);
#pragma GCC unroll 2
    for (int q = 0; q < panel_parts; ++q) {
      const Pair* columns = panel.data + q * panel.part_stride + k / 2 * panel.columns;
      _tile_loadd(6, columns, panel_stride);
      if constexpr (column_tiles == 2) _tile_loadd(7, columns + tile_side, panel_stride);
#pragma GCC unroll 2
      for (int p = 0; p < row_parts; ++p) {
        _tile_loadd(4, rows.upper.data + p * rows.upper.part_stride + k, rows.upper.row_stride * 2);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (column_tiles == 2) _tile_dpbf16ps(1, 4, 7);
        if constexpr (row_tiles == 2) {
          _tile_loadd(5, rows.lower.data + p * rows.lower.part_stride + k, rows.lower.row_stride * 2);
          _tile_dpbf16ps(2, 5, 6);
          if constexpr (column_tiles == 2) _tile_dpbf16ps(3, 5, 7);
        }
      }
    }
  }
  _tile_stored(0, sums.data, stride);
  if constexpr (column_tiles == 2) _tile_stored(1, sums.data + tile_side, stride);
  if constexpr (row_tiles == 2) _tile_stored(2, sums.data + below, stride);
  if constexpr (row_tiles == 2 && column_tiles == 2) _tile_stored(3, sums.data + below + tile_side, stride);
}

// Calls action(std::integral_constant<int, tiles>, first) for pairs of tiles, and one, that cover `count`, a multiple
// of tile_side.
template <class Action>
inline __attribute__((always_inline)) void for_each_tiles(int64_t count, const Action& action) {
  int64_t first = 0;
  for (; first + block_side <= count; first += block_side) action(std::integral_constant<int, 2>{}, first);
  if (first < count) action(std::integral_constant<int, 1>{}, first);
}

// out[p * part_stride + i] = part p of 32 numbers: the nearest bfloat16 to what the parts before leave.
template <int parts>
inline __attribute__((always_inline)) void split(Vector<float> first, Vector<float> second, bfloat16* out,
                                                 int64_t part_stride) {
#pragma GCC unroll 2
  for (int p = 0; p < parts; ++p) {
    const auto nearest = bit_cast<__m512i>(_mm512_cvtne2ps_pbh(bit_cast<__m512>(second), bit_cast<__m512>(first)));
    _mm512_storeu_si512(out + p * part_stride, nearest);
    first -= bit_cast<Vector<float>>(widened(_mm512_castsi512_si256(nearest)) << 16);
    second -= bit_cast<Vector<float>>(widened(_mm512_extracti64x4_epi64(nearest, 1)) << 16);
  }
}

// The parts of a row, and zeros beyond it up to a multiple of 32.
template <int parts, class T>
inline void split_row(const T* row, int64_t width, bfloat16* out, int64_t part_stride) {
  int64_t d = 0;
  if constexpr (std::is_same_v<T, bfloat16>) {
    static_assert(parts == 1);
    std::memcpy(out, row, static_cast<size_t>(width) * sizeof(T));
    for (d = width; d % tile_depth; ++d) out[d] = {0};
  } else {
    for (; d + tile_depth <= width; d += tile_depth)
      split<parts>(load(row + d), load(row + d + tile_side), out + d, part_stride);
    if (d == width) return;
    float rest[tile_depth] = {};
    for (int64_t i = d; i < width; ++i) rest[i - d] = to_opmath(row[i]);
    split<parts>(load(rest), load(rest + tile_side), out + d, part_stride);
  }
}

// Room for copies of rows in parts: element k of part p of row r lies at data[p * part_stride + r * row_stride + k].
struct TileCopies {
  bfloat16* data;
  int64_t row_stride, part_stride;
};

// Rows [first, first + 16) of the copies: `read(r)`, of `width` elements, for r < count, and zeros.
template <int parts, class Read>
inline TileRows copy_rows(const TileCopies copies, int64_t first, int64_t count, int64_t width, const Read& read) {
  bfloat16* const rows = copies.data + first * copies.row_stride;
  for (int64_t r = 0; r < tile_side; ++r) {
    bfloat16* copy = rows + r * copies.row_stride;
    if (r < count) split_row<parts>(read(r), width, copy, copies.part_stride);
    else
      for (int part = 0; part < parts; ++part) fill_zero(copy + part * copies.part_stride, round_up(width, tile_depth));
  }
  return {rows, copies.row_stride, copies.part_stride};
}

// out[d] = the pair of a[d] and b[d], for `width` elements, a multiple of 16.
inline void write_pairs(const bfloat16* a, const bfloat16* b, int64_t width, Pair* out) {
  for (int64_t d = 0; d < width; d += tile_side) {
    const auto bits = [&](const bfloat16* row) {
      return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + d)));
    };
    const Vector<uint32_t> pairs = bits(a) | bits(b) << 16;
    std::memcpy(out + d, &pairs, sizeof(pairs));
  }
}

#endif

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
