// The valid units of an utterance, pooled tile by tile as they are needed, and their scores with the tokens.
#pragma once
#include "cpu/block_gemm.h"
#include "cpu/buffer.h"
#include "cpu/rows.h"
#include "cpu/utterance.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

constexpr int64_t tile_units = 64;
// So much of the rows of neighboring frames stays in the first cache.
constexpr int64_t column_block_bytes = 512;

// scores[r][j] = unit (first + r) . token j / |token j|, for at most tile_units units.
template <class S>
struct ScoreTile {
  int64_t first, count;
  int64_t columns;  // the tokens, padded
  S* scores;        // [count, columns]
};

inline void all_units(int64_t units, int32_t* index) {
  for (int64_t k = 0; k < units; ++k) index[k] = static_cast<int32_t>(k);
}

// The order that units are given in.
enum class UnitOrder { by_index, by_start };

// Valid units are numbered in their order; `index` has a unit's index in the utterance.
template <class T>
struct Units {
  using S = OpMath<T>;

  // `candidates`: unit indices in that order; those with prior 0 are left out.
  Units(const Utterance<T>& utterance, const int32_t* candidates, int64_t candidate_count, UnitOrder order)
      : index(candidate_count),
        prior(candidate_count),
        total(candidate_count),
        inverse(candidate_count),
        rows(candidate_count),
        utterance_(utterance),
        order_(order),
        // A frame can be read in place where it needs no conversion and no padding.
        in_place_(std::is_same_v<T, S> && !utterance.start && utterance.width % lanes<S> == 0),
        storage_(in_place_ ? 0 : tile_units * utterance.row_stride),
        storage_rows_(tile_units),
        inners_(tile_units),
        weighted_(in_place_ ? 0 : group_units * (utterance.start ? utterance.frames : 1)),
        coming_(in_place_ ? 0 : maximum(tile_units, utterance.frames)) {
    for (int64_t r = 0; r < tile_units; ++r) {
      storage_rows_[r] = storage_.data() + r * utterance.row_stride;
      inners_[r] = {-1, {0, 0}, S{0}};
    }
    for (int64_t c = 0; c < candidate_count; ++c) {
      const int64_t start = utterance.unit_start(candidates[c]), end = utterance.unit_end(candidates[c]);
      S sum = 0;
      int64_t real = 0;
      for (int64_t i = start; i < end; ++i) {
        sum += utterance.frame_weights[i] > 0 ? utterance.frame_weights[i] : S{0};
        real += utterance.frame_weights[i] >= 0;
      }
      if (!(sum > 0)) continue;
      index[count] = candidates[c];
      total[count] = sum;
      prior[count] = sum / static_cast<S>(real);
      if constexpr (std::is_same_v<T, S>) rows[count] = utterance.frame(start);
      ++count;
    }
  }

  // The weight of frame i in a unit.
  S weight(int64_t number, int64_t i) const {
    return utterance_.start ? utterance_.frame_weights[i] / total[number] : S{1};
  }

  // Spans of one anchor lie within one another: a unit is the mean of an inner unit, the next smaller one, and of the
  // frames that it adds to that.
  struct Inner {
    int64_t number;  // -1: none
    Range frames;
    S share;  // of the unit's total that the inner one has
  };

  // The inner unit of row r of the latest `tile`; it is in the same tile, or there is none.
  const Inner& inner(int64_t r) const { return inners_[r]; }

  // Writes a unit to `row`.
  void pool(int64_t number, S* row) const {
    const Weighted* end = weigh(number, without_inner(number), weighted_.data());
    Fetching nothing(nullptr, 0, {0, 0});
    pool({weighted_.data(), end}, {nullptr, S{0}}, row, {0, utterance_.width}, nothing);
  }

