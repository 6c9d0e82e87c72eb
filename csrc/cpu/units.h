// One utterance as the alignment sees it: its tokens, normalised, and its units, pooled as they are needed.
#pragma once
#include "alignment.h"
#include "microkernel.h"
#include "threads.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

constexpr int64_t tile_units = 64;
constexpr double norm_epsilon = 1e-8;

template <class S>
inline S inverse_norm(S squares) {
  const S norm = square_root(squares), epsilon = static_cast<S>(norm_epsilon);
  return S{1} / (norm < epsilon ? epsilon : norm);
}

// The clamped norm is a constant: the projection term of the cosine's derivative is absent.
template <class S>
inline bool norm_is_clamped(S inverse) { return inverse * static_cast<S>(norm_epsilon) >= S{1}; }

// The stride of rows of `width` in memory of our own: an odd number of cache lines, so that a column of many rows does
// not fall on the same few places of the cache.
template <class S>
inline int64_t odd_stride(int64_t width) {
  constexpr int64_t line = cache_line / static_cast<int64_t>(sizeof(S));
  return ((width + line - 1) / line | 1) * line;
}

template <class T>
struct Utterance {
  using S = Accumulator<T>;

  Utterance(const AlignmentArguments& arguments, int64_t batch)
      : width(arguments.width),
        padded_width(round_up(arguments.width, lanes<S>)),
        row_stride(odd_stride<S>(padded_width)),
        frames(arguments.frames),
        tokens(arguments.tokens),
        units(arguments.units),
        speech(static_cast<const T*>(arguments.speech.data) + batch * arguments.speech.batch_stride),
        text(static_cast<const T*>(arguments.text.data) + batch * arguments.text.batch_stride),
        speech_stride(arguments.speech.row_stride),
        text_stride(arguments.text.row_stride),
        prior(static_cast<const S*>(arguments.frame_prior) + batch * arguments.frames),
        token_mask(arguments.token_mask + batch * arguments.tokens),
        start(arguments.start ? arguments.start + batch * arguments.units : nullptr),
        end(arguments.end ? arguments.end + batch * arguments.units : nullptr) {}

  const T* frame(int64_t i) const { return speech + i * speech_stride; }
  const T* token(int64_t j) const { return text + j * text_stride; }
  int64_t first_frame(int64_t unit) const { return start ? maximum(0, minimum(start[unit], frames)) : unit; }
  int64_t last_frame(int64_t unit) const { return end ? maximum(0, minimum(end[unit], frames)) : unit + 1; }

  // Where a part of the frames begins: each has its share of those that take part.
  int64_t part_begin(int64_t part, int64_t parts) const {
    if (part == 0) return 0;
    if (part == parts) return frames;
    int64_t total = 0, seen = 0, frame = 0;
    for (int64_t i = 0; i < frames; ++i) total += prior[i] > 0;
    for (; seen < total * part / parts; ++frame) seen += prior[frame] > 0;
    return frame;
  }

  int64_t width, padded_width, row_stride, frames, tokens, units;
  const T *speech, *text;
  int64_t speech_stride, text_stride;
  const S* prior;
  const uint8_t* token_mask;
  const int32_t *start, *end;
};

// The tokens that take part, as unit vectors.
template <class T>
struct Tokens {
  using S = Accumulator<T>;

  explicit Tokens(const Utterance<T>& utterance)
      : index(utterance.tokens),
        inverse(round_up(utterance.tokens, maximum(lanes<S>, tile_rows))),
        width(utterance.width) {
    for (int64_t j = 0; j < utterance.tokens; ++j)
      if (utterance.token_mask[j]) {
        inverse[count] = inverse_norm<S>(sum_of_squares(utterance.token(j), width));
        index[count++] = static_cast<int32_t>(j);
      }
    padded = round_up(count, maximum(lanes<S>, tile_rows));
    for (int64_t j = count; j < padded; ++j) inverse[j] = 0;
  }

  // rows[j] = the j-th token, padded with zeros to [padded][padded_width], row_stride apart
  void write_rows(const Utterance<T>& utterance, S* rows) const {
    for (int64_t j = 0; j < padded; ++j) {
      S* row = rows + j * utterance.row_stride;
      const int64_t filled = j < count ? width : 0;
      if (j < count) scaled_copy(row, utterance.token(index[j]), inverse[j], width);
      for (int64_t d = filled; d < utterance.padded_width; ++d) row[d] = 0;
    }
  }

