// The scores of the keys with a block of queries, as the significance prior needs them.
#pragma once
#include "cpu/buffer.h"
#include "cpu/rows.h"
#include "cpu/tiles.h"
#include "significance.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// A block of queries stands in the columns of one register tile; the keys stream past it, so that the softmax of a
// query runs down a column, a whole vector of queries at a time.
template <class S> constexpr int64_t block_queries = tile_vectors * lanes<S>;
constexpr int64_t block_keys = 64;

// One head of one utterance.
template <class T>
struct Head {
  const T* query_row(int64_t i) const { return query + positions[i] * query_stride; }
  const T* key_row(int64_t i) const { return key + positions[i] * key_stride; }

  const T *query, *key;
  int64_t query_stride, key_stride;  // of rows
  const int64_t* positions;          // [count] the valid ones
  int64_t count;
};

// By vectors. bfloat16 queries and keys are multiplied as they lie, in pairs, where the processor can.
template <class T>
class VectorKeyScores {
 public:
  using S = OpMath<T>;

  // `keys`: so many are scored at a time, at most.
  VectorKeyScores(const SignificanceArguments& arguments, int64_t keys)
      : width_(arguments.width),
        scale_(static_cast<S>(arguments.scale)),
        in_pairs_(multiplies_pairs<T> && width_ % 2 == 0),
        panel_(in_pairs_ ? 0 : width_ * queries),
        pairs_(in_pairs_ ? width_ / 2 * queries : 0),
        keys_(sizeof(T) == sizeof(S) || in_pairs_ ? 0 : block_keys * width_),
        scores_(keys * queries) {}

  // Takes `count` queries of the head, from `first` on.
  void take_queries(const Head<T>& head, int64_t first, int64_t count) const {
    for (int64_t q = 0; q < queries; ++q) {
      const T* row = head.query_row(first + (q < count ? q : 0));
      if (in_pairs_) {
        const Pair* pairs = reinterpret_cast<const Pair*>(row);
        for (int64_t k = 0; k < width_ / 2; ++k) pairs_[k * queries + q] = q < count ? pairs[k] : Pair{};
      } else {
        for (int64_t i = 0; i < width_; ++i) panel_[i * queries + q] = q < count ? to_opmath(row[i]) * scale_ : S(0);
      }
    }
  }

  // The scores [count, queries] of keys [first, first + count) with those queries, valid until the next call. Not
  // inlined, so that the sums have the registers to themselves.
  __attribute__((noinline)) S* score(const Head<T>& head, int64_t first, int64_t count) const {
    for (int64_t begin = 0; begin < count; begin += block_keys) {
      const int64_t rows = minimum(block_keys, count - begin);
      S* scores = scores_.data() + begin * queries;
      if (in_pairs_) score_pairs(head, first + begin, rows, scores);
      else score_rows(head, first + begin, rows, scores);
    }
    return scores_.data();
  }

 private:
  static constexpr int64_t queries = block_queries<S>;

  void score_rows(const Head<T>& head, int64_t first, int64_t count, S* scores) const {
    const S* pointers[block_keys];
    for (int64_t r = 0; r < count; ++r) {
      const T* row = head.key_row(first + r);
      if constexpr (sizeof(T) == sizeof(S)) {
        pointers[r] = row;
      } else {
        pointers[r] = keys_.data() + r * width_;
        scaled_copy(keys_.data() + r * width_, row, S(1), width_);
      }
    }
    multiply(pointers, count, width_, panel_.data(), scores);
  }

  void score_pairs(const Head<T>& head, int64_t first, int64_t count, S* scores) const {
    if constexpr (multiplies_pairs<T>) {
      const Pair* pointers[block_keys];
      for (int64_t r = 0; r < count; ++r) pointers[r] = reinterpret_cast<const Pair*>(head.key_row(first + r));
      multiply(pointers, count, width_ / 2, pairs_.data(), scores);
      for (int64_t i = 0; i < count * queries; i += lanes<S>) store(scores + i, load(scores + i) * scale_);
    }
  }