  // The rows of units [first, first + n), n <= tile_units; valid until the next call.
  const S* const* tile(int64_t first, int64_t n) {
    if (in_place_) return rows.data() + first;
    if (!utterance_.start) {
      for (int64_t r = 0; r < n; ++r) scaled_copy(storage_rows_[r], frame(first + r), S{1}, utterance_.width);
      fill_columns(n);
      return storage_rows_.data();
    }
    // Neighboring units share frames: a block of their columns stays in the cache for several units, while those that
    // the next units add are fetched. An inner unit is pooled before the one around it.
    constexpr int64_t block = column_block_bytes / sizeof(S);
    const bool forward = order_ == UnitOrder::by_index;
    const Range units{first, first + n};
    for (int64_t done = 0; done < n; done += group_units) {
      const int64_t size = minimum(group_units, n - done), begin = forward ? done : n - done - size;
      Weighted* frames[group_units + 1] = {weighted_.data()};  // of unit `begin + r`: [frames[r], frames[r + 1])
      for (int64_t r = 0; r < size; ++r) {
        inners_[begin + r] = find_inner(first + begin + r, first, n);
        frames[r + 1] = weigh(first + begin + r, inners_[begin + r], frames[r]);
      }
      const Range now{first + begin, first + begin + size};
      const int64_t coming = list_frames(following(now, group_units, units), now, utterance_.frames);
      for (int64_t d = 0; d < utterance_.width; d += block) {
        const int64_t end = minimum(d + block, utterance_.width);
        Fetching fetching(coming_.data(), coming, {d, end});
        for (int64_t place = 0; place < size; ++place) {
          const int64_t r = forward ? place : size - 1 - place;
          const Inner& inner = inners_[begin + r];
          const S* inner_row = inner.number < 0 ? nullptr : storage_rows_[inner.number - first];
          pool({frames[r], frames[r + 1]}, {inner_row, inner.share}, storage_rows_[begin + r], {d, end}, fetching);
        }
        while (!fetching.ended()) fetching.some();
      }
    }
    fill_columns(n);
    return storage_rows_.data();
  }

  // Fills the tile's scores, and the inverse norms of its units. `panel`: of Tokens. Returns the rows of the units.
  const S* const* score(const ScoreTile<S>& scored, const S* panel) {
    const S* const* unit_rows = tile(scored.first, scored.count);
    // Meanwhile frames are fetched: of the next tile's first spans, or those that are going to be widened.
    const Range done{scored.first, scored.first + scored.count};
    int64_t later = 0;
    if (utterance_.start) later = list_frames(following(done, group_units, {0, count}), done, scored.count);
    else if (!in_place_)
      for (later = 0; later < minimum(scored.count, count - done.end); ++later)
        coming_[later] = frame(done.end + later);
    const BlockGemm<S> gemm{
        .rows = unit_rows,
        .count = scored.count,
        .readable = in_place_ ? count - scored.first : scored.count,
        .later = {coming_.data(), later, sizeof(T)},
        .depth = utterance_.width,
        .panel = panel,
        .columns = scored.columns,
        .out = scored.scores,
    };
    block_gemm(gemm, [&](int64_t row, int64_t visited) {
      for (int64_t r = row; r < row + visited; ++r)
        inverse[scored.first + r] = inverse_norm<S>(sum_of_squares(unit_rows[r], utterance_.width));
    });
    return unit_rows;
  }

  int64_t width() const { return utterance_.width; }

  // The frame that a unit is, where units are frames.
  const T* frame(int64_t number) const { return utterance_.frame(index[number]); }

  int64_t count = 0;
  Buffer<int32_t> index;
  Buffer<S> prior, total;  // of the softmax: the mean weight of the unit's real frames; the sum of the weights
  Buffer<S> inverse;       // of its norm, once it was scored
  Buffer<const S*> rows;

 private:
  static constexpr int64_t group_units = 12;  // of so many, a block of columns stays in the cache

  struct Weighted {
    const T* frame;
    S weight;
  };

  struct WeightedFrames {
    const Weighted *begin, *end;
  };

  struct InnerRow {
    const S* row;  // null: none
    S share;
  };

  // Zeros beyond the width, in so many rows.
  void fill_columns(int64_t n) const {
    for (int64_t r = 0; r < n; ++r)
      for (int64_t d = utterance_.width; d < utterance_.padded_width; ++d) storage_rows_[r][d] = 0;
  }

  Inner without_inner(int64_t number) const {
    const int64_t end = utterance_.unit_end(index[number]);
    return {-1, {end, end}, S{0}};
  }

  // The inner unit of `number`, if it is in the same tile, units [first, first + n).
  Inner find_inner(int64_t number, int64_t first, int64_t n) const {
    const Inner none = without_inner(number);
    if (!utterance_.start) return none;
    const int64_t own_start = utterance_.unit_start(index[number]), own_end = none.frames.end;
    const int64_t past = order_ == UnitOrder::by_index ? number : first + n;
    for (int64_t k = order_ == UnitOrder::by_index ? maximum(first, number - 1) : number + 1; k < past; ++k) {
      const Range frames{utterance_.unit_start(index[k]), utterance_.unit_end(index[k])};
      if (frames.begin >= own_end) break;
      if (index[k] + 1 == index[number] && frames.begin >= own_start && frames.end <= own_end)
        return {k, frames, total[k] / total[number]};
    }
    return none;
  }