  // panel[d][j], padded with zeros to [width][padded]
  void write_panel(const Utterance<T>& utterance, S* panel) const {
    write_transposed(panel, width, [&](int64_t j, int64_t d) { return load(utterance.token(index[j]) + d) * inverse[j]; });
    for (int64_t d = width - width % lanes<S>; d < width; ++d)
      for (int64_t j = 0; j < padded; ++j)
        panel[d * padded + j] = j < count ? to_accumulator(utterance.token(index[j])[d]) * inverse[j] : S{0};
  }

  // panel[k][j] = element k of token j, padded with zeros to [padded], for the blocks of whole vectors that fit
  // `depth`; `read(j, k)` gives a vector of a token's elements from k on.
  template <class Read>
  void write_transposed(S* panel, int64_t depth, const Read& read) const {
    for (int64_t k = 0; k + lanes<S> <= depth; k += lanes<S>)
      for (int64_t j = 0; j < padded; j += lanes<S>) {
        Vector<S> rows[lanes<S>];
        for (int r = 0; r < lanes<S>; ++r) rows[r] = j + r < count ? read(j + r, k) : Vector<S>{};
        transpose<S>(rows);
        for (int r = 0; r < lanes<S>; ++r) store(panel + (k + r) * padded + j, rows[r]);
      }
  }

  int64_t count = 0, padded = 0;
  Buffer<int32_t> index;
  Buffer<S> inverse;
  int64_t width;
};

inline void all_units(int64_t units, int32_t* index) {
  for (int64_t k = 0; k < units; ++k) index[k] = static_cast<int32_t>(k);
}

// Insertion: units come from anchors in order of time and are nearly sorted.
template <class T>
void sort_by_first_frame(const Utterance<T>& utterance, int32_t* index, int64_t count) {
  for (int64_t c = 1; c < count; ++c) {
    const int32_t unit = index[c];
    const int64_t frame = utterance.first_frame(unit);
    int64_t place = c;
    for (; place > 0; --place) {
      const int32_t other = index[place - 1];
      const int64_t other_frame = utterance.first_frame(other);
      if (other_frame < frame || (other_frame == frame && other <= unit)) break;
      index[place] = other;
    }
    index[place] = unit;
  }
}

// The units that take part: where they lie and how much they weigh.
template <class T>
struct Units {
  using S = Accumulator<T>;

  enum class Order { by_index, by_first_frame };

  // `candidates`: unit indices in that order; those with prior 0 are left out.
  Units(const Utterance<T>& utterance, const int32_t* candidates, int64_t candidate_count, Order order)
      : index(candidate_count),
        prior(candidate_count),
        prior_sum(candidate_count),
        inverse(candidate_count),
        rows(candidate_count),
        utterance_(utterance),
        order_(order),
        // A frame can be read in place where it needs no conversion and no padding.
        in_place(std::is_same_v<T, S> && !utterance.start && utterance.width % lanes<S> == 0),
        storage_(in_place ? 0 : tile_units * utterance.row_stride),
        storage_rows_(tile_units),
        inners_(in_place ? 0 : tile_units),
        weighted_(in_place ? 0 : group_units * (utterance.start ? utterance.frames : 1)) {
    for (int64_t r = 0; r < tile_units; ++r) storage_rows_[r] = storage_.data() + r * utterance.row_stride;
    for (int64_t c = 0; c < candidate_count; ++c) {
      const int64_t first = utterance.first_frame(candidates[c]), last = utterance.last_frame(candidates[c]);
      S sum = 0;
      int64_t real = 0;
      for (int64_t i = first; i < last; ++i) {
        sum += utterance.prior[i] > 0 ? utterance.prior[i] : S{0};
        real += utterance.prior[i] >= 0;
      }
      if (!(sum > 0)) continue;
      index[count] = candidates[c];
      prior_sum[count] = sum;
      prior[count] = sum / static_cast<S>(real);
      if constexpr (std::is_same_v<T, S>) rows[count] = utterance.frame(first);
      ++count;
    }
  }

  // The weight of frame i in unit number `unit` of those that take part.
  S weight(int64_t unit, int64_t i) const {
    return utterance_.start ? utterance_.prior[i] / prior_sum[unit] : S{1};
  }

  // Spans of one anchor lie within one another: unit `number` of those that take part is the mean of an inner unit, the
  // next smaller one, and of the frames that it adds to that.
  struct Inner {
    int64_t number;  // -1: none
    int64_t first, last;
    S share;  // of the unit's prior that the inner one has
  };

