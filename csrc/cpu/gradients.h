// The gradients of a tile of units and of the tokens, from those of their scores: two matrix products.
#pragma once
#include "cpu/scores.h"
#include "cpu/stream.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// Where the gradients of a tile's units go.
template <class To>
struct UnitRows {
  To* const* rows;  // null: nowhere
  bool streamed;    // past the caches
};

// A tile whose scores are gradients, and the rows that they are multiplied with. Functions copy what they read of it:
// what is behind a reference would be read anew after each store.
template <class S>
struct GradientTile {
  int64_t units, tokens;     // how many
  const S* scores;           // [units, columns]: G / |u|
  int64_t columns;           // the tokens, padded
  const S* unit_block;       // [units, vectors]: the columns at hand; rows of 3 KB would share a few sets of the cache
  const S* token_rows;       // [columns, row_stride]
  int64_t row_stride;        // of the tokens and of their gradients
  const S* unit_projection;  // [units]
};

// out[r][d] = sum_j scores[r][j] token_rows[j][d] - unit_projection[r] units[r][d], for columns
// [column, column + vectors). Not inlined, so that the sums have the registers to themselves.
template <int vectors, class T, class S>
__attribute__((noinline)) void unit_gradients(const GradientTile<S>& tile, int64_t column, const UnitRows<T>& out) {
  const S *const scores = tile.scores, *const token_rows = tile.token_rows, *const projection = tile.unit_projection;
  const S* const unit_block = tile.unit_block;
  const int64_t units = tile.units, tokens = tile.tokens, columns = tile.columns, row_stride = tile.row_stride;
  T* const* const rows = out.rows;
  const bool streamed = out.streamed;
  for (int64_t row = 0; row < units; row += tile_rows) {
    const S* gradients = scores + row * columns;
    Vector<S> sums[tile_rows][vectors] = {};
    multiply_tile<S, vectors>(
        tokens, [=](int r, int64_t j) { return gradients[r * columns + j]; },
        [=](int64_t j) { return token_rows + j * row_stride + column; }, sums);
    for_each_sum<vectors>(units - row, [&](int r, int v) __attribute__((always_inline)) {
      const Vector<S> unit = load(unit_block + ((row + r) * vectors + v) * lanes<S>);
      const Vector<S> gradient = sums[r][v] - unit * projection[row + r];
      T* place = rows[row + r] + column + v * lanes<S>;
      streamed ? stream(place, gradient) : store(place, gradient);
    });
  }
}

// token_sums[j][d] += sum_r scores[r][j] units[r][d], for columns [column, column + vectors).
template <int vectors, class S>
void token_gradients(const GradientTile<S>& tile, int64_t column, S* token_sums) {
  const S* const scores = tile.scores;
  const S* const unit_block = tile.unit_block;
  const int64_t units = tile.units, tokens = tile.tokens, columns = tile.columns, row_stride = tile.row_stride;
  for (int64_t token = 0; token < tokens; token += tile_rows) {
    Vector<S> sums[tile_rows][vectors] = {};
    multiply_tile<S, vectors>(
        units, [&](int r, int64_t unit) { return scores[unit * columns + token + r]; },
        [&](int64_t unit) { return unit_block + unit * vectors * lanes<S>; }, sums);
    for_each_sum<vectors>(tile_rows, [&](int r, int v) __attribute__((always_inline)) {
      S* place = token_sums + (token + r) * row_stride + column + v * lanes<S>;
      store(place, load(place) + sums[r][v]);
    });
  }
}

template <class Scores>
class Gradients;

// By vectors.
template <class T>
class Gradients<VectorScores<T>> {
 public:
  using S = OpMath<T>;
  // Two vectors of AVX-512 give a whole cache line of half-precision gradients.
  static constexpr int vectors = sizeof(T) == 2 && lanes<S> * 2 * sizeof(T) == cache_line ? 2 : tile_vectors;
  static constexpr int64_t columns_together = vectors == 2 ? 2 * lanes<S> : lanes<S>;  // written to a row at a time

