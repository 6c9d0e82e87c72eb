#include "loss.h"

#include <algorithm>
#include <vector>

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
double token_loss(const TokenLoss& a) {
  const S* similarity = static_cast<const S*>(a.similarity);
  const S* weights = static_cast<const S*>(a.token_weights);
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
double pooled_loss(const PooledLoss& a) {
  const S* totals = static_cast<const S*>(a.totals);
  return reduce<S>(
      a, [&](int64_t b) { return static_cast<double>(static_cast<const S*>(a.distance)[b]); },
      [&](int64_t b) { return totals[2 * b] > 0 && totals[2 * b + 1] > 0; });
}

// Calls work(S{}) with S the opmath type.
template <class Work>
void with_opmath(Element element, const Work& work) {
  element == Element::float64 ? work(double{}) : work(float{});
}

void choose_spans(const LocalLossForward& a) {
  const int64_t batch = a.tokens.batch, length = a.tokens.length;
  std::vector<int64_t> tokens(batch, length), anchors;
  if (a.tokens.mask)
    for (int64_t b = 0; b < batch; ++b)
      tokens[b] =
          std::count_if(a.tokens.mask + b * length, a.tokens.mask + (b + 1) * length, [](uint8_t x) { return x; });
  if (a.selection.anchors_for_all >= 0) anchors.assign(batch, a.selection.anchors_for_all);
  SpanArguments spans{};
  spans.batch = batch;
  spans.frames = a.frames.length;
  spans.max_anchors = a.selection.max_anchors;
  spans.scale_count = a.selection.scale_count;
  spans.frame_weights = a.frames.weights;
  spans.is_double = a.frames.is_double;
  spans.frame_mask = a.frames.mask;
  spans.num_tokens = tokens.data();
  spans.num_anchors = a.selection.num_anchors ? a.selection.num_anchors
                      : anchors.empty()       ? tokens.data()
                                              : anchors.data();
  spans.scales = a.selection.scales;
  spans.anchors = a.selection.anchors;
  spans.start = a.start;
  spans.end = a.end;
  spans.threads = a.alignment.threads;
  select_spans(spans);
}

}  // namespace

double local_loss_forward(const LocalLossForward& a) {
  position_weights(a.frames);
  position_weights(a.tokens);
  if (a.selection.scale_count) choose_spans(a);
  with_opmath(a.alignment.element, [&](auto number) {
    const auto* weights = static_cast<const decltype(number)*>(a.tokens.weights);
    for (int64_t i = 0; i < a.tokens.batch * a.tokens.length; ++i) a.token_mask[i] = weights[i] > 0;
  });
  alignment_forward(a.alignment);
  return a.loss.is_double ? token_loss<double>(a.loss) : token_loss<float>(a.loss);
}

double global_loss_forward(const GlobalLossForward& a) {
  position_weights(a.frames);
  position_weights(a.tokens);
  pooled_distance_forward(a.pooling);
  return a.loss.is_double ? pooled_loss<double>(a.loss) : pooled_loss<float>(a.loss);
}

void local_loss_backward(const LocalLossBackward& a) {
  with_opmath(a.alignment.element, [&](auto number) {
    using S = decltype(number);
    const int64_t tokens = a.alignment.tokens;
    std::vector<S> grad_similarity(a.alignment.batch * tokens);
    for (int64_t b = 0; b < a.alignment.batch; ++b) {
      const S grad = static_cast<const S*>(a.upstream.grad)[b * a.upstream.stride] * static_cast<S>(-a.upstream.scale);
      for (int64_t i = b * tokens; i < (b + 1) * tokens; ++i)
        grad_similarity[i] = static_cast<const S*>(a.token_weights)[i] * grad;
    }
    AlignmentBackward alignment = a.alignment;
    alignment.grad_similarity = grad_similarity.data();
    alignment_backward(alignment);
  });
}

void global_loss_backward(const GlobalLossBackward& a) {
  with_opmath(a.pooling.element, [&](auto number) {
    using S = decltype(number);
    std::vector<S> grad(a.pooling.batch);
    for (int64_t b = 0; b < a.pooling.batch; ++b)
      grad[b] = static_cast<const S*>(a.upstream.grad)[b * a.upstream.stride] * static_cast<S>(a.upstream.scale);
    PooledDistanceBackward pooling = a.pooling;
    pooling.grad = grad.data();
    pooled_distance_backward(pooling);
  });
}

}  // namespace pad
