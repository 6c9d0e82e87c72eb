// Alignment forward: units stream past the tokens, a running maximum (hard) or an online softmax (soft)
// per token is all that is kept.
#include "units.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// What is kept per token while the units stream by.
template <class S>
struct Running {
  explicit Running(int64_t padded) : best(padded), sum(padded), weighted(padded), unit(padded) {
    for (int64_t j = 0; j < padded; ++j) {
      best[j] = -__builtin_inff();
      sum[j] = weighted[j] = 0;
      unit[j] = -1;
    }
  }
  Buffer<S> best;      // hard: the largest cosine; soft: the largest exponent
  Buffer<S> sum;       // soft: sum of exp(exponent - best)
  Buffer<S> weighted;  // soft: the same sum weighted by the cosines
  Buffer<Integer<S>> unit;
};

template <class T>
void update_hard(const Units<T>& units, int64_t first, int64_t n, const Accumulator<T>* scores, int64_t columns,
                 Running<Accumulator<T>>& running) {
  using S = Accumulator<T>;
  for (int64_t j = 0; j < columns; j += lanes<S>) {
    Vector<S> best = load(running.best.data() + j);
    IntegerVector<S> unit;
    std::memcpy(&unit, running.unit.data() + j, sizeof(unit));
    for (int64_t r = 0; r < n; ++r) {
      const Vector<S> cosine = load(scores + r * columns + j) * units.inverse[first + r];
      // The second condition lets a NaN through to the loss, where it can be seen.
      const auto better = (cosine > best) | (cosine != cosine);
      best = better ? cosine : best;
      unit = better ? IntegerVector<S>{} + static_cast<Integer<S>>(units.index[first + r]) : unit;
    }
    store(running.best.data() + j, best);
    std::memcpy(running.unit.data() + j, &unit, sizeof(unit));
  }
}

template <class T>
void update_soft(const Units<T>& units, int64_t first, int64_t n, const Accumulator<T>* scores, int64_t columns,
                 Accumulator<T> inverse_temperature, Running<Accumulator<T>>& running) {
  using S = Accumulator<T>;
  S log_prior[tile_units];
  for (int64_t r = 0; r < n; ++r) log_prior[r] = logarithm(units.prior[first + r]);
  for (int64_t j = 0; j < columns; j += lanes<S>) {
    const Vector<S> before = load(running.best.data() + j);
    Vector<S> best = before;
    IntegerVector<S> unit;
    std::memcpy(&unit, running.unit.data() + j, sizeof(unit));
    for (int64_t r = 0; r < n; ++r) {
      const Vector<S> exponent =
          load(scores + r * columns + j) * (units.inverse[first + r] * inverse_temperature) + log_prior[r];
      const auto better = (exponent > best) | (exponent != exponent);
      best = better ? exponent : best;
      unit = better ? IntegerVector<S>{} + static_cast<Integer<S>>(units.index[first + r]) : unit;
    }
    const Vector<S> shrink = exponential(before - best);
    Vector<S> sum = load(running.sum.data() + j) * shrink, weighted = load(running.weighted.data() + j) * shrink;
    for (int64_t r = 0; r < n; ++r) {
      const Vector<S> cosine = load(scores + r * columns + j) * units.inverse[first + r];
      const Vector<S> weight = exponential(cosine * inverse_temperature + log_prior[r] - best);
      sum += weight;
      weighted += weight * cosine;
    }
    store(running.best.data() + j, best);
    store(running.sum.data() + j, sum);
    store(running.weighted.data() + j, weighted);
    std::memcpy(running.unit.data() + j, &unit, sizeof(unit));
  }
}

template <class T>
void forward_utterance(const AlignmentForward& arguments, int64_t batch) {
  using S = Accumulator<T>;
  const Utterance<T> utterance(arguments, batch);
  S* similarity = static_cast<S*>(arguments.similarity) + batch * utterance.tokens;
  S* log_normalizer = static_cast<S*>(arguments.log_normalizer) + batch * utterance.tokens;
  int64_t* unit = arguments.unit + batch * utterance.tokens;
  for (int64_t j = 0; j < utterance.tokens; ++j) {
    similarity[j] = log_normalizer[j] = 0;
    unit[j] = -1;
  }
  const Tokens<T> tokens(utterance);
  if (tokens.count == 0) return;
  const Buffer<int32_t> candidates(utterance.units);
  all_units(utterance.units, candidates.data());
  Units<T> units(utterance, candidates.data(), utterance.units);
  if (units.count == 0) return;

  const bool soft = arguments.temperature > 0;
  const S inverse_temperature = soft ? static_cast<S>(1 / arguments.temperature) : S{0};
  const int64_t columns = tokens.padded;
  const Buffer<S> panel(utterance.width * columns), scores(tile_units * columns);
  tokens.write_panel(utterance, panel.data());
  Running<S> running(columns);
  for (int64_t first = 0; first < units.count; first += tile_units) {
    const int64_t n = minimum(tile_units, units.count - first);
    units.score_tile(first, n, panel.data(), columns, scores.data());
    if (soft)
      update_soft<T>(units, first, n, scores.data(), columns, inverse_temperature, running);
    else
      update_hard<T>(units, first, n, scores.data(), columns, running);
  }
  for (int64_t j = 0; j < tokens.count; ++j) {
    const int64_t token = tokens.index[j];
    similarity[token] = soft ? running.weighted[j] / running.sum[j] : running.best[j];
    log_normalizer[token] = soft ? running.best[j] + logarithm(running.sum[j]) : S{0};
    unit[token] = running.unit[j];
  }
}

}  // namespace

void alignment_forward(const AlignmentForward& arguments) {
  with_element(arguments.element, [&](auto element) {
    using T = decltype(element);
    for_each_utterance<Accumulator<T>>(arguments,
                                       [&](int64_t batch) { forward_utterance<T>(arguments, batch); });
  });
}

}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