  template <class E>
  static void multiply(const E* const* rows, int64_t count, int64_t depth, const E* panel, S* scores) {
    const BlockGemm<E> gemm{
        .rows = rows,
        .count = count,
        .readable = count,
        .depth = depth,
        .panel = panel,
        .columns = queries,
        .out = scores,
    };
    block_gemm(gemm, [](int64_t, int64_t) {});
  }

  const int64_t width_;
  const S scale_;
  const bool in_pairs_;
  const Buffer<S> panel_;     // [width, queries] the scaled queries
  const Buffer<Pair> pairs_;  // [width / 2, queries] the queries as they are
  const Buffer<S> keys_;      // [block_keys, width] for elements that need widening
  const Buffer<S> scores_;
};

#if defined(PAD_HAS_TILES)

// By tiles of AMX. Queries and keys as they come, scaled afterwards.
template <class T>
class TileKeyScores {
 public:
  using S = OpMath<T>;

  TileKeyScores(const SignificanceArguments& arguments, int64_t keys)
      : arguments_(arguments),
        depth_(round_up(arguments.width, tile_depth)),
        panel_(parts * depth_ / 2 * queries),
        query_(parts * depth_),
        keys_(parts * block_side * depth_),
        scores_(round_up(keys, block_side) * queries) {}

  void take_queries(const Head<T>& head, int64_t first, int64_t count) const {
    for (int64_t q = 0; q < queries; ++q) {
      if (q < count) split_row<parts>(head.query_row(first + q), arguments_.width, query_.data(), depth_);
      else fill_zero(query_.data(), parts * depth_);
      for (int64_t k = 0; k < parts * depth_ / 2; ++k)
        panel_[k * queries + q] = reinterpret_cast<const Pair*>(query_.data())[k];
    }
  }

  S* score(const Head<T>& head, int64_t first, int64_t count) const {
    for (int64_t begin = 0; begin < count; begin += block_side) {
      const int64_t rows = minimum(block_side, count - begin);
      const TileRowPair both{take_keys(head, first + begin, minimum(tile_side, rows), 0),
                             take_keys(head, first + begin + tile_side, maximum(0, rows - tile_side), tile_side)};
      S* scores = scores_.data() + begin * queries;
      for_each_tiles(queries, [&](auto tiles, int64_t column) __attribute__((always_inline)) {
        multiply_tiles<parts, parts, 2, decltype(tiles)::value>(
            both, {panel_.data() + column, queries, depth_ / 2 * queries}, depth_, {scores + column, queries, false},
            [](int64_t) {});
      });
      for (int64_t i = 0; i < rows * queries; i += lanes<S>)
        store(scores + i, load(scores + i) * static_cast<S>(arguments_.scale));
    }
    return scores_.data();
  }

 private:
  static constexpr int parts = parts_of_element<T>;
  static constexpr int64_t queries = block_queries<S>;

  // 16 keys from `first` on, of which `count` exist: where they lie, or in rows [row, row + 16) of our own.
  TileRows take_keys(const Head<T>& head, int64_t first, int64_t count, int64_t row) const {
    const int64_t* positions = head.positions + first;
    if constexpr (std::is_same_v<T, bfloat16>)
      if (depth_ == arguments_.width && count == tile_side && positions[count - 1] - positions[0] == count - 1)
        return {head.key_row(first), head.key_stride, 0};
    return copy_rows<parts>({keys_.data(), depth_, block_side * depth_}, row, count, arguments_.width,
                            [&](int64_t r) { return head.key_row(first + r); });
  }

  const TileShapes shapes_;
  const SignificanceArguments& arguments_;
  const int64_t depth_;
  const Buffer<Pair> panel_;      // [parts, depth / 2, queries]
  const Buffer<bfloat16> query_;  // [parts, depth]
  const Buffer<bfloat16> keys_;   // [parts, block_side, depth]
  const Buffer<S> scores_;
};

template <class T>
using KeyScores = std::conditional_t<sizeof(T) == 2, TileKeyScores<T>, VectorKeyScores<T>>;

#else

template <class T> using KeyScores = VectorKeyScores<T>;

#endif

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