  // The inner unit of row r of the latest `tile`; it is in the same tile, or there is none.
  const Inner& inner(int64_t r) const { return inners_[r]; }

  // Writes unit `number` of those that take part to `row`.
  void pool(int64_t number, S* row) const {
    const Weighted* past = weigh(number, without_inner(number), weighted_.data());
    pool(weighted_.data(), past, nullptr, S{0}, row, 0, utterance_.width);
  }

  // The rows of units [first, first + n), n <= tile_units; valid until the next call.
  const S* const* tile(int64_t first, int64_t n) {
    if (in_place) return rows.data() + first;
    // Neighbouring units share frames: a block of their columns stays in the cache for several units, while those that
    // the next units add are fetched. An inner unit is pooled before the one around it.
    constexpr int64_t block = 4096 / sizeof(S) / 4;
    const bool forward = order_ == Order::by_index;
    for (int64_t done = 0; done < n; done += group_units) {
      const int64_t size = minimum(group_units, n - done), begin = forward ? done : n - done - size;
      Weighted* frames[group_units + 1] = {weighted_.data()};  // of unit `begin + r`: [frames[r], frames[r + 1])
      for (int64_t r = 0; r < size; ++r) {
        inners_[begin + r] = find_inner(first + begin + r, first, n);
        frames[r + 1] = weigh(first + begin + r, inners_[begin + r], frames[r]);
      }
      const int64_t past = first + begin + size;
      const Frames now = frames_of(first + begin, past);
      const Frames next = forward ? frames_of(past, minimum(past + group_units, count))
                                  : frames_of(first + maximum(0, begin - group_units), first + begin);
      for (int64_t d = 0; d < utterance_.width; d += block) {
        const int64_t end = minimum(d + block, utterance_.width);
        for (int64_t i = next.begin; i < minimum(next.end, now.begin); ++i) fetch(utterance_.frame(i) + d, end - d);
        for (int64_t i = maximum(now.end, next.begin); i < next.end; ++i) fetch(utterance_.frame(i) + d, end - d);
        for (int64_t place = 0; place < size; ++place) {
          const int64_t r = forward ? place : size - 1 - place;
          const Inner& inner = inners_[begin + r];
          const S* inner_row = inner.number < 0 ? nullptr : storage_rows_[inner.number - first];
          pool(frames[r], frames[r + 1], inner_row, inner.share, storage_rows_[begin + r], d, end);
        }
      }
    }
    for (int64_t r = 0; r < n; ++r)
      for (int64_t d = utterance_.width; d < utterance_.padded_width; ++d)
        storage_[r * utterance_.row_stride + d] = 0;
    return storage_rows_.data();
  }

  int64_t width() const { return utterance_.width; }

  // How many rows from `first` on lie where `tile` would say, so that they can be fetched early.
  int64_t readable(int64_t first, int64_t n) const { return in_place ? count - first : n; }

  // scores[r][j] = row r . token j, and the inverse norms of the rows, for units [first, first + n).
  const S* const* score_tile(int64_t first, int64_t n, const S* panel, int64_t columns, S* scores) {
    const S* const* tile_rows_pointers = tile(first, n);
    multiply_rows(tile_rows_pointers, n, readable(first, n), utterance_.width, panel, columns, columns, scores,
                  columns, [&](int64_t row, int64_t visited) {
                    for (int64_t r = row; r < row + visited; ++r)
                      inverse[first + r] =
                          inverse_norm<S>(sum_of_squares(tile_rows_pointers[r], utterance_.width));
                  });
    return tile_rows_pointers;
  }

  int64_t count = 0;
  Buffer<int32_t> index;
  Buffer<S> prior, prior_sum, inverse;
  Buffer<const S*> rows;

 private:
  static constexpr int64_t group_units = 6;

  struct Frames {
    int64_t begin, end;
  };

  struct Weighted {
    const T* frame;
    S weight;
  };

  Inner without_inner(int64_t number) const {
    const int64_t last = utterance_.last_frame(index[number]);
    return {-1, last, last, S{0}};
  }

  // The inner unit of `number`, if it is in the same tile, units [first, first + n).
  Inner find_inner(int64_t number, int64_t first, int64_t n) const {
    const Inner none = without_inner(number);
    if (!utterance_.start) return none;
    const int64_t own_first = utterance_.first_frame(index[number]), own_last = none.last;
    const int64_t past = order_ == Order::by_index ? number : first + n;
    for (int64_t k = order_ == Order::by_index ? maximum(first, number - 1) : number + 1; k < past; ++k) {
      const int64_t begin = utterance_.first_frame(index[k]), end = utterance_.last_frame(index[k]);
      if (begin >= own_last) break;
      if (index[k] + 1 == index[number] && begin >= own_first && end <= own_last)
        return {k, begin, end, prior_sum[k] / prior_sum[number]};
    }
    return none;
  }

