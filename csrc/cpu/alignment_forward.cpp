// Alignment forward: units stream past the tokens, a running maximum (hard) or an online softmax (soft)
// per token is all that is kept. The parts of an utterance are merged in order.
#include "cpu/parts.h"
#include "cpu/scores.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// What is kept per token while the units stream by.
template <class S>
struct Running {
  explicit Running(int64_t padded) : best(padded), sum(padded), weighted(padded), origin(padded), unit(padded) {
    for (int64_t j = 0; j < padded; ++j) {
      best[j] = -__builtin_inff();
      sum[j] = weighted[j] = origin[j] = 0;
      unit[j] = -1;
    }
  }
  Buffer<S> best;      // hard: the largest cosine; soft: the largest exponent
  Buffer<S> sum;       // soft: sum of exp(exponent - best)
  Buffer<S> weighted;  // soft: the same sum weighted by cosine - origin
  Buffer<S> origin;    // soft: the first unit's cosine; what is added up is small where all are nearly equal
  Buffer<Integer<S>> unit;
};

// lowest[c]: the lowest index of a unit that covers the same frames as number `c` of those that take part. Equal spans
// can be pooled from different inner ones, and so differ in the last bit.
template <class T>
void find_lowest(const Utterance<T>& utterance, const Units<T>& units, int32_t* lowest) {
  const Buffer<int64_t> latest(utterance.frames), earlier(units.count);  // of the units with one first frame; -1: none
  for (int64_t i = 0; i < utterance.frames; ++i) latest[i] = -1;
  for (int64_t c = 0; c < units.count; ++c) {
    int64_t& head = latest[utterance.unit_start(units.index[c])];
    const int64_t past = utterance.unit_end(units.index[c]);
    int64_t equal = head;
    while (equal >= 0 && utterance.unit_end(units.index[equal]) != past) equal = earlier[equal];
    lowest[c] = units.index[equal < 0 ? c : equal];
    if (equal >= 0) continue;
    earlier[c] = head;
    head = c;
  }
}

// `index`: of each unit, what is kept where it is the best.
template <class T>
void update_hard(const Units<T>& units, const int32_t* index, const ScoreTile<OpMath<T>>& tile,
                 Running<OpMath<T>>& running) {
  using S = OpMath<T>;
  const auto [first, n, columns, scores] = tile;
  for (int64_t j = 0; j < columns; j += lanes<S>) {
    Vector<S> best = load(running.best.data() + j);
    IntegerVector<S> unit;
    std::memcpy(&unit, running.unit.data() + j, sizeof(unit));
    for (int64_t r = 0; r < n; ++r) {
      const Vector<S> cosine = load(scores + r * columns + j) * units.inverse[first + r];
      // The second condition lets a NaN through to the loss, where it can be seen.
      const auto better = (cosine > best) | (cosine != cosine);
      best = better ? cosine : best;
      unit = better ? IntegerVector<S>{} + static_cast<Integer<S>>(index[first + r]) : unit;
    }
    store(running.best.data() + j, best);
    std::memcpy(running.unit.data() + j, &unit, sizeof(unit));
  }
}

template <class T>
void update_soft(const Units<T>& units, const int32_t* index, const ScoreTile<OpMath<T>>& tile,
                 OpMath<T> inverse_temperature, Running<OpMath<T>>& running) {
  using S = OpMath<T>;
  const auto [first, n, columns, scores] = tile;
  S log_prior[tile_units];
  for (int64_t r = 0; r < n; ++r) log_prior[r] = logarithm(units.prior[first + r]);
  for (int64_t j = 0; j < columns; j += lanes<S>) {
    const Vector<S> before = load(running.best.data() + j);
    Vector<S> best = before;
    IntegerVector<S> unit;
    std::memcpy(&unit, running.unit.data() + j, sizeof(unit));
    for (int64_t r = 0; r < n; ++r) {
      // Rounded as below, or the difference of the two could be a large one.
      const Vector<S> cosine = load(scores + r * columns + j) * units.inverse[first + r];
      const Vector<S> exponent = cosine * inverse_temperature + log_prior[r];
      const auto better = (exponent > best) | (exponent != exponent);
      best = better ? exponent : best;
      unit = better ? IntegerVector<S>{} + static_cast<Integer<S>>(index[first + r]) : unit;
    }
    const Vector<S> shrink = exponential(before - best);
    Vector<S> sum{}, weighted{};  // of the tile: long sums of numbers that are alike would round one way
    const Vector<S> origin = load(running.origin.data() + j);
    for (int64_t r = 0; r < n; ++r) {
      const Vector<S> cosine = load(scores + r * columns + j) * units.inverse[first + r];
      const Vector<S> weight = exponential(cosine * inverse_temperature + log_prior[r] - best);
      sum += weight;
      weighted += weight * (cosine - origin);
    }
    store(running.best.data() + j, best);
    store(running.sum.data() + j, load(running.sum.data() + j) * shrink + sum);
    store(running.weighted.data() + j, load(running.weighted.data() + j) * shrink + weighted);
    std::memcpy(running.unit.data() + j, &unit, sizeof(unit));
  }
}

