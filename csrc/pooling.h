// L1 distance of the pooled rows of speech and text, forward and backward:
// distance_b = sum_d |sum_i p_bi speech_bid - sum_j q_bj text_bjd|, p and q being the weights over their sum.
#pragma once
#include "device.h"
#include "tensor.h"

namespace pad {

constexpr int SPEECH = 0, TEXT = 1;

// "Opmath" below is float, or double where the elements are float64.
struct PooledDistanceArguments {
  int64_t batch, width;
  int64_t lengths[2];  // of speech and text
  Element element;
  const void* weights[2];  // opmath [batch, length], at least 0; a row of weight 0 is never read
  int threads;
};

// An utterance of which either side has no weight at all gives zeros.
struct PooledDistanceForward : PooledDistanceArguments {
  Rows values[2];
  void* distance;    // opmath [batch]
  void* difference;  // opmath [batch, width], of the pooled rows
  void* totals;      // opmath [batch, 2], the sums of the weights
};

struct PooledDistanceBackward : PooledDistanceArguments {
  const void* grad;  // opmath [batch]
  const void* difference;
  const void* totals;
  void* grad_values[2];  // [batch, length, width] contiguous, in the elements' type; null where not wanted
};

void pooled_distance_forward(const PooledDistanceForward& arguments);
void pooled_distance_backward(const PooledDistanceBackward& arguments);

// On the GPU, without a workspace.
namespace cuda {
void pooled_distance_forward(const PooledDistanceForward& arguments, const ExecutionContext& context);
void pooled_distance_backward(const PooledDistanceBackward& arguments, const ExecutionContext& context);
}  // namespace cuda

}  // namespace pad
