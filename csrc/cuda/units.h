// What tokens align with: the frames themselves, or spans that were pooled before.
#pragma once
#include "alignment.h"
#include "product.h"

namespace pad::cuda {

constexpr float EPSILON = static_cast<float>(norm_epsilon);

struct Units {
  Rows rows;
  const void* remainder;  // what rounding a pooled row left over, laid out as the rows; or null
  const float* prior;     // [batch, count] of the softmax: the mean weight of a unit's frames; 0: takes no part
  int count;
  int width;  // columns that can be read: those of a pooled row are padded with zeros
  bool aligned;
};

// Ranges of frames, and the gradients of their pooled rows: what the frames gather from.
struct Pieces {
  int count;       // of an utterance
  int* start;      // [batch, count]
  int* end;        // start == end: nothing here
  float* total;    // sum of the frames' weights in the range
  void* gradient;  // [batch, count, pitch]
  int pitch;
};

// The gradient of a unit, before it is spread to frames: bfloat16 has the range for it.
template <class T>
using PieceElement = std::conditional_t<std::is_same_v<T, float16>, float, T>;

// A vector of T's columns of a row of workspace, of T or of float32.
template <class T, class Out>
__device__ void store_columns(Out* row, int column, int width, bool aligned, const float (&values)[VECTOR<T>]) {
  if constexpr (std::is_same_v<T, Out>) {
    store_vector(row, column, width, aligned, values);
  } else if (column < width) {
#pragma unroll
    for (int v = 0; v < VECTOR<T>; v += 4) {
      const float four[4] = {values[v], values[v + 1], values[v + 2], values[v + 3]};
      *reinterpret_cast<uint4*>(row + column + v) = pack<float>(four);
    }
  }
}

template <class T, class In>
__device__ void load_columns(const In* row, int column, float (&values)[VECTOR<T>]) {
  if constexpr (std::is_same_v<T, In>) unpack<T>(*vector_at(row + column), values);
  else load_floats(row + column, values);
}

__device__ inline float inverse_norm(float squares) { return 1 / fmaxf(sqrtf(squares), EPSILON); }

// Whether the norm depends on the vector: at eps and below the denominator is a constant.
__device__ inline bool has_direction(float inverse) { return inverse * EPSILON < 1.0f; }

}  // namespace pad::cuda
