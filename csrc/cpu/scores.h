// The scores of the units with the tokens, tile by tile, as forward and backward both need them.
#pragma once
#include "cpu/tiles.h"
#include "cpu/tokens.h"
#include "cpu/units.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// Where the norm of a unit overflows its cosines are 0, but the product of such a row, finite as it is, can have
// overflowed too. `overflows(r)`: whether that is so of row r of the tile.
template <class S, class Overflows>
void clear_overflowing(const ScoreTile<S>& tile, const Overflows& overflows) {
  for (int64_t r = 0; r < tile.count; ++r)
    if (overflows(r)) fill_zero(tile.scores + r * tile.columns, tile.columns);
}

// Scales the scores of tokens as they come, and clears those whose norm overflows, on either side.
template <class T, class Overflows>
void scale_scores(const Utterance<T>& utterance, const Tokens<T>& tokens, const ScoreTile<OpMath<T>>& tile,
                  const Overflows& overflows) {
  using S = OpMath<T>;
  clear_overflowing(tile, overflows);
  for (int64_t r = 0; r < tile.count; ++r) {
    S* row = tile.scores + r * tile.columns;
    for (int64_t j = 0; j < tile.columns; j += lanes<S>)
      store(row + j, load(row + j) * load(tokens.inverse.data() + j));
  }
  for (int64_t j = 0; j < tokens.count; ++j)
    if (norm_overflows(tokens.inverse[j], utterance.token(tokens.index[j]), utterance.width))
      for (int64_t r = 0; r < tile.count; ++r) tile.scores[r * tile.columns + j] = 0;
}

// By vectors. bfloat16 frames are multiplied as they lie, in pairs, where the processor can.
template <class T>
class VectorScores {
 public:
  using S = OpMath<T>;

  VectorScores(const Utterance<T>& utterance, const Tokens<T>& tokens, Units<T>& units)
      : utterance_(utterance),
        units_(units),
        tokens_(tokens),
        in_pairs_(multiplies_pairs<T> && !utterance.start && utterance.width % lanes<S> == 0),
        panel_(in_pairs_ ? 0 : utterance.width * tokens.padded),
        pairs_(in_pairs_ ? utterance.width / 2 * tokens.padded : 0),
        frames_(in_pairs_ ? units.count : 0),
        scores_(tile_units * tokens.padded) {
    fill_zero(scores_.data(), tile_units * tokens.padded);
    if (in_pairs_) take_pairs(utterance);
    else tokens.write_panel(utterance, panel_.data());
  }

  // The scores of units [first, first + n), valid until the next call; their inverse norms with them.
  ScoreTile<S> tile(int64_t first, int64_t n) {
    const ScoreTile<S> scored{.first = first, .count = n, .columns = tokens_.padded, .scores = scores_.data()};
    if (in_pairs_) score_pairs(scored);
    else score_rows(scored);
    return scored;
  }

  // block[r][v] = vector v of row r of the latest tile, from `column` on.
  template <int vectors>
  void copy_columns(const ScoreTile<S>& scored, int64_t column, S* block) const {
    const auto copy = [&](const auto* row, int64_t r) {
      for (int v = 0; v < vectors; ++v) store(block + (r * vectors + v) * lanes<S>, load(row + column + v * lanes<S>));
    };
    if (in_pairs_)
      for (int64_t r = 0; r < scored.count; ++r) copy(units_.frame(scored.first + r), r);
    else
      for (int64_t r = 0; r < scored.count; ++r) copy(rows_[r], r);
  }

 private:
  // Tokens as they come: rounding their unit vectors would cost accuracy.
  void take_pairs(const Utterance<T>& utterance) {
    if constexpr (multiplies_pairs<T>) {
      const int64_t depth = utterance.width / 2, columns = tokens_.padded;
      const auto token = [&](int64_t j) { return reinterpret_cast<const Pair*>(utterance.token(tokens_.index[j])); };
      tokens_.write_transposed_pairs(pairs_.data(), depth, [&](int64_t j, int64_t k) { return token(j) + k; });
      // Half a vector, where an odd number of vectors make up the width.
      for (int64_t k = depth - depth % lanes<S>; k < depth; ++k)
        for (int64_t j = 0; j < columns; ++j) pairs_[k * columns + j] = j < tokens_.count ? token(j)[k] : Pair{};
      for (int64_t k = 0; k < units_.count; ++k) frames_[k] = reinterpret_cast<const Pair*>(units_.frame(k));
    }
  }

