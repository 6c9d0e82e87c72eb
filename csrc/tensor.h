// What the ops know of a tensor: a pointer, an element type, strides in elements.
#pragma once
#include <cstdint>

namespace pad {

enum class Element : int { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };

// [batch, rows, width] with the width contiguous.
struct Rows {
  const void* data;
  int64_t batch_stride;
  int64_t row_stride;
};

}  // namespace pad
