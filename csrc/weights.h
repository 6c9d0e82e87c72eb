// What each position weighs: a mask and a prior folded into one number, on the CPU.
#pragma once
#include "tensor.h"

namespace pad {

// Of the priors, 0 for a position that is not valid.
struct PriorBounds {
  double lowest, highest;  // lowest is NaN if there is one
  double lowest_peak;      // of the rows that have a prior above 0, the lowest that a highest one is; 0: there is none
};

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
  PriorBounds* bounds;
};

void position_weights(const PositionWeights& arguments);

}  // namespace pad