  // Writes the frames of a unit that lie outside its inner one, and their weights. Returns where they end.
  Weighted* weigh(int64_t number, const Inner& inner, Weighted* out) const {
    int64_t taken = 0;
    const auto add = [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i)
        if (utterance_.prior[i] > 0) out[taken++] = {utterance_.frame(i), weight(number, i)};
    };
    add(utterance_.first_frame(index[number]), inner.first);
    add(inner.last, utterance_.last_frame(index[number]));
    return out + taken;
  }

  // row = share * inner_row + the sum of weighted frames, columns [from, to).
  static void pool(const Weighted* begin, const Weighted* end, const S* inner_row, S share, S* row, int64_t from,
                   int64_t to) {
    constexpr int vectors = vector_registers == 32 ? 8 : 4;
    int64_t d = from;
    for (; d + vectors * lanes<S> <= to; d += vectors * lanes<S>) {
      Vector<S> sums[vectors] = {};
      if (inner_row)
        for (int v = 0; v < vectors; ++v) sums[v] = load(inner_row + d + v * lanes<S>) * share;
      for (const Weighted* i = begin; i < end; ++i)
        for (int v = 0; v < vectors; ++v) sums[v] += load(i->frame + d + v * lanes<S>) * i->weight;
      for (int v = 0; v < vectors; ++v) store(row + d + v * lanes<S>, sums[v]);
    }
    if (d == to) return;
    for (int64_t rest = d; rest < to; ++rest) row[rest] = inner_row ? inner_row[rest] * share : S{0};
    for (const Weighted* i = begin; i < end; ++i) scaled_add(row + d, i->frame + d, i->weight, to - d);
  }

  // What units [first, last) of those that take part cover.
  Frames frames_of(int64_t first, int64_t last) const {
    Frames covered{utterance_.frames, 0};
    for (int64_t unit = first; unit < last; ++unit) {
      covered.begin = minimum(covered.begin, utterance_.first_frame(index[unit]));
      covered.end = maximum(covered.end, utterance_.last_frame(index[unit]));
    }
    return covered;
  }

  static void fetch(const T* row, int64_t columns) {
    for (int64_t d = 0; d < columns; d += cache_line / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row + d, 0, 2);
  }

  const Utterance<T>& utterance_;
  const Order order_;

 public:
  const bool in_place;

 private:
  Buffer<S> storage_;
  Buffer<S*> storage_rows_;
  Buffer<Inner> inners_;
  Buffer<Weighted> weighted_;
};

// How many parts an utterance is worked on in, so that a small batch fills many threads. A matter of sizes alone:
// the order of the sums, and so every bit of the result, is the same for any number of threads.
inline int64_t parts_of_utterance(const AlignmentArguments& arguments) {
  constexpr int64_t wanted_tasks = 16, smallest_part = 96;
  const int64_t wanted = (wanted_tasks + maximum(1, arguments.batch) - 1) / maximum(1, arguments.batch);
  return maximum(1, minimum(wanted, arguments.frames / smallest_part));
}

// Calls task(batch, part) for every part of every utterance, the utterances with the most frames first, so that
// no thread is left alone with a long one at the end.
template <class S, class Task>
inline void for_each_part(const AlignmentArguments& arguments, int64_t parts, const Task& task) {
  Buffer<int64_t> order(arguments.batch), frames(arguments.batch);
  const S* prior = static_cast<const S*>(arguments.frame_prior);
  for (int64_t b = 0; b < arguments.batch; ++b) {
    frames[b] = 0;
    for (int64_t i = 0; i < arguments.frames; ++i) frames[b] += prior[b * arguments.frames + i] > 0;
    int64_t place = b;
    for (; place > 0 && frames[order[place - 1]] < frames[b]; --place) order[place] = order[place - 1];
    order[place] = b;
  }
  struct Context {
    const Task& task;
    const int64_t* order;
    int64_t parts;
  } context{task, order.data(), parts};
  parallel_for(
      arguments.batch * parts, arguments.threads,
      [](void* raw, int64_t i) {
        const Context& own = *static_cast<Context*>(raw);
        own.task(own.order[i / own.parts], i % own.parts);
      },
      &context);
}

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
