// What a loss does around its kernels, on the CPU.
#pragma once
#include <cstdint>

namespace pad {

// Whether 0 <= start <= end <= frames holds for all of `count` spans.
bool spans_fit(const int32_t* start, const int32_t* end, int64_t count, int64_t frames);

enum class Reduction : int { none = 0, sum = 1, mean = 2 };

struct BatchLoss {
  int64_t batch;
  bool is_double;  // else float
  Reduction reduction;
  void* loss;  // [batch], or one number
};

// sum_j weight_j (1 - similarity_j) of the utterances in which a token has a unit, else 0. Returns what the gradient
// of the loss is multiplied by for each utterance: for the mean, one over the number of utterances that count.
double token_loss(const BatchLoss& arguments, int64_t tokens, const void* similarity, const int64_t* unit,
                  const void* weights);

// The same of distances [batch] between pooled rows, whose weights sum to totals [batch, 2].
double pooled_loss(const BatchLoss& arguments, const void* distance, const void* totals);

}  // namespace pad
