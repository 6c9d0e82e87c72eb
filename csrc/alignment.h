// Prior-weighted cosine alignment of text tokens with speech units, forward and backward.
#pragma once
#include "device.h"
#include "tensor.h"

namespace pad {

// In cosine = u.t / (max(|u|, eps) max(|t|, eps)).
constexpr double norm_epsilon = 1e-8;

// "Opmath" below is float, or double where the elements are float64.
struct AlignmentArguments {
  int64_t batch, frames, tokens, units, width;
  Element element;
  Rows speech;                // [batch, frames, width]
  Rows text;                  // [batch, tokens, width]
  const void* frame_weights;  // opmath [batch, frames]; 0: the frame is not valid; below 0: nor counts in the
                              // prior of its span, the mean of its frames' weights
  const uint8_t* token_mask;  // [batch, tokens]
  const int32_t* start;       // [batch, units], or null: the units are the frames
  const int32_t* end;
  double temperature;  // 0: hard
  int threads;
};

struct AlignmentForward : AlignmentArguments {
  void* similarity;      // opmath [batch, tokens]
  int64_t* unit;         // [batch, tokens]
  void* log_normalizer;  // opmath [batch, tokens]
};

struct AlignmentBackward : AlignmentArguments {
  const void* grad_similarity;  // opmath [batch, tokens]
  const void* similarity;
  const int64_t* unit;
  const void* log_normalizer;
  void* grad_speech;  // [batch, frames, width] contiguous, in the elements' type, or null: not wanted
  void* grad_text;    // [batch, tokens, width] likewise
};

void alignment_forward(const AlignmentForward& arguments);
void alignment_backward(const AlignmentBackward& arguments);

// On the GPU: float32, bfloat16 and float16, with a workspace of the size named in bytes.
namespace cuda {
constexpr int64_t max_width = 2048;  // of the backward: a row is held in registers
int64_t alignment_forward_workspace(const AlignmentForward& arguments);
int64_t alignment_backward_workspace(const AlignmentBackward& arguments);
void alignment_forward(const AlignmentForward& arguments, const ExecutionContext& context);
void alignment_backward(const AlignmentBackward& arguments, const ExecutionContext& context);
}  // namespace cuda

}  // namespace pad
