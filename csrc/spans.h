// Spans of several widths around anchor frames: anchor-based adaptive span aggregation.
#pragma once
#include "device.h"
#include "tensor.h"

namespace pad {

enum class Anchors : int { topk = 0, peaks = 1, stride = 2 };

struct SpanArguments {
  int64_t batch, frames, max_anchors, scale_count;
  const void* frame_weights;  // opmath [batch, frames]: float, or double where is_double
  bool is_double;
  const uint8_t* frame_mask;   // [batch, frames]; on the CPU null: all are valid
  const int64_t* num_tokens;   // [batch]
  const int64_t* num_anchors;  // [batch]
  const double* scales;        // [scale_count]
  const double* xi;            // [batch] frames per token, or null: real frames over real tokens
  Anchors anchors;
  int32_t* start;  // [batch, max_anchors * scale_count]
  int32_t* end;
  int threads;
};

void select_spans(const SpanArguments& arguments);

struct SpanBounds {
  int64_t count;
  const int32_t* start;  // [count]
  const int32_t* end;
};

// Whether 0 <= start <= end <= frames holds for all of them; on the CPU.
bool spans_fit(const SpanBounds& spans, int64_t frames);

// Sorts units by their start, clipped to the frames, then by index; `start` null: the units are frames. On the CPU.
void sort_by_start(const int32_t* start, int64_t frames, int32_t* units, int64_t count);

// On the GPU; scales is read on the host.
namespace cuda {
int64_t select_spans_workspace(const SpanArguments& arguments);
void select_spans(const SpanArguments& arguments, const ExecutionContext& context);
}  // namespace cuda

}  // namespace pad
