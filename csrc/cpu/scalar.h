// Arithmetic on single numbers.
//
// Everything in this folder's headers has internal linkage, and no inline function of the standard library is used
// beside it: the linker merges equal inline functions, and must not hand AVX-512 code to an older CPU.
#pragma once
#include <cstdint>
#include <cstring>

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

inline float exponential(float value) { return __builtin_expf(value); }
inline double exponential(double value) { return __builtin_exp(value); }
inline float logarithm(float value) { return __builtin_logf(value); }
inline double logarithm(double value) { return __builtin_log(value); }
inline float square_root(float value) { return __builtin_sqrtf(value); }
inline double square_root(double value) { return __builtin_sqrt(value); }

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
