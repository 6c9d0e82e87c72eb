// Vectors of the widest kind that the instruction set of this translation unit has.
//
// Everything here and in microkernel.h has internal linkage, and no inline function of the standard library
// is used beside it: the linker merges equal inline functions, and must not hand AVX-512 code to an older CPU.
#pragma once
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>

#include "tensor.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
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
#else
constexpr int vector_bytes = 16;
constexpr int vector_registers = 16;
#endif

template <class Scalar, int bytes>
struct VectorOf {
  typedef Scalar type __attribute__((vector_size(bytes)));
};

struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

// Calls action with a value of the element's type.
template <class Action>
inline void with_element(Element element, const Action& action) {
  switch (element) {
    case Element::float32: return action(float{});
    case Element::float64: return action(double{});
    case Element::bfloat16: return action(bfloat16{});
    case Element::float16: return action(float16{});
  }
}

// What sums of an element type are kept in.
template <class T> struct AccumulatorOf { using type = float; };
template <> struct AccumulatorOf<double> { using type = double; };
template <class T> using Accumulator = typename AccumulatorOf<T>::type;

template <class S> using Vector = typename VectorOf<S, vector_bytes>::type;
template <class S> using Integer = std::conditional_t<sizeof(S) == 4, int32_t, int64_t>;
template <class S> using IntegerVector = Vector<Integer<S>>;
template <class S> constexpr int lanes = vector_bytes / static_cast<int>(sizeof(S));

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <class S> inline Vector<S> broadcast(S value) { return value - Vector<S>{}; }

// Two neighbours in a row, multiplied with two others in one step where the processor can.
struct Pair { bfloat16 first, second; };
#if defined(__AVX512BF16__)
constexpr bool multiplies_pairs = true;
#else
constexpr bool multiplies_pairs = false;
#endif

inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// One element to its accumulator type and back (round to nearest, ties to even).
inline float to_accumulator(float value) { return value; }
inline double to_accumulator(double value) { return value; }
inline float to_accumulator(bfloat16 value) { return bit_cast<float>(uint32_t{value.bits} << 16); }
inline float to_accumulator(float16 value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16, rest = value.bits & 0x7fffu;
  // The exponent is moved to float's place and corrected by a multiplication, which also serves subnormals.
  float magnitude = bit_cast<float>(rest << 13) * 0x1p112f;
  if (rest >= 0x7c00u) magnitude = bit_cast<float>((rest << 13) | 0x7f800000u);
  return bit_cast<float>(bit_cast<uint32_t>(magnitude) | sign);
}

template <class T> struct Rounded;
template <> struct Rounded<float> { static float from(float value) { return value; } };
template <> struct Rounded<double> { static double from(double value) { return value; } };
template <> struct Rounded<bfloat16> {
  static bfloat16 from(float value) {
    const uint32_t bits = bit_cast<uint32_t>(value);
    if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
    return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
  }
};
template <> struct Rounded<float16> {
  static float16 from(float value) {
    const uint32_t bits = bit_cast<uint32_t>(value), sign = (bits >> 16) & 0x8000u;
    const float magnitude = bit_cast<float>(bits & 0x7fffffffu);
    if (value != value) return {static_cast<uint16_t>(sign | 0x7e00u)};
    if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00u)};
    if (magnitude < 0x1p-14f) {
      // Adding 0.5 puts the subnormal's last place at float's last place, so the sum rounds as wanted.
      const uint32_t subnormal = bit_cast<uint32_t>(magnitude + 0.5f) - bit_cast<uint32_t>(0.5f);
      return {static_cast<uint16_t>(sign | subnormal)};
    }
    const uint32_t rounded = bit_cast<uint32_t>(magnitude) + 0xfffu + ((bit_cast<uint32_t>(magnitude) >> 13) & 1u);
    return {static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13))};
  }
};

// A vector of consecutive elements, in their accumulator type.
template <class T>
inline Vector<Accumulator<T>> load(const T* data) {
  if constexpr (sizeof(T) == sizeof(Accumulator<T>)) {
    Vector<Accumulator<T>> value;
    std::memcpy(&value, data, sizeof(value));
    return value;
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    typename VectorOf<uint16_t, vector_bytes / 2>::type half;
    std::memcpy(&half, data, sizeof(half));
    return bit_cast<Vector<float>>(__builtin_convertvector(half, Vector<uint32_t>) << 16);
  } else {
#if defined(__AVX512F__)
    __m256i half;
    std::memcpy(&half, data, sizeof(half));
    return bit_cast<Vector<float>>(_mm512_cvtph_ps(half));
#elif defined(__AVX2__)
    __m128i half;
    std::memcpy(&half, data, sizeof(half));
    return bit_cast<Vector<float>>(_mm256_cvtph_ps(half));
#else
    Vector<float> value;
    for (int i = 0; i < lanes<float>; ++i) value[i] = to_accumulator(data[i]);
    return value;
#endif
  }
}

