// Prior-weighted cosine alignment of text tokens with speech units, forward and backward.
#pragma once
#include "tensor.h"

namespace pad {

// In cosine = u.t / (max(|u|, eps) max(|t|, eps)).
constexpr double norm_epsilon = 1e-8;

// "Accumulator" below is float, or double where the elements are float64.
struct AlignmentArguments {
  int64_t batch, frames, tokens, units, width;
  Element element;
  Rows speech;               // [batch, frames, width]
  Rows text;                 // [batch, tokens, width]
  const void* frame_prior;   // accumulator [batch, frames]; 0: the frame takes no part; below 0: nor counts in the
                             // mean of its span's priors
  const uint8_t* token_mask; // [batch, tokens]
  const int32_t* start;      // [batch, units], or null: the units are the frames
  const int32_t* end;
  double temperature;        // 0: hard
  int threads;
};

struct AlignmentForward : AlignmentArguments {
  void* similarity;       // accumulator [batch, tokens]
  int64_t* unit;          // [batch, tokens]
  void* log_normalizer;   // accumulator [batch, tokens]
};

struct AlignmentBackward : AlignmentArguments {
  const void* grad_similarity;  // accumulator [batch, tokens]
  const void* similarity;
  const int64_t* unit;
  const void* log_normalizer;
  void* grad_speech;  // [batch, frames, width] contiguous, in the elements' type, or null: not wanted
  void* grad_text;    // [batch, tokens, width] likewise
};

void alignment_forward(const AlignmentForward& arguments);
void alignment_backward(const AlignmentBackward& arguments);

// On the GPU: float32, bfloat16 and float16; with memory of the size named, on a CUDA stream.
namespace cuda {
int64_t alignment_forward_workspace(const AlignmentForward& arguments);
int64_t alignment_backward_workspace(const AlignmentBackward& arguments);
void alignment_forward(const AlignmentForward& arguments, void* workspace, void* stream);
void alignment_backward(const AlignmentBackward& arguments, void* workspace, void* stream);
}  // namespace cuda

}  // namespace pad