  // The panel has zeros for tokens whose norm overflows.
  void score_rows(const ScoreTile<S>& scored) {
    rows_ = units_.score(scored, panel_.data());
    clear_overflowing(scored, [&](int64_t r) {
      return norm_overflows(units_.inverse[scored.first + r], rows_[r], utterance_.width);
    });
  }

  void score_pairs(const ScoreTile<S>& scored) {
    if constexpr (multiplies_pairs<T>) {
      const BlockGemm<Pair> gemm{
          .rows = frames_.data() + scored.first,
          .count = scored.count,
          .readable = units_.count - scored.first,
          .depth = units_.width() / 2,
          .panel = pairs_.data(),
          .columns = scored.columns,
          .out = scored.scores,
      };
      block_gemm(gemm, [&](int64_t row, int64_t visited) {
        for (int64_t r = scored.first + row; r < scored.first + row + visited; ++r)
          units_.inverse[r] = inverse_norm<S>(sum_of_squares(frames_[r], gemm.depth));
      });
      scale_scores(utterance_, tokens_, scored, [&](int64_t r) {
        const int64_t number = scored.first + r;
        return norm_overflows(units_.inverse[number], units_.frame(number), units_.width());
      });
    }
  }

  const Utterance<T>& utterance_;
  Units<T>& units_;
  const Tokens<T>& tokens_;
  const bool in_pairs_;
  const Buffer<S> panel_;
  const Buffer<Pair> pairs_;
  const Buffer<const Pair*> frames_;
  const Buffer<S> scores_;
  const S* const* rows_ = nullptr;
};

#if defined(PAD_HAS_TILES)

// The valid tokens' rows in parts, padded with zeros to whole tiles.
template <class T>
class TokenRows {
 public:
  static constexpr int parts = parts_of_element<T>;

  TokenRows(const Utterance<T>& utterance, const Tokens<T>& tokens)
      : count(round_up(tokens.count, tile_depth)),
        depth(round_up(utterance.width, tile_depth)),
        data_(parts * count * depth) {
    for (int64_t j = 0; j < tokens.count; ++j)
      split_row<parts>(utterance.token(tokens.index[j]), utterance.width, data_.data() + j * depth, count * depth);
    for (int part = 0; part < parts; ++part)
      fill_zero(data_.data() + (part * count + tokens.count) * depth, (count - tokens.count) * depth);
  }

  const bfloat16* row(int part, int64_t j) const { return data_.data() + (part * count + j) * depth; }
  void free() { data_.free(); }

  const int64_t count, depth;

 private:
  Buffer<bfloat16> data_;
};

// By tiles of AMX. Tokens as they come, scaled afterwards.
template <class T>
class TileScores {
 public:
  using S = OpMath<T>;
  static constexpr int frame_parts = parts_of_element<T>;
  static constexpr int pooled_parts = 2;  // means of frames are no bfloat16 numbers

  TileScores(const Utterance<T>& utterance, const Tokens<T>& tokens, Units<T>& units)
      : utterance_(utterance),
        units_(units),
        tokens_(tokens),
        width_(utterance.width),
        depth_(round_up(width_, tile_depth)),
        frame_stride_(utterance.speech_stride),
        copy_stride_(odd_stride<bfloat16>(depth_)),
        pooled_(utterance.start || width_ % lanes<S> != 0),
        in_place_(std::is_same_v<T, bfloat16> && !pooled_ && width_ % tile_depth == 0),
        panel_(frame_parts * depth_ / 2 * tokens.padded),
        copies_((pooled_ ? pooled_parts : frame_parts) * part_stride()),
        scores_(tile_units * tokens.padded),
        token_rows_(utterance, tokens) {
    for (int part = 0; part < frame_parts; ++part)
      tokens.write_transposed_pairs(
          panel_.data() + part * depth_ / 2 * tokens.padded, depth_ / 2,
          [&](int64_t j, int64_t k) { return reinterpret_cast<const Pair*>(token_rows_.row(part, j)) + k; });
  }

  // The scores of units [first, first + n), valid until the next call; their inverse norms with them. Below them zeros,
  // up to a multiple of 32.
  ScoreTile<S> tile(int64_t first, int64_t n) {
    const ScoreTile<S> scored{.first = first, .count = n, .columns = tokens_.padded, .scores = scores_.data()};
    rows_ = pooled_ ? units_.tile(first, n) : nullptr;
    if (pooled_) multiply<pooled_parts>(scored);
    else multiply<frame_parts>(scored);
    scale_scores(utterance_, tokens_, scored, [&](int64_t r) {
      const S inverse = units_.inverse[first + r];
      return pooled_ ? norm_overflows(inverse, rows_[r], width_)
                     : norm_overflows(inverse, units_.frame(first + r), width_);
    });
    return scored;
  }

