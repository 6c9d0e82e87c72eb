// float16 on the CPU.
#pragma once
#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};

inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  const float sign = value.bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp(float(fraction), -24));
}

inline __half __float2half_rn(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (value != value) return {0x7fff};
  const float size = std::fabs(value);
  if (size == 0) return {sign};
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  int exponent = 0;
  std::frexp(size, &exponent);
  if (exponent < -13) exponent = -13;  // subnormal: a fixed step of 2^-24
  const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, 11 - exponent)));
  // 1024 steps or more carry into the exponent, as they should.
  return {static_cast<uint16_t>(sign | ((exponent + 13 << 10) + steps))};
}