// The running values of one token after a part of the units; unit -1: none was valid.
template <class S>
struct Partial {
  S best, sum, weighted, origin;
  int64_t unit;
};

template <class T>
void forward_part(const AlignmentForward& arguments, const PartIndex& index, Partial<OpMath<T>>* partial) {
  using S = OpMath<T>;
  const Utterance<T> utterance(arguments, index.batch);
  for (int64_t j = 0; j < utterance.tokens; ++j) partial[j] = {0, 0, 0, 0, -1};
  const Tokens<T> tokens(utterance);
  if (tokens.count == 0) return;
  const Buffer<int32_t> candidates(utterance.units);
  all_units(utterance.units, candidates.data());
  Units<T> units(utterance, candidates.data(), utterance.units, UnitOrder::by_index);
  const int64_t begin = units.count * index.part / index.parts;
  const int64_t end = units.count * (index.part + 1) / index.parts;
  if (begin == end) return;

  const bool soft = arguments.temperature > 0;
  const S inverse_temperature = soft ? static_cast<S>(1 / arguments.temperature) : S{0};
  const Buffer<int32_t> lowest(utterance.start ? units.count : 0);
  if (utterance.start) find_lowest(utterance, units, lowest.data());
  const int32_t* found = utterance.start ? lowest.data() : units.index.data();
  Running<S> running(tokens.padded);
  with_scores(utterance, tokens, units, [&](auto& scores) {
    for (int64_t first = begin; first < end; first += tile_units) {
      const ScoreTile<S> tile = scores.tile(first, minimum(tile_units, end - first));
      if (soft && first == begin)
        for (int64_t j = 0; j < tokens.padded; ++j) running.origin[j] = tile.scores[j] * units.inverse[begin];
      if (soft) update_soft<T>(units, found, tile, inverse_temperature, running);
      else update_hard<T>(units, found, tile, running);
    }
  });
  for (int64_t j = 0; j < tokens.count; ++j)
    partial[tokens.index[j]] = {running.best[j], running.sum[j], running.weighted[j], running.origin[j],
                                running.unit[j]};
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
    const S weighted = other.weighted + other.sum * (other.origin - whole.origin);
    whole = {best, whole.sum * shrink + other.sum * other_shrink, whole.weighted * shrink + weighted * other_shrink,
             whole.origin, better ? other.unit : whole.unit};
  }
  return whole;
}

}  // namespace

void alignment_forward(const AlignmentForward& arguments) {
  with_element(arguments.element, [&](auto element) {
    using T = decltype(element);
    using S = OpMath<T>;
    const int64_t tokens = arguments.tokens, parts = parts_of_utterance(arguments);
    const Buffer<Partial<S>> partials(arguments.batch * parts * tokens);
    for_each_part<S>(arguments, parts, [&](const PartIndex& index) {
      forward_part<T>(arguments, index, partials.data() + (index.batch * parts + index.part) * tokens);
    });
    for (int64_t i = 0; i < arguments.batch * tokens; ++i) {
      const Partial<S> whole = merge(partials.data() + i / tokens * parts * tokens + i % tokens, parts, tokens);
      const bool any = whole.unit >= 0, soft = arguments.temperature > 0;
      arguments.unit[i] = whole.unit;
      static_cast<S*>(arguments.similarity)[i] = !any   ? S{0}
                                                 : soft ? whole.origin + whole.weighted / whole.sum
                                                        : whole.best;
      static_cast<S*>(arguments.log_normalizer)[i] = any && soft ? whole.best + logarithm(whole.sum) : S{0};
    }
  });
}

}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