  // Whether the latest tile's units have rows in the opmath type; the others are frames as they are.
  bool pooled() const { return pooled_; }
  const S* const* rows() const { return rows_; }
  const T* frame(int64_t number) const { return units_.frame(number); }

  // Whoever needs them no more may free them: `tile` does not.
  TokenRows<T>& token_rows() { return token_rows_; }

  // The rows of the latest tile in parts, up to a multiple of 32.
  const bfloat16* part_row(int part, int64_t r) const {
    return starts_[r / tile_side].data + part * part_stride() + r % tile_side * starts_[r / tile_side].row_stride;
  }

 private:
  static constexpr int64_t blocks = tile_units / tile_side;

  int64_t part_stride() const { return tile_units * copy_stride_; }

  template <int parts>
  void multiply(const ScoreTile<S>& scored) {
    for (int64_t row = 0; row < scored.count; row += block_side) {
      take<parts>(scored, row);
      take<parts>(scored, row + tile_side);
      const TileRowPair both{starts_[row / tile_side], starts_[row / tile_side + 1]};
      // Frames that are multiplied where they lie: the next block's are on their way meanwhile.
      const int64_t past = scored.first + row + block_side;
      const int64_t ahead = in_place_ ? maximum(0, minimum(block_side, units_.count - past)) : 0;
      for_each_tiles(scored.columns, [&](auto column_tiles, int64_t column) __attribute__((always_inline)) {
        multiply_tiles<parts, frame_parts, 2, decltype(column_tiles)::value>(
            both, {panel_.data() + column, scored.columns, depth_ / 2 * scored.columns}, depth_,
            {scored.scores + row * scored.columns + column, scored.columns, false}, [&](int64_t k) {
              if (column == 0)
                for (int64_t r = 0; r < ahead; ++r) __builtin_prefetch(units_.frame(past + r) + k, 0, 2);
            });
      });
    }
  }

  // Rows [row, row + 16) of a tile: their norms, and their parts where they are not in place.
  template <int parts>
  void take(const ScoreTile<S>& scored, int64_t row) {
    const int64_t first = scored.first + row, n = maximum(0, minimum(tile_side, scored.count - row));
    for (int64_t r = first; r < first + n; ++r)
      units_.inverse[r] = inverse_norm<S>(pooled_ ? sum_of_squares(rows_[r - scored.first], width_)
                                                  : sum_of_squares(units_.frame(r), width_));
    TileRows& start = starts_[row / tile_side];
    if (in_place_ && n == tile_side && units_.index[first + n - 1] - units_.index[first] == n - 1) {
      start = {reinterpret_cast<const bfloat16*>(units_.frame(first)), frame_stride_, part_stride()};
      return;
    }
    const TileCopies copies{copies_.data(), copy_stride_, part_stride()};
    if (!pooled_) {
      if constexpr (parts == frame_parts)
        start = copy_rows<parts>(copies, row, n, width_, [&](int64_t r) { return units_.frame(first + r); });
    } else if constexpr (parts == pooled_parts) {
      start = copy_rows<parts>(copies, row, n, width_, [&](int64_t r) { return rows_[row + r]; });
    }
  }

  const TileShapes shapes_;
  const Utterance<T>& utterance_;
  Units<T>& units_;
  const Tokens<T>& tokens_;
  const int64_t width_, depth_, frame_stride_, copy_stride_;
  const bool pooled_, in_place_;
  const Buffer<Pair> panel_;       // [parts, depth / 2, tokens]
  const Buffer<bfloat16> copies_;  // [parts, tile_units, copy_stride]
  const Buffer<S> scores_;
  TokenRows<T> token_rows_;
  TileRows starts_[blocks];
  const S* const* rows_ = nullptr;
};

#endif

// Calls action(scores) with the kind of scores that is faster.
template <class T, class Action>
void with_scores(const Utterance<T>& utterance, const Tokens<T>& tokens, Units<T>& units, const Action& action) {
#if defined(PAD_HAS_TILES)
  if constexpr (sizeof(T) == 2) {
    // Numbers of two parts cost more: they need a whole block of columns to gain.
    if (tokens.padded >= block_side || (std::is_same_v<T, bfloat16> && !utterance.start)) {
      TileScores<T> scores(utterance, tokens, units);
      return action(scores);
    }
  }
#endif
  VectorScores<T> scores(utterance, tokens, units);
  action(scores);
}

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
