// The element types of tensors, and the type that is computed in (torch's opmath type).
#pragma once
#include <type_traits>

#include "cpu/scalar.h"
#include "tensor.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

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

// float, or double where the elements are float64.
template <class T> struct OpMathOf {
  using type = float;
};
template <> struct OpMathOf<double> {
  using type = double;
};
template <class T> using OpMath = typename OpMathOf<T>::type;

// One element to its opmath type and back (round to nearest, ties to even).
inline float to_opmath(float value) { return value; }
inline double to_opmath(double value) { return value; }
inline float to_opmath(bfloat16 value) { return bit_cast<float>(uint32_t{value.bits} << 16); }
inline float to_opmath(float16 value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16, rest = value.bits & 0x7fffu;
  // The exponent is moved to float's place and corrected by a multiplication, which also serves subnormals.
  float magnitude = bit_cast<float>(rest << 13) * 0x1p112f;
  if (rest >= 0x7c00u) magnitude = bit_cast<float>((rest << 13) | 0x7f800000u);
  return bit_cast<float>(bit_cast<uint32_t>(magnitude) | sign);
}

template <class T> inline T from_opmath(OpMath<T> value) { return value; }
template <> inline bfloat16 from_opmath<bfloat16>(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <> inline float16 from_opmath<float16>(float value) {
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

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
