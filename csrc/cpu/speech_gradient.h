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
        had_gradient_(window),
        part_(part),
        closed_(part.begin),
        open_(part.begin) {}

  // The row of a unit of one frame, to be written by the caller.
  T* row(int64_t frame) {
    close(frame, all_columns());
    closed_ = frame + 1;
    return destination_.rows + frame * utterance_.width;
  }

  // Spreads the gradients of units [first, first + n), a tile of them, over their frames within the part, but for those
  // of an inner unit, which that one sees to.
  void add_tile(const Units<T>& units, int64_t first, int64_t n, const S* const* gradients) {
    if (!utterance_.start) {
      for (int64_t r = 0; r < n; ++r) add_frame(units, first + r, gradients[r]);
      return;
    }
    constexpr int64_t block = column_block_bytes / sizeof(S);
    const int64_t closed = closed_, open = open_;
    std::memcpy(had_gradient_.data(), has_gradient_.data(), static_cast<size_t>(window_));
    for (int64_t d = 0; d < utterance_.width; d += block) {
      closed_ = closed;
      open_ = open;
      std::memcpy(has_gradient_.data(), had_gradient_.data(), static_cast<size_t>(window_));
      for (int64_t r = 0; r < n; ++r)
        add_columns(units, first + r, gradients[r], units.inner(r).frames, {d, minimum(d + block, utterance_.width)});
    }
  }

  // The same of one unit, over all of its frames.
  void add(const Units<T>& units, int64_t number, const S* gradient) {
    if (utterance_.start) add_columns(units, number, gradient, {part_.end, part_.end}, all_columns());
    else add_frame(units, number, gradient);
  }

  void finish() {
    close(part_.end, all_columns());
    if (destination_.streamed) end_stream();
  }

 private:
  Range all_columns() const { return {0, utterance_.width}; }

  S* ring_row(int64_t frame) const { return ring_.data() + frame % window_ * utterance_.width; }

  void add_frame(const Units<T>& units, int64_t number, const S* gradient) {
    const int64_t frame = utterance_.unit_start(units.index[number]);
    write_row(row(frame), gradient, S{1}, utterance_.width, destination_.streamed);
  }

  void add_columns(const Units<T>& units, int64_t number, const S* gradient, Range inner, Range columns) {
    const int64_t first = maximum(part_.begin, utterance_.unit_start(units.index[number]));
    const int64_t last = minimum(part_.end, utterance_.unit_end(units.index[number]));
    close(first, columns);
    open_ = maximum(open_, first);
    for (; open_ < last; ++open_) has_gradient_[open_ % window_] = 0;
    const int64_t d = columns.begin, width = columns.end - d;
    const auto spread = [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        if (!(utterance_.frame_weights[i] > 0)) continue;
        uint8_t& has_gradient = has_gradient_[i % window_];
        if (has_gradient) scaled_add(ring_row(i) + d, gradient + d, units.weight(number, i), width);
        else scaled_copy(ring_row(i) + d, gradient + d, units.weight(number, i), width);
        has_gradient = 1;
      }
    };
    spread(first, minimum(last, inner.begin));
    spread(maximum(first, inner.end), last);
  }

  // Writes the frames before `frame`: from the ring where a unit has left something, else zero.
  void close(int64_t frame, Range columns) {
    const auto [rows, streamed] = destination_;
    const int64_t d = columns.begin, width = columns.end - d;
    for (; closed_ < minimum(open_, frame); ++closed_) {
      T* row = rows + closed_ * utterance_.width + d;
      if (has_gradient_[closed_ % window_]) write_row(row, ring_row(closed_) + d, S{1}, width, streamed);
      else write_zero(row, width, streamed);
    }
    if (closed_ < frame) {
      // Whole rows, with the first of their columns.
      if (d == 0) write_zero(rows + closed_ * utterance_.width, (frame - closed_) * utterance_.width, streamed);
      closed_ = frame;
    }
  }

  const Destination destination_;
  const Utterance<T>& utterance_;
  int64_t window_;
  Buffer<S> ring_;
  Buffer<uint8_t> has_gradient_, had_gradient_;  // of each row of the ring: whether; before a tile
  Range part_;
  int64_t closed_, open_;
};

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
