// Losses on the CPU: from masks, priors and spans to the loss of a batch and back, in one call each way.
#pragma once
#include <cstdint>

#include "alignment.h"
#include "pooling.h"
#include "spans.h"
#include "weights.h"

namespace pad {

enum class Reduction : int { none = 0, sum = 1, mean = 2 };

// Where the loss goes. "Opmath" below is float, or double where is_double.
struct BatchLoss {
  int64_t batch;
  bool is_double;
  Reduction reduction;
  void* loss;  // opmath [batch], or one number
};

// The distance of an utterance is sum_j token_weight_j (1 - similarity_j); it is valid if one of its tokens has a unit.
struct TokenLoss : BatchLoss {
  int64_t tokens;
  const void* similarity;     // opmath [batch, tokens]
  const int64_t* unit;        // [batch, tokens], -1: none
  const void* token_weights;  // opmath [batch, tokens]
};

// The distances are those of pooled rows; an utterance is valid if both of its sides have a weight.
struct PooledLoss : BatchLoss {
  const void* distance;  // opmath [batch]
  const void* totals;    // opmath [batch, 2], the sums of the weights of speech and text
};

// How spans are chosen where none are given; by the weights of the frames.
struct LossSpans {
  Anchors anchors;
  int64_t max_anchors;
  int64_t anchors_for_all;     // of every utterance; below 0: as many as it has tokens
  const int64_t* num_anchors;  // [batch], or null: as above
  const double* scales;        // [scale_count]
  int64_t scale_count;         // 0: the spans are given, or the units are frames
};

// The weights of both sides are made first, then the spans. `alignment` reads them where `frames` and `spans` write;
// it is given outputs to write to, and `loss` reads those.
struct LocalLossForward {
  PositionWeights frames, tokens;
  LossSpans selection;
  int32_t *start, *end;  // of the chosen spans
  uint8_t* token_mask;   // [batch, tokens] for the alignment, which takes the tokens of a weight above 0
  AlignmentForward alignment;
  TokenLoss loss;
};

struct GlobalLossForward {
  PositionWeights frames, tokens;
  PooledDistanceForward pooling;
  PooledLoss loss;
};

// The gradient that comes from above, of the reduced loss.
struct UpstreamGradient {
  const void* grad;  // opmath, one number for each utterance
  int64_t stride;    // 0: one number for all
  double scale;      // grad_scale
};

// `alignment.grad_similarity` is made here from the others.
struct LocalLossBackward {
  AlignmentBackward alignment;
  const void* token_weights;  // opmath [batch, tokens]
  UpstreamGradient upstream;
};

// `pooling.grad` likewise.
struct GlobalLossBackward {
  PooledDistanceBackward pooling;
  UpstreamGradient upstream;
};

// Utterances that are not valid have distance 0. Both return grad_scale, what the gradient of the loss is multiplied by
// for each utterance: for the mean, one over the number of valid ones. Bounds of the priors are written where `frames`
// and `tokens` say.
double local_loss_forward(const LocalLossForward& arguments);
double global_loss_forward(const GlobalLossForward& arguments);
void local_loss_backward(const LocalLossBackward& arguments);
void global_loss_backward(const GlobalLossBackward& arguments);

}  // namespace pad
