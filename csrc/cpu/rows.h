// Work on rows of `width` elements: whole vectors, then the rest one by one.
#pragma once
#include "cpu/vector.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

template <class T>
inline OpMath<T> dot(const T* a, const OpMath<T>* b, int64_t width) {
  using S = OpMath<T>;
  Vector<S> sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes<S> <= width; i += 4 * lanes<S>)
    for (int v = 0; v < 4; ++v) sums[v] += load(a + i + v * lanes<S>) * load(b + i + v * lanes<S>);
  for (; i + lanes<S> <= width; i += lanes<S>) sums[0] += load(a + i) * load(b + i);
  S total = sum_lanes<S>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < width; ++i) total += to_opmath(a[i]) * b[i];
  return total;
}

template <class T>
inline OpMath<T> sum_of_squares(const T* a, int64_t width) {
  using S = OpMath<T>;
  Vector<S> sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes<S> <= width; i += 4 * lanes<S>)
    for (int v = 0; v < 4; ++v) {
      const Vector<S> value = load(a + i + v * lanes<S>);
      sums[v] += value * value;
    }
  for (; i + lanes<S> <= width; i += lanes<S>) {
    const Vector<S> value = load(a + i);
    sums[0] += value * value;
  }
  S total = sum_lanes<S>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < width; ++i) total += to_opmath(a[i]) * to_opmath(a[i]);
  return total;
}

// to = scale * from, in the type of `to`.
template <class To, class From>
inline void scaled_copy(To* to, const From* from, OpMath<To> scale, int64_t width) {
  int64_t i = 0;
  for (; i + lanes<OpMath<To>> <= width; i += lanes<OpMath<To>>) store(to + i, load(from + i) * scale);
  for (; i < width; ++i) to[i] = from_opmath<To>(to_opmath(from[i]) * scale);
}

// to += scale * from
template <class From>
inline void scaled_add(OpMath<From>* to, const From* from, OpMath<From> scale, int64_t width) {
  using S = OpMath<From>;
  int64_t i = 0;
  for (; i + lanes<S> <= width; i += lanes<S>) store(to + i, load(to + i) + load(from + i) * scale);
  for (; i < width; ++i) to[i] += to_opmath(from[i]) * scale;
}

template <class T>
inline void fill_zero(T* to, int64_t count) {
  if (count) std::memset(static_cast<void*>(to), 0, static_cast<size_t>(count) * sizeof(T));  // none: perhaps null
}

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
