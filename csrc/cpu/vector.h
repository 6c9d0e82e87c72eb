// Vectors of the widest kind that the instruction set of this translation unit has.
#pragma once
#include "cpu/elements.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
constexpr int vector_registers = 32;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
constexpr int vector_registers = 16;
#elif defined(__aarch64__)
constexpr int vector_bytes = 16;
constexpr int vector_registers = 32;
#else
constexpr int vector_bytes = 16;
constexpr int vector_registers = 16;
#endif

constexpr int64_t cache_line = 64;  // bytes

template <class Scalar, int bytes>
struct VectorOf {
  typedef Scalar type __attribute__((vector_size(bytes)));
};

template <class S> using Vector = typename VectorOf<S, vector_bytes>::type;
template <class S> using Integer = std::conditional_t<sizeof(S) == 4, int32_t, int64_t>;
template <class S> using IntegerVector = Vector<Integer<S>>;
template <class S> constexpr int lanes = vector_bytes / static_cast<int>(sizeof(S));

template <class S> inline Vector<S> broadcast(S value) { return value - Vector<S>{}; }

#if defined(__AVX512F__)
// GCC would widen each half of the vector apart.
inline Vector<uint32_t> widened(__m256i half) { return bit_cast<Vector<uint32_t>>(_mm512_cvtepu16_epi32(half)); }
#endif

// A vector of consecutive elements, in their opmath type.
template <class T>
inline Vector<OpMath<T>> load(const T* data) {
  if constexpr (sizeof(T) == sizeof(OpMath<T>)) {
    Vector<OpMath<T>> value;
    std::memcpy(&value, data, sizeof(value));
    return value;
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    typename VectorOf<uint16_t, vector_bytes / 2>::type half;
    std::memcpy(&half, data, sizeof(half));
#if defined(__AVX512F__)
    const auto wide = widened(bit_cast<__m256i>(half));
#elif defined(__AVX2__)
    const auto wide = bit_cast<Vector<uint32_t>>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(half)));
#else
    const auto wide = __builtin_convertvector(half, Vector<uint32_t>);
#endif
    return bit_cast<Vector<float>>(wide << 16);
  } else {
#if defined(__AVX512F__)
    __m256i half;
    std::memcpy(&half, data, sizeof(half));
    return bit_cast<Vector<float>>(_mm512_cvtph_ps(half));
#elif defined(__AVX2__)
    __m128i half;
    std::memcpy(&half, data, sizeof(half));
    return bit_cast<Vector<float>>(_mm256_cvtph_ps(half));
#elif defined(__aarch64__)
    float16x4_t half;
    std::memcpy(&half, data, sizeof(half));
    return bit_cast<Vector<float>>(vcvt_f32_f16(half));
#else
    Vector<float> value;
    for (int i = 0; i < lanes<float>; ++i) value[i] = to_opmath(data[i]);
    return value;
#endif
  }
}

template <class T>
inline void store(T* data, Vector<OpMath<T>> value) {
  if constexpr (sizeof(T) == sizeof(OpMath<T>)) {
    std::memcpy(data, &value, sizeof(value));
  } else if constexpr (std::is_same_v<T, bfloat16>) {
#if defined(__AVX512BF16__)
    const auto half = _mm512_cvtneps_pbh(bit_cast<__m512>(value));
    std::memcpy(data, &half, sizeof(half));
#else
    using Bits = Vector<uint32_t>;
    const Bits bits = bit_cast<Bits>(value);
    const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Bits nan = (bits >> 16) | 0x40u;
    const Bits result = value != value ? nan : rounded;
    const auto half = __builtin_convertvector(result, typename VectorOf<uint16_t, vector_bytes / 2>::type);
    std::memcpy(data, &half, sizeof(half));
#endif
  } else {
#if defined(__AVX512F__)
    const __m256i half = _mm512_cvtps_ph(bit_cast<__m512>(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(data, &half, sizeof(half));
#elif defined(__AVX2__)
    const __m128i half = _mm256_cvtps_ph(bit_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(data, &half, sizeof(half));
#elif defined(__aarch64__)
    const float16x4_t half = vcvt_f16_f32(bit_cast<float32x4_t>(value));
    std::memcpy(data, &half, sizeof(half));
#else
    for (int i = 0; i < lanes<float>; ++i) data[i] = from_opmath<float16>(value[i]);
#endif
  }
}

template <class S>
inline S sum_lanes(Vector<S> value) {
#if defined(__AVX512F__)  // in the same order
  if constexpr (std::is_same_v<S, float>) return _mm512_reduce_add_ps(bit_cast<__m512>(value));
#endif
  S parts[lanes<S>];
  std::memcpy(parts, &value, sizeof(value));
  for (int width = lanes<S> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
  return parts[0];
}

// exp of arguments that are at most about 0, to 2 units in the last place; below -87 the result is 0.
inline Vector<float> exponential(Vector<float> value) {
  using V = Vector<float>;
  const V clamped = value < -87.3f ? broadcast(-87.3f) : value;
  // Adding 1.5 * 2^23 rounds to the nearest whole number of halvings.
  const V shifted = clamped * 1.44269504088896341f + 12582912.0f;
  const V power = shifted - 12582912.0f;
  V rest = clamped - power * 0.693359375f;
  rest = rest + power * 2.12194440e-4f;
  V series = broadcast(1.9875691500e-4f);
  series = series * rest + 1.3981999507e-3f;
  series = series * rest + 8.3334519073e-3f;
  series = series * rest + 4.1665795894e-2f;
  series = series * rest + 1.6666665459e-1f;
  series = series * rest + 5.0000001201e-1f;
  series = series * rest * rest + rest + 1.0f;
  const auto scale = (bit_cast<Vector<int32_t>>(shifted) - bit_cast<int32_t>(12582912.0f) + 127) << 23;
  const V result = series * bit_cast<V>(scale);
  return value < -87.3f ? V{} : result;
}

inline Vector<double> exponential(Vector<double> value) {
  Vector<double> result{};
  for (int i = 0; i < lanes<double>; ++i) result[i] = exponential(static_cast<double>(value[i]));
  return result;
}

// Swaps bit `step` of the row and the column number: part of a transposition, for rows i and i + step.
template <class S, int step>
inline __attribute__((always_inline)) void exchange(Vector<S>& a, Vector<S>& b) {
#if defined(__clang__)
  const Vector<S> first = a, second = b;
  for (int k = 0; k < lanes<S>; ++k) {
    a[k] = k & step ? second[k - step] : first[k];
    b[k] = k & step ? second[k] : first[k + step];
  }
#else
  IntegerVector<S> lower{}, upper{};
  for (int k = 0; k < lanes<S>; ++k) {
    lower[k] = k & step ? lanes<S> + k - step : k;
    upper[k] = k & step ? lanes<S> + k : k + step;
  }
  const Vector<S> first = __builtin_shuffle(a, b, lower);
  b = __builtin_shuffle(a, b, upper);
  a = first;
#endif
}

template <class S, int step = 1>
inline __attribute__((always_inline)) void transpose(Vector<S> (&rows)[lanes<S>]) {
  if constexpr (step < lanes<S>) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes<S>; ++i)
      if (!(i & step)) exchange<S, step>(rows[i], rows[i + step]);
    transpose<S, 2 * step>(rows);
  }
}

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
