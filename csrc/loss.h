// The loss of a batch from what the kernels gave, on the CPU.
#pragma once
#include <cstdint>

namespace pad {

enum class Reduction : int { none = 0, sum = 1, mean = 2 };

// Where the loss goes. "Opmath" below is float, or double where is_double.
struct BatchLoss {
  int64_t batch;
  bool is_double;
  Reduction reduction;
  void* loss;  // opmath [batch], or one number
};

// The distance of an utterance is sum_j weight_j (1 - similarity_j); it is valid if one of its tokens has a unit.
struct TokenLoss : BatchLoss {
  int64_t tokens;
  const void* similarity;  // opmath [batch, tokens]
  const int64_t* unit;     // [batch, tokens], -1: none
  const void* weights;     // opmath [batch, tokens]
};

// The distances are those of pooled rows; an utterance is valid if both of its sides have a weight.
struct PooledLoss : BatchLoss {
  const void* distance;  // opmath [batch]
  const void* totals;    // opmath [batch, 2], the sums of the weights of speech and text
};

// Utterances that are not valid have distance 0. Return grad_scale, what the gradient of the loss is multiplied by for
// each utterance: for the mean, one over the number of valid ones.
double token_loss(const TokenLoss& arguments);
double pooled_loss(const PooledLoss& arguments);

}  // namespace pad