template <class T>
inline void store(T* data, Vector<Accumulator<T>> value) {
  if constexpr (sizeof(T) == sizeof(Accumulator<T>)) {
    std::memcpy(data, &value, sizeof(value));
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    using Bits = Vector<uint32_t>;
    const Bits bits = bit_cast<Bits>(value);
    const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Bits nan = (bits >> 16) | 0x40u;
    const Bits result = value != value ? nan : rounded;
    const auto half = __builtin_convertvector(result, typename VectorOf<uint16_t, vector_bytes / 2>::type);
    std::memcpy(data, &half, sizeof(half));
  } else {
#if defined(__AVX512F__)
    const __m256i half = _mm512_cvtps_ph(bit_cast<__m512>(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(data, &half, sizeof(half));
#elif defined(__AVX2__)
    const __m128i half = _mm256_cvtps_ph(bit_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(data, &half, sizeof(half));
#else
    for (int i = 0; i < lanes<float>; ++i) data[i] = Rounded<float16>::from(value[i]);
#endif
  }
}

// Results of this size find little room in the caches: they are written past them, which spares reading what was there.
constexpr int64_t streamed_bytes = int64_t{1} << 23;

// Whether `stream` may write a result of `count` rows.
template <class T>
inline bool can_stream(const void* rows, int64_t count, int64_t width) {
  return vector_bytes > 16 && count * width * static_cast<int64_t>(sizeof(T)) >= streamed_bytes &&
         width % lanes<Accumulator<T>> == 0 && reinterpret_cast<uintptr_t>(rows) % vector_bytes == 0;
}

// `store` past the caches, at a multiple of the size of what is stored.
template <class T>
inline void stream(T* data, Vector<Accumulator<T>> value) {
#if defined(__AVX2__)
  T stored[lanes<Accumulator<T>>];
  store(stored, value);
  if constexpr (sizeof(stored) == 64) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(data), _mm512_loadu_si512(stored));
#endif
  } else if constexpr (sizeof(stored) == 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(data), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(stored)));
  } else {
    _mm_stream_si128(reinterpret_cast<__m128i*>(data), _mm_loadu_si128(reinterpret_cast<const __m128i*>(stored)));
  }
#else
  store(data, value);
#endif
}

// Other threads see what was streamed before.
inline void end_stream() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

template <class S>
inline S sum_lanes(Vector<S> value) {
  S parts[lanes<S>];
  std::memcpy(parts, &value, sizeof(value));
  for (int width = lanes<S> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
  return parts[0];
}

inline float exponential(float value) { return __builtin_expf(value); }
inline double exponential(double value) { return __builtin_exp(value); }
inline float logarithm(float value) { return __builtin_logf(value); }
inline double logarithm(double value) { return __builtin_log(value); }
inline float square_root(float value) { return __builtin_sqrtf(value); }
inline double square_root(double value) { return __builtin_sqrt(value); }

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

// Row-wise work over `width` elements: whole vectors, then the rest one by one.
template <class T>
inline Accumulator<T> dot(const T* a, const Accumulator<T>* b, int64_t width) {
  using S = Accumulator<T>;
  Vector<S> sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes<S> <= width; i += 4 * lanes<S>)
    for (int v = 0; v < 4; ++v) sums[v] += load(a + i + v * lanes<S>) * load(b + i + v * lanes<S>);
  for (; i + lanes<S> <= width; i += lanes<S>) sums[0] += load(a + i) * load(b + i);
  S total = sum_lanes<S>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < width; ++i) total += to_accumulator(a[i]) * b[i];
  return total;
}

template <class T>
inline Accumulator<T> sum_of_squares(const T* a, int64_t width) {
  using S = Accumulator<T>;
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
  for (; i < width; ++i) total += to_accumulator(a[i]) * to_accumulator(a[i]);
  return total;
}

// to = scale * from, in the type of `to`.
template <class To, class From>
inline void scaled_copy(To* to, const From* from, Accumulator<To> scale, int64_t width) {
  int64_t i = 0;
  for (; i + lanes<Accumulator<To>> <= width; i += lanes<Accumulator<To>>) store(to + i, load(from + i) * scale);
  for (; i < width; ++i) to[i] = Rounded<To>::from(to_accumulator(from[i]) * scale);
}

// The same, or past the caches.
template <class To, class From>
inline void write_row(To* to, const From* from, Accumulator<To> scale, int64_t width, bool streamed) {
  if (!streamed) return scaled_copy(to, from, scale, width);
  for (int64_t i = 0; i < width; i += lanes<Accumulator<To>>) stream(to + i, load(from + i) * scale);
}

// to += scale * from
template <class From>
inline void scaled_add(Accumulator<From>* to, const From* from, Accumulator<From> scale, int64_t width) {
  using S = Accumulator<From>;
  int64_t i = 0;
  for (; i + lanes<S> <= width; i += lanes<S>) store(to + i, load(to + i) + load(from + i) * scale);
  for (; i < width; ++i) to[i] += to_accumulator(from[i]) * scale;
}

template <class T>
inline void fill_zero(T* to, int64_t count) {
  std::memset(static_cast<void*>(to), 0, static_cast<size_t>(count) * sizeof(T));
}

// The same for whole rows, or past the caches.
template <class T>
inline void write_zero(T* to, int64_t count, bool streamed) {
  if (!streamed) return fill_zero(to, count);
  for (int64_t i = 0; i < count; i += lanes<Accumulator<T>>) stream(to + i, Vector<Accumulator<T>>{});
}

// Uninitialised memory of one task, aligned to a vector.
template <class S>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<S*>(::operator new(static_cast<size_t>(size > 0 ? size : 1) * sizeof(S), alignment))) {}
  ~Buffer() { ::operator delete(data_, alignment); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  S* data() const { return data_; }
  S& operator[](int64_t i) const { return data_[i]; }

 private:
  static constexpr std::align_val_t alignment{64};
  S* data_;
};

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
