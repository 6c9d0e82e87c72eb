// The speech gradient of a part of an utterance's frames, written once and in order of time.
#pragma once
#include "cpu/stream.h"
#include "cpu/units.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// Units arrive in order of their start. A frame's gradient is summed in the opmath type in a ring of the frames that
// later units can still reach, and leaves it when none can.
template <class T>
class SpeechGradient {
 public:
  using S = OpMath<T>;

  // Where the gradient goes.
  struct Destination {
    T* rows;        // [frames, width]
    bool streamed;  // past the caches
  };

  // `window`: the most frames that are open at a time; 0 where every unit is one frame.
  SpeechGradient(Destination destination, const Utterance<T>& utterance, int64_t window, Range part)
      : destination_(destination),
        utterance_(utterance),
        window_(window),
        ring_(window * utterance.width),
        has_gradient_(window),
        part_(part),
        closed_(part.begin),
        open_(part.begin) {}

  // The row of a unit of one frame, to be written by the caller.
  T* row(int64_t frame) {
    close(frame);
    closed_ = frame + 1;
    return destination_.rows + frame * utterance_.width;
  }

  // Spreads a unit's gradient over its frames within the part, but for the inner unit's, which that one sees to.
  void add(const Units<T>& units, int64_t number, const S* gradient, Range inner) {
    const int64_t first = maximum(part_.begin, utterance_.unit_start(units.index[number]));
    const int64_t last = minimum(part_.end, utterance_.unit_end(units.index[number]));
    if (!utterance_.start) {
      write_row(row(first), gradient, S{1}, utterance_.width, destination_.streamed);
      return;
    }
    close(first);
    open_ = maximum(open_, first);
    for (; open_ < last; ++open_) has_gradient_[open_ % window_] = 0;
    const auto spread = [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        if (!(utterance_.prior[i] > 0)) continue;
        uint8_t& has_gradient = has_gradient_[i % window_];
        if (has_gradient) scaled_add(ring_row(i), gradient, units.weight(number, i), utterance_.width);
        else scaled_copy(ring_row(i), gradient, units.weight(number, i), utterance_.width);
        has_gradient = 1;
      }
    };
    spread(first, minimum(last, inner.begin));
    spread(maximum(first, inner.end), last);
  }

  // The same for all of its frames.
  void add(const Units<T>& units, int64_t number, const S* gradient) {
    add(units, number, gradient, {part_.end, part_.end});
  }

  void finish() {
    close(part_.end);
    if (destination_.streamed) end_stream();
  }

 private:
  S* ring_row(int64_t frame) const { return ring_.data() + frame % window_ * utterance_.width; }

  // Writes the frames before `frame`: from the ring where a unit has left something, else zero.
  void close(int64_t frame) {
    const auto [rows, streamed] = destination_;
    for (; closed_ < minimum(open_, frame); ++closed_) {
      T* row = rows + closed_ * utterance_.width;
      if (has_gradient_[closed_ % window_]) write_row(row, ring_row(closed_), S{1}, utterance_.width, streamed);
      else write_zero(row, utterance_.width, streamed);
    }
    if (closed_ < frame) {
      write_zero(rows + closed_ * utterance_.width, (frame - closed_) * utterance_.width, streamed);
      closed_ = frame;
    }
  }

  const Destination destination_;
  const Utterance<T>& utterance_;
  int64_t window_;
  Buffer<S> ring_;
  Buffer<uint8_t> has_gradient_;  // of each row of the ring
  Range part_;
  int64_t closed_, open_;
};

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
