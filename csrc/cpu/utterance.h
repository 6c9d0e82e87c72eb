// One utterance as the alignment sees it: where its frames, tokens and units lie.
#pragma once
#include "alignment.h"
#include "cpu/vector.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

template <class S>
inline S inverse_norm(S squares) {
  const S norm = square_root(squares), epsilon = static_cast<S>(norm_epsilon);
  return S{1} / (norm < epsilon ? epsilon : norm);
}

// The clamped norm is a constant: the projection term of the cosine's derivative is absent.
template <class S>
inline bool norm_is_clamped(S inverse) {
  return inverse * static_cast<S>(norm_epsilon) >= S{1};
}

// Whether the norm of a finite row is infinite.
template <class T>
inline bool norm_overflows(OpMath<T> inverse, const T* row, int64_t width) {
  if (inverse != 0) return false;
  for (int64_t i = 0; i < width; ++i)
    if (to_opmath(row[i]) * 0 != 0) return false;
  return true;
}

// The stride of rows of `width` in memory of our own: an odd number of cache lines, so that a column of many rows does
// not fall on the same few places of the cache.
template <class S>
inline int64_t odd_stride(int64_t width) {
  constexpr int64_t line = cache_line / static_cast<int64_t>(sizeof(S));
  return ((width + line - 1) / line | 1) * line;
}

// From `begin` up to, not including, `end`.
struct Range {
  int64_t begin, end;
};

template <class T>
struct Utterance {
  using S = OpMath<T>;

  Utterance(const AlignmentArguments& arguments, int64_t batch)
      : width(arguments.width),
        padded_width(round_up(arguments.width, lanes<S>)),
        row_stride(row_stride_of(arguments.width)),
        frames(arguments.frames),
        tokens(arguments.tokens),
        units(arguments.units),
        speech(static_cast<const T*>(arguments.speech.data) + batch * arguments.speech.batch_stride),
        text(static_cast<const T*>(arguments.text.data) + batch * arguments.text.batch_stride),
        speech_stride(arguments.speech.row_stride),
        text_stride(arguments.text.row_stride),
        frame_weights(static_cast<const S*>(arguments.frame_weights) + batch * arguments.frames),
        token_mask(arguments.token_mask + batch * arguments.tokens),
        start(arguments.start ? arguments.start + batch * arguments.units : nullptr),
        end(arguments.end ? arguments.end + batch * arguments.units : nullptr) {}

  const T* frame(int64_t i) const { return speech + i * speech_stride; }
  const T* token(int64_t j) const { return text + j * text_stride; }

  // The frames of a unit: [unit_start, unit_end).
  int64_t unit_start(int64_t unit) const { return start ? maximum(0, minimum(start[unit], frames)) : unit; }
  int64_t unit_end(int64_t unit) const { return end ? maximum(0, minimum(end[unit], frames)) : unit + 1; }

  // Of a row of `width` in memory of our own.
  static int64_t row_stride_of(int64_t width) { return odd_stride<S>(round_up(width, lanes<S>)); }

  // The frames of a part: each part has its share of the valid ones.
  Range part_frames(int64_t part, int64_t parts) const {
    return {part_begin(part, parts), part_begin(part + 1, parts)};
  }

  int64_t width, padded_width, row_stride, frames, tokens, units;
  const T *speech, *text;
  int64_t speech_stride, text_stride;
  const S* frame_weights;
  const uint8_t* token_mask;
  const int32_t *start, *end;

 private:
  int64_t part_begin(int64_t part, int64_t parts) const {
    if (part == 0) return 0;
    if (part == parts) return frames;
    int64_t total = 0, seen = 0, frame = 0;
    for (int64_t i = 0; i < frames; ++i) total += frame_weights[i] > 0;
    for (; seen < total * part / parts; ++frame) seen += frame_weights[frame] > 0;
    return frame;
  }
};

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