  // Writes the frames of a unit that lie outside its inner one, and their weights. Returns where they end.
  Weighted* weigh(int64_t number, const Inner& inner, Weighted* out) const {
    int64_t taken = 0;
    const auto add = [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i)
        if (utterance_.frame_weights[i] > 0) out[taken++] = {utterance_.frame(i), weight(number, i)};
    };
    add(utterance_.unit_start(index[number]), inner.frames.begin);
    add(inner.frames.end, utterance_.unit_end(index[number]));
    return out + taken;
  }

  // Some columns of rows, fetched a few cache lines at a time while others are summed: all at once they would keep the
  // sums waiting.
  class Fetching {
   public:
    Fetching(const void* const* rows, int64_t count, Range columns)
        : row_(rows),
          past_(rows + count),
          bytes_{columns.begin * element_bytes, columns.end * element_bytes},
          byte_(bytes_.begin) {}

    bool ended() const { return row_ == past_; }

    void some() {
      constexpr int64_t lines = 4;
      if (ended()) return;
      for (int64_t k = 0; k < lines; ++k)
        __builtin_prefetch(static_cast<const char*>(*row_) + byte_ + k * cache_line, 0, 2);
      byte_ += lines * cache_line;
      if (byte_ < bytes_.end) return;
      byte_ = bytes_.begin;
      ++row_;
    }

   private:
    static constexpr int64_t element_bytes = sizeof(T);
    const void *const *row_, *const *past_;
    Range bytes_;
    int64_t byte_;
  };

  // row = the inner row's share + the sum of weighted frames, in some columns.
  static void pool(WeightedFrames frames, InnerRow inner, S* row, Range columns, Fetching& fetching) {
    constexpr int vectors = vector_registers == 32 ? 8 : 4;
    int64_t d = columns.begin;
    for (; d + vectors * lanes<S> <= columns.end; d += vectors * lanes<S>) {
      Vector<S> sums[vectors] = {};
      if (inner.row)
        for (int v = 0; v < vectors; ++v) sums[v] = load(inner.row + d + v * lanes<S>) * inner.share;
      for (const Weighted* i = frames.begin; i < frames.end; ++i) {
        for (int v = 0; v < vectors; ++v) sums[v] += load(i->frame + d + v * lanes<S>) * i->weight;
        fetching.some();
      }
      for (int v = 0; v < vectors; ++v) store(row + d + v * lanes<S>, sums[v]);
    }
    if (d == columns.end) return;
    for (int64_t rest = d; rest < columns.end; ++rest) row[rest] = inner.row ? inner.row[rest] * inner.share : S{0};
    for (const Weighted* i = frames.begin; i < frames.end; ++i)
      scaled_add(row + d, i->frame + d, i->weight, columns.end - d);
  }

  // The units that come after `done` in their order, at most so many, of those in `all`.
  Range following(Range done, int64_t most, Range all) const {
    return order_ == UnitOrder::by_index ? Range{done.end, minimum(done.end + most, all.end)}
                                         : Range{maximum(done.begin - most, all.begin), done.begin};
  }

  // Lists the frames of `units` that `others` do not cover as those to be fetched, at most so many. Returns how many.
  int64_t list_frames(Range units, Range others, int64_t most) {
    const Range wanted = covered(units), without = covered(others);
    int64_t listed = 0;
    for (int64_t i = wanted.begin; i < wanted.end && listed < most; ++i)
      if ((i < without.begin || i >= without.end) && utterance_.frame_weights[i] > 0)
        coming_[listed++] = utterance_.frame(i);
    return listed;
  }

  Range covered(Range units) const {
    Range frames{utterance_.frames, 0};
    for (int64_t number = units.begin; number < units.end; ++number) {
      frames.begin = minimum(frames.begin, utterance_.unit_start(index[number]));
      frames.end = maximum(frames.end, utterance_.unit_end(index[number]));
    }
    return frames;
  }

  const Utterance<T>& utterance_;
  const UnitOrder order_;
  const bool in_place_;
  Buffer<S> storage_;
  Buffer<S*> storage_rows_;
  Buffer<Inner> inners_;
  Buffer<Weighted> weighted_;
  Buffer<const void*> coming_;  // frames to be fetched
};

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