  Gradients(const Utterance<T>& utterance, const Tokens<T>& tokens, const VectorScores<T>& scores)
      : scores_(scores),
        tokens_(tokens.count),
        width_(utterance.padded_width),
        row_stride_(utterance.row_stride),
        token_rows_(tokens.padded * row_stride_),
        unit_block_(tile_units * vectors * lanes<S>) {
    tokens.write_rows(utterance, token_rows_.data());
  }

  // Writes the gradients of the units of the latest tile, whose scores are G / |u| now, and adds to those of the
  // tokens, `token_sums` [columns, row stride], if it is not null.
  template <class To>
  void add(const ScoreTile<S>& tile, const S* unit_projection, const UnitRows<To>& out, S* token_sums) const {
    const GradientTile<S> gradients{
        .units = tile.count,
        .tokens = tokens_,
        .scores = tile.scores,
        .columns = tile.columns,
        .unit_block = unit_block_.data(),
        .token_rows = token_rows_.data(),
        .row_stride = row_stride_,
        .unit_projection = unit_projection,
    };
    for_each_column_block<S, vectors>(width_, [&](auto taken, int64_t column) {
      constexpr int block = decltype(taken)::value;
      scores_.template copy_columns<block>(tile, column, unit_block_.data());
      if (out.rows) unit_gradients<block>(gradients, column, out);
      if (token_sums) token_gradients<block>(gradients, column, token_sums);
    });
  }

 private:
  const VectorScores<T>& scores_;
  const int64_t tokens_, width_, row_stride_;
  const Buffer<S> token_rows_, unit_block_;
};

#if defined(PAD_HAS_TILES)

// By tiles of AMX. The gradients of the scores are numbers of two parts.
template <class T>
class Gradients<TileScores<T>> {
 public:
  using S = OpMath<T>;
  static constexpr int64_t columns_together = block_side;

  Gradients(const Utterance<T>& utterance, const Tokens<T>& tokens, TileScores<T>& scores)
      : scores_(scores),
        inverse_(tokens.inverse.data()),
        columns_(tokens.padded),
        depth_(round_up(tokens.padded, tile_depth)),
        width_(utterance.padded_width),
        row_stride_(utterance.row_stride),
        token_pairs_(token_parts * depth_ / 2 * width_),
        unit_pairs_((scores.pooled() ? TileScores<T>::pooled_parts : TileScores<T>::frame_parts) * tile_units / 2 *
                    width_),
        of_units_(parts * tile_units * depth_),
        of_tokens_(parts * depth_ * tile_units) {
    TokenRows<T>& rows = scores.token_rows();
    for (int part = 0; part < token_parts; ++part)
      for (int64_t j = 0; j < depth_; j += 2)
        write_pairs(rows.row(part, j), rows.row(part, j + 1), width_,
                    token_pairs_.data() + (part * depth_ + j) / 2 * width_);
    rows.free();
  }

  // As above.
  template <class To>
  void add(const ScoreTile<S>& tile, const S* unit_projection, const UnitRows<To>& out, S* token_sums) const {
    if (out.rows) split_for_units(tile);
    if (token_sums) split_for_tokens(tile);
    if (scores_.pooled()) add<TileScores<T>::pooled_parts>(tile, unit_projection, out, token_sums);
    else add<TileScores<T>::frame_parts>(tile, unit_projection, out, token_sums);
  }

 private:
  static constexpr int token_parts = TokenRows<T>::parts;
  static constexpr int parts = 2;

