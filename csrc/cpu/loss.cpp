#include "loss.h"

#include <algorithm>

namespace pad {
namespace {

// `distance(b)` is that of an utterance, `valid(b)` whether it has one.
template <class S, class Distance, class Valid>
double reduce(const BatchLoss& a, const Distance& distance, const Valid& valid) {
  S* loss = static_cast<S*>(a.loss);
  double sum = 0;
  int64_t valid_count = 0;
  for (int64_t b = 0; b < a.batch; ++b) {
    const double own = valid(b) ? distance(b) : 0;
    if (a.reduction == Reduction::none) loss[b] = static_cast<S>(own);
    sum += own;
    valid_count += valid(b);
  }
  const double grad_scale =
      a.reduction == Reduction::mean ? 1.0 / static_cast<double>(std::max<int64_t>(1, valid_count)) : 1.0;
  if (a.reduction != Reduction::none) *loss = static_cast<S>(sum * grad_scale);
  return grad_scale;
}

template <class S>
double token_loss_in(const TokenLoss& a) {
  const S* similarity = static_cast<const S*>(a.similarity);
  const S* weights = static_cast<const S*>(a.weights);
  const auto distance = [&](int64_t b) {
    double sum = 0;
    for (int64_t j = b * a.tokens; j < (b + 1) * a.tokens; ++j)
      sum += static_cast<double>(weights[j]) * (1 - static_cast<double>(similarity[j]));
    return sum;
  };
  const auto valid = [&](int64_t b) {
    return std::any_of(a.unit + b * a.tokens, a.unit + (b + 1) * a.tokens, [](int64_t unit) { return unit >= 0; });
  };
  return reduce<S>(a, distance, valid);
}

template <class S>
double pooled_loss_in(const PooledLoss& a) {
  const S* totals = static_cast<const S*>(a.totals);
  return reduce<S>(
      a, [&](int64_t b) { return static_cast<double>(static_cast<const S*>(a.distance)[b]); },
      [&](int64_t b) { return totals[2 * b] > 0 && totals[2 * b + 1] > 0; });
}

}  // namespace

double token_loss(const TokenLoss& arguments) {
  return arguments.is_double ? token_loss_in<double>(arguments) : token_loss_in<float>(arguments);
}

double pooled_loss(const PooledLoss& arguments) {
  return arguments.is_double ? pooled_loss_in<double>(arguments) : pooled_loss_in<float>(arguments);
}

}  // namespace pad
