// Alignment forward: units stream past the tokens, a running maximum (hard) or an online softmax (soft)
// per token is all that is kept. The parts of an utterance are merged in order.
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

// The running values of one token after a part of the units; unit -1: none took part.
template <class S>
struct Partial {
  S best, sum, weighted;
  int64_t unit;
};

template <class T>
void forward_part(const AlignmentForward& arguments, int64_t batch, int64_t part, int64_t parts,
                  Partial<Accumulator<T>>* partial) {
  using S = Accumulator<T>;
  const Utterance<T> utterance(arguments, batch);
  for (int64_t j = 0; j < utterance.tokens; ++j) partial[j] = {0, 0, 0, -1};
  const Tokens<T> tokens(utterance);
  if (tokens.count == 0) return;
  const Buffer<int32_t> candidates(utterance.units);
  all_units(utterance.units, candidates.data());
  Units<T> units(utterance, candidates.data(), utterance.units);
  const int64_t begin = units.count * part / parts, end = units.count * (part + 1) / parts;
  if (begin == end) return;

  const bool soft = arguments.temperature > 0;
  const S inverse_temperature = soft ? static_cast<S>(1 / arguments.temperature) : S{0};
  const int64_t columns = tokens.padded;
  const Buffer<S> panel(utterance.width * columns), scores(tile_units * columns);
  tokens.write_panel(utterance, panel.data());
  Running<S> running(columns);
  for (int64_t first = begin; first < end; first += tile_units) {
    const int64_t n = minimum(tile_units, end - first);
    units.score_tile(first, n, panel.data(), columns, scores.data());
    if (soft)
      update_soft<T>(units, first, n, scores.data(), columns, inverse_temperature, running);
    else
      update_hard<T>(units, first, n, scores.data(), columns, running);
  }
  for (int64_t j = 0; j < tokens.count; ++j)
    partial[tokens.index[j]] = {running.best[j], running.sum[j], running.weighted[j], running.unit[j]};
}

// Merges a token's parts in order; `stride` lies between them.
template <class S>
Partial<S> merge(const Partial<S>* partial, int64_t parts, int64_t stride) {
  Partial<S> whole = partial[0];
  for (int64_t part = 1; part < parts; ++part) {
    const Partial<S>& other = partial[part * stride];
    if (other.unit < 0) continue;
    if (whole.unit < 0) {
      whole = other;
      continue;
    }
    const bool better = other.best > whole.best || other.best != other.best;
    const S best = better ? other.best : whole.best;
    const S shrink = exponential(whole.best - best), other_shrink = exponential(other.best - best);
    whole = {best, whole.sum * shrink + other.sum * other_shrink,
             whole.weighted * shrink + other.weighted * other_shrink, better ? other.unit : whole.unit};
  }
  return whole;
}

}  // namespace

void alignment_forward(const AlignmentForward& arguments) {
  with_element(arguments.element, [&](auto element) {
    using T = decltype(element);
    using S = Accumulator<T>;
    const int64_t tokens = arguments.tokens, parts = parts_of_utterance(arguments);
    const Buffer<Partial<S>> partials(arguments.batch * parts * tokens);
    for_each_part<S>(arguments, parts, [&](int64_t batch, int64_t part) {
      forward_part<T>(arguments, batch, part, parts, partials.data() + (batch * parts + part) * tokens);
    });
    for (int64_t i = 0; i < arguments.batch * tokens; ++i) {
      const Partial<S> whole = merge(partials.data() + i / tokens * parts * tokens + i % tokens, parts, tokens);
      const bool any = whole.unit >= 0, soft = arguments.temperature > 0;
      arguments.unit[i] = whole.unit;
      static_cast<S*>(arguments.similarity)[i] = !any ? S{0} : soft ? whole.weighted / whole.sum : whole.best;
      static_cast<S*>(arguments.log_normalizer)[i] = any && soft ? whole.best + logarithm(whole.sum) : S{0};
    }
  });
}

}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
