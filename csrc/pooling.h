// Weighted sums of rows: sum_l weights[b, l] * values[b, l, :], forward and backward.
#pragma once
#include "tensor.h"

namespace pad {

// "Accumulator" below is float, or double where the elements are float64.
struct PoolingArguments {
  int64_t batch, length, width;
  Element element;
  const void* weights;  // accumulator [batch, length]; a row of weight 0 is never read
  int threads;
};

struct PoolingForward : PoolingArguments {
  Rows values;
  void* out;  // accumulator [batch, width]
};

struct PoolingBackward : PoolingArguments {
  const void* grad;   // accumulator [batch, width]
  void* grad_values;  // [batch, length, width] contiguous, in the elements' type
};

void pooling_forward(const PoolingForward& arguments);
void pooling_backward(const PoolingBackward& arguments);

namespace cuda {
void pooling_forward(const PoolingForward& arguments, void* workspace, void* stream);  // workspace: none needed
void pooling_backward(const PoolingBackward& arguments, void* workspace, void* stream);
}  // namespace cuda

}  // namespace pad
