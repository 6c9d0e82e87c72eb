// L1 distance of the pooled rows of speech and text, forward and backward:
// distance_b = sum_d |sum_i p_bi speech_bid - sum_j q_bj text_bjd|, p and q being the weights over their sum.
#pragma once
#include "tensor.h"

namespace pad {

constexpr int SPEECH = 0, TEXT = 1;

// "Accumulator" below is float, or double where the elements are float64.
struct PooledDistanceArguments {
  int64_t batch, width;
  int64_t lengths[2];  // of speech and text
  Element element;
  const void* weights[2];  // accumulator [batch, length], at least 0; a row of weight 0 is never read
  int threads;
};

// An utterance of which either side has no weight at all gives zeros.
struct PooledDistanceForward : PooledDistanceArguments {
  Rows values[2];
  void* distance;    // accumulator [batch]
  void* difference;  // accumulator [batch, width], of the pooled rows
  void* totals;      // accumulator [batch, 2], the sums of the weights
};

struct PooledDistanceBackward : PooledDistanceArguments {
  const void* grad;  // accumulator [batch]
  const void* difference;
  const void* totals;
  void* grad_values[2];  // [batch, length, width] contiguous, in the elements' type; null where not wanted
};

void pooled_distance_forward(const PooledDistanceForward& arguments);
void pooled_distance_backward(const PooledDistanceBackward& arguments);

namespace cuda {
void pooled_distance_forward(const PooledDistanceForward& arguments, void* workspace, void* stream);  // none needed
void pooled_distance_backward(const PooledDistanceBackward& arguments, void* workspace, void* stream);
}  // namespace cuda

}  // namespace pad
