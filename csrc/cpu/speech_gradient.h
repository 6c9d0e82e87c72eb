// The speech gradient of a part of an utterance's frames, written once and in order of time.
#pragma once
#include "units.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// Units arrive in order of their first frame. A frame's gradient is summed in the accumulator type in a
// ring of the frames that later units can still reach, and leaves it when none can.
template <class T>
class SpeechGradient {
 public:
  using S = Accumulator<T>;

  // `window`: the most frames that are open at a time; 0 where every unit is one frame.
  SpeechGradient(T* rows, bool streamed, const Utterance<T>& utterance, int64_t window, int64_t begin, int64_t end)
      : rows_(rows),
        streamed_(streamed),
        utterance_(utterance),
        window_(window),
        ring_(window * utterance.width),
        begin_(begin),
        end_(end),
        closed_(begin),
        open_(begin) {}

  // The row of a unit of one frame, to be written by the caller.
  T* row(int64_t frame) {
    close(frame);
    closed_ = frame + 1;
    return rows_ + frame * utterance_.width;
  }

  // Spreads a unit's gradient over its frames within the part, but for [inner_first, inner_last), which the inner unit
  // sees to. `unit` counts the units that take part.
  void add(const Units<T>& units, int64_t unit, const S* gradient, int64_t inner_first, int64_t inner_last) {
    const int64_t first = maximum(begin_, utterance_.first_frame(units.index[unit]));
    const int64_t last = minimum(end_, utterance_.last_frame(units.index[unit]));
    if (!utterance_.start) {
      write_row(row(first), gradient, S{1}, utterance_.width, streamed_);
      return;
    }
    close(first);
    open_ = maximum(open_, first);
    for (; open_ < last; ++open_) fill_zero(ring_row(open_), utterance_.width);
    const auto spread = [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i)
        if (utterance_.prior[i] > 0) scaled_add(ring_row(i), gradient, units.weight(unit, i), utterance_.width);
    };
    spread(first, minimum(last, inner_first));
    spread(maximum(first, inner_last), last);
  }

  // The same for all of its frames.
  void add(const Units<T>& units, int64_t unit, const S* gradient) { add(units, unit, gradient, end_, end_); }

  void finish() {
    close(end_);
    if (streamed_) end_stream();
  }

 private:
  S* ring_row(int64_t frame) const { return ring_.data() + frame % window_ * utterance_.width; }

  // Writes the frames before `frame`: from the ring where a unit has opened them, else zero.
  void close(int64_t frame) {
    for (; closed_ < minimum(open_, frame); ++closed_)
      write_row(rows_ + closed_ * utterance_.width, ring_row(closed_), S{1}, utterance_.width, streamed_);
    if (closed_ < frame) {
      write_zero(rows_ + closed_ * utterance_.width, (frame - closed_) * utterance_.width, streamed_);
      closed_ = frame;
    }
  }

  T* rows_;
  bool streamed_;
  const Utterance<T>& utterance_;
  int64_t window_;
  Buffer<S> ring_;
  int64_t begin_, end_;
  int64_t closed_, open_;
};

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
