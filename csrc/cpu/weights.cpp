// The weights of positions, from masks and priors.
#include "weights.h"

#include "cpu/buffer.h"
#include "cpu/vector.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// Lowest, highest and sum of a row: over lanes of their own, so that they are vectors.
template <class A>
struct Summary {
  Summary(const A* row, int64_t length) {
    Vector<A> low = broadcast(row[0]), high = low, total{};
    int64_t i = 0;
    for (; i + lanes<A> <= length; i += lanes<A>) {
      const Vector<A> value = load(row + i);
      low = value < low ? value : low;
      high = value > high ? value : high;
      total += value;
    }
    sum = sum_lanes<A>(total);
    lowest = highest = row[0];
    for (int l = 0; l < lanes<A>; ++l) {
      lowest = low[l] < lowest ? low[l] : lowest;
      highest = high[l] > highest ? high[l] : highest;
    }
    for (; i < length; ++i) {
      lowest = row[i] < lowest ? row[i] : lowest;
      highest = row[i] > highest ? row[i] : highest;
      sum += row[i];
    }
    // No comparison finds a NaN, but the sum does.
    if (sum != sum) lowest = sum;
  }
  A lowest, highest, sum;
};

template <class T, class S>
void weigh(const PositionWeights& a) {
  // The wider of both: an error shows the prior as it came, and its sum is as exact as the weights.
  using A = std::conditional_t<std::is_same_v<T, double>, double, S>;
  const int64_t length = a.length;
  const Buffer<uint8_t> all(a.mask ? 0 : length);
  if (!a.mask && length) std::memset(all.data(), 1, static_cast<size_t>(length));
  const Buffer<A> row(a.prior ? length : 0);
  const S masked = static_cast<S>(a.masked);
  double lowest = 0, highest = 0, lowest_peak = 0;
  for (int64_t b = 0; b < a.batch; ++b) {
    S* weights = static_cast<S*>(a.weights) + b * length;
    const uint8_t* valid = a.mask ? a.mask + b * length : all.data();
    if (!a.prior) {
      int32_t count = 0;
      for (int64_t i = 0; i < length; ++i) count += valid[i] != 0;
      const S uniform = S{1} / static_cast<S>(count ? count : 1);
      for (int64_t i = 0; i < length; ++i) weights[i] = valid[i] ? uniform : masked;
      continue;
    }
    const T* prior = static_cast<const T*>(a.prior) + b * length;
    for (int64_t i = 0; i < length; ++i) row[i] = valid[i] ? static_cast<A>(to_opmath(prior[i])) : A{0};
    const Summary<A> summary(row.data(), length);
    if (b == 0 || !(summary.lowest >= lowest)) lowest = lowest != lowest ? lowest : summary.lowest;
    if (b == 0 || summary.highest > highest) highest = summary.highest;
    if (summary.highest > 0 && !(lowest_peak > 0 && lowest_peak <= summary.highest)) lowest_peak = summary.highest;
    const A total = a.normalized && summary.sum > 0 ? summary.sum : A{1};
    for (int64_t i = 0; i < length; ++i) weights[i] = valid[i] ? static_cast<S>(row[i] / total) : masked;
  }
  *a.bounds = {lowest, highest, lowest_peak};
}

}  // namespace

void position_weights(const PositionWeights& arguments) {
  *arguments.bounds = {0, 0, 0};
  if (arguments.batch == 0 || arguments.length == 0) return;
  with_element(arguments.element, [&](auto element) {
    using T = decltype(element);
    arguments.is_double ? weigh<T, double>(arguments) : weigh<T, float>(arguments);
  });
}

}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
