// Column sums of softmax attention: how much attention each position receives, without an attention map.
#pragma once
#include "tensor.h"

namespace pad {

// [batch, heads, length, width] with the width contiguous; strides in elements.
struct HeadRows {
  const void* data;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t row_stride;
};

// "Opmath" below is float, or double where the elements are float64.
struct SignificanceArguments {
  int64_t batch, heads, length, width;
  Element element;
  HeadRows query;
  HeadRows key;
  const uint8_t* mask;  // [batch, length], or null: all positions are valid
  const void* lse;      // opmath [batch, heads, length] log-sum-exp of each row of scaled scores, or null: not known
  double scale;
  void* out;  // opmath [batch, length]
  int threads;
};

void significance(const SignificanceArguments& arguments);

}  // namespace pad