  template <int unit_parts, class To>
  void add(const ScoreTile<S>& tile, const S* unit_projection, const UnitRows<To>& out, S* token_sums) const {
    const int64_t depth = round_up(tile.count, tile_depth);
    if (token_sums)
      for (int part = 0; part < unit_parts; ++part)
        for (int64_t r = 0; r < depth; r += 2)
          write_pairs(scores_.part_row(part, r), scores_.part_row(part, r + 1), width_,
                      unit_pairs_.data() + (part * tile_units + r) / 2 * width_);
    for_each_tiles(width_, [&](auto column_tiles, int64_t column) __attribute__((always_inline)) {
      constexpr int wide = decltype(column_tiles)::value;
      const TilePanel tokens{token_pairs_.data() + column, width_, depth_ / 2 * width_};
      if (out.rows)
        for (int64_t row = 0; row < tile.count; row += block_side) {
          alignas(64) S sums[block_side * block_side];
          multiply_tiles<parts, token_parts, 2, wide>(both(of_units_.data(), tile_units, row, depth_), tokens, depth_,
                                                      {sums, block_side, false}, [](int64_t) {});
          for (int64_t r = row; r < minimum(row + block_side, tile.count); ++r) {
            const S* direction = sums + (r - row) * block_side;
            if (scores_.pooled())
              write<wide>(direction, scores_.rows()[r] + column, unit_projection[r], out, r, column);
            else write<wide>(direction, scores_.frame(tile.first + r) + column, unit_projection[r], out, r, column);
          }
        }
      const TilePanel units{unit_pairs_.data() + column, width_, tile_units / 2 * width_};
      if (token_sums)
        for_each_tiles(columns_, [&](auto row_tiles, int64_t token) __attribute__((always_inline)) {
          multiply_tiles<parts, unit_parts, decltype(row_tiles)::value, wide>(
              both(of_tokens_.data(), depth_, token, tile_units), units, depth,
              {token_sums + token * row_stride_ + column, row_stride_, true}, [](int64_t) {});
        });
    });
  }

  // Rows [row, row + 32) of [parts, count, stride].
  static TileRowPair both(const bfloat16* data, int64_t count, int64_t row, int64_t stride) {
    return {{data + row * stride, stride, count * stride}, {data + (row + tile_side) * stride, stride, count * stride}};
  }

  template <int wide, class Row, class To>
  static inline __attribute__((always_inline)) void write(const S* direction, const Row* unit, S projection,
                                                          const UnitRows<To>& out, int64_t row, int64_t column) {
    for (int64_t d = 0; d < wide * tile_side; d += lanes<S>) {
      const Vector<S> gradient = load(direction + d) - load(unit + d) * projection;
      To* place = out.rows[row] + column + d;
      out.streamed ? stream(place, gradient) : store(place, gradient);
    }
  }

  // G / |u| |t| [units, tokens]
  void split_for_units(const ScoreTile<S>& tile) const {
    for (int64_t r = 0; r < tile.count; ++r)
      for (int64_t j = 0; j < depth_; j += tile_depth) {
        const auto scaled = [&](int64_t from) {
          return from < columns_ ? load(tile.scores + r * columns_ + from) * load(inverse_ + from) : Vector<S>{};
        };
        split<parts>(scaled(j), scaled(j + tile_side), of_units_.data() + r * depth_ + j, tile_units * depth_);
      }
  }

  // G / |u| [tokens, units]
  void split_for_tokens(const ScoreTile<S>& tile) const {
    for (int64_t r = 0; r < tile.count; r += tile_depth)
      for (int64_t j = 0; j < columns_; j += tile_side) {
        Vector<S> halves[2][tile_side];
        for (int half = 0; half < 2; ++half) {
          for (int64_t i = 0; i < tile_side; ++i)
            halves[half][i] = load(tile.scores + (r + half * tile_side + i) * columns_ + j);
          transpose<S>(halves[half]);
        }
        for (int64_t i = 0; i < tile_side; ++i)
          split<parts>(halves[0][i], halves[1][i], of_tokens_.data() + (j + i) * tile_units + r, depth_ * tile_units);
      }
  }

  const TileScores<T>& scores_;
  const S* const inverse_;  // of the tokens' norms
  const int64_t columns_, depth_, width_, row_stride_;
  const Buffer<Pair> token_pairs_;    // [parts, depth / 2, width]
  const Buffer<Pair> unit_pairs_;     // [parts, tile_units / 2, width]
  const Buffer<bfloat16> of_units_;   // [parts, tile_units, depth]
  const Buffer<bfloat16> of_tokens_;  // [parts, depth, tile_units]
};

#endif

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
