#include "loss.h"

#include <algorithm>

namespace pad {
namespace {

// `distance(b)` is that of an utterance, `counts(b)` whether it has one.
template <class S, class Distance, class Counts>
double reduce(const BatchLoss& a, const Distance& distance, const Counts& counts) {
  S* loss = static_cast<S*>(a.loss);
  double sum = 0;
  int64_t counted = 0;
  for (int64_t b = 0; b < a.batch; ++b) {
    const double own = counts(b) ? distance(b) : 0;
    if (a.reduction == Reduction::none) loss[b] = static_cast<S>(own);
    sum += own;
    counted += counts(b);
  }
  const double share = a.reduction == Reduction::mean ? 1.0 / static_cast<double>(std::max<int64_t>(1, counted)) : 1.0;
  if (a.reduction != Reduction::none) *loss = static_cast<S>(sum * share);
  return share;
}

template <class S>
double loss_of_tokens(const BatchLoss& a, int64_t tokens, const S* similarity, const int64_t* unit, const S* weights) {
  const auto distance = [&](int64_t b) {
    double sum = 0;
    for (int64_t j = b * tokens; j < (b + 1) * tokens; ++j)
      sum += static_cast<double>(weights[j]) * (1 - static_cast<double>(similarity[j]));
    return sum;
  };
  const auto counts = [&](int64_t b) {
    return std::any_of(unit + b * tokens, unit + (b + 1) * tokens, [](int64_t chosen) { return chosen >= 0; });
  };
  return reduce<S>(a, distance, counts);
}

template <class S>
double loss_of_distances(const BatchLoss& a, const S* distance, const S* totals) {
  return reduce<S>(
      a, [&](int64_t b) { return static_cast<double>(distance[b]); },
      [&](int64_t b) { return totals[2 * b] > 0 && totals[2 * b + 1] > 0; });
}

}  // namespace

bool spans_fit(const int32_t* start, const int32_t* end, int64_t count, int64_t frames) {
  bool fit = true;
  for (int64_t i = 0; i < count; ++i) fit &= start[i] >= 0 && start[i] <= end[i] && end[i] <= frames;
  return fit;
}

double token_loss(const BatchLoss& arguments, int64_t tokens, const void* similarity, const int64_t* unit,
                  const void* weights) {
  if (arguments.is_double)
    return loss_of_tokens(arguments, tokens, static_cast<const double*>(similarity), unit,
                          static_cast<const double*>(weights));
  return loss_of_tokens(arguments, tokens, static_cast<const float*>(similarity), unit,
                        static_cast<const float*>(weights));
}

double pooled_loss(const BatchLoss& arguments, const void* distance, const void* totals) {
  if (arguments.is_double)
    return loss_of_distances(arguments, static_cast<const double*>(distance), static_cast<const double*>(totals));
  return loss_of_distances(arguments, static_cast<const float*>(distance), static_cast<const float*>(totals));
}

}  // namespace pad
