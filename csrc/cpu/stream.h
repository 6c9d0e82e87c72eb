// Large results, written past the caches, which have little room for them: that spares reading what was there.
#pragma once
#include "cpu/rows.h"
#include "memory.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// Whether `stream` may write a result of `count` rows.
template <class T>
inline bool can_stream(const void* rows, int64_t count, int64_t width) {
  return vector_bytes > 16 && count * width * static_cast<int64_t>(sizeof(T)) >= large_result_bytes &&
         width % lanes<OpMath<T>> == 0 && reinterpret_cast<uintptr_t>(rows) % vector_bytes == 0;
}

// `store` past the caches, at a multiple of the size of what is stored.
template <class T>
inline void stream(T* data, Vector<OpMath<T>> value) {
#if defined(__AVX2__)
  T stored[lanes<OpMath<T>>];
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

// The same, or past the caches.
template <class To, class From>
inline void write_row(To* to, const From* from, OpMath<To> scale, int64_t width, bool streamed) {
  if (!streamed) return scaled_copy(to, from, scale, width);
  for (int64_t i = 0; i < width; i += lanes<OpMath<To>>) stream(to + i, load(from + i) * scale);
}

// The same for whole rows, or past the caches.
template <class T>
inline void write_zero(T* to, int64_t count, bool streamed) {
  if (!streamed) return fill_zero(to, count);
  for (int64_t i = 0; i < count; i += lanes<OpMath<T>>) stream(to + i, Vector<OpMath<T>>{});
}

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
