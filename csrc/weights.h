// What each position weighs: a mask and a prior folded into one number, on the CPU.
#pragma once
#include "tensor.h"

namespace pad {

// Of [batch, length]: the prior, or without priors 1 / (number of valid positions).
struct PositionWeights {
  int64_t batch, length;
  const uint8_t* mask;  // [batch, length], or null: all are valid
  const void* prior;    // [batch, length], or null
  Element element;      // of the prior
  bool normalized;      // divide by the sum of the row, unless that is 0
  double masked;        // the weight of a position that is not valid
  void* weights;        // opmath [batch, length]: float, or double where is_double
  bool is_double;
  double* bounds;  // lowest and highest prior, 0 for a position that is not valid; lowest is NaN if there is one
};

void position_weights(const PositionWeights& arguments);

}  // namespace pad
