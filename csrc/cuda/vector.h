// 16 bytes at a time: whole vectors where rows are aligned, else the same columns one by one.
#pragma once
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "numeric.h"

namespace pad::cuda {

template <class T>
constexpr int VECTOR = 16 / static_cast<int>(sizeof(T));  // elements

template <class T>
__device__ inline void unpack(uint4 bits, OpMath<T> (&values)[VECTOR<T>]) {
  T elements[VECTOR<T>];
  memcpy(elements, &bits, sizeof bits);
#pragma unroll
  for (int i = 0; i < VECTOR<T>; ++i) values[i] = to_opmath(elements[i]);
}

template <class T>
__device__ inline uint4 pack(const OpMath<T> (&values)[VECTOR<T>]) {
  T elements[VECTOR<T>];
#pragma unroll
  for (int i = 0; i < VECTOR<T>; ++i) elements[i] = from_opmath<T>(values[i]);
  uint4 bits;
  memcpy(&bits, elements, sizeof bits);
  return bits;
}

// Rows can be read and written a vector at a time. Then their width is a number of whole vectors.
template <class T>
bool rows_aligned(const void* data, int64_t width, int64_t row_stride, int64_t batch_stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && (width | row_stride | batch_stride) % VECTOR<T> == 0;
}

template <class T>
__device__ inline const uint4* vector_at(const T* place) {
  return reinterpret_cast<const uint4*>(place);
}

// A vector of a row as it lies in memory; zeros beyond the width, and unless valid.
template <class T>
__device__ inline uint4 load_bits(const T* row, int column, int width, bool aligned, bool valid = true) {
  uint4 bits = {0, 0, 0, 0};
  if (aligned) {
    if (valid && column < width) bits = *vector_at(row + column);
    return bits;
  }
  T elements[VECTOR<T>];
#pragma unroll
  for (int i = 0; i < VECTOR<T>; ++i) elements[i] = valid && column + i < width ? row[column + i] : from_opmath<T>(0);
  memcpy(&bits, elements, sizeof bits);
  return bits;
}

template <class T>
__device__ inline void load_vector(const T* row, int column, int width, bool aligned, OpMath<T> (&values)[VECTOR<T>]) {
  unpack<T>(load_bits(row, column, width, aligned), values);
}

template <class T>
__device__ inline void store_vector(T* row, int column, int width, bool aligned, const OpMath<T> (&values)[VECTOR<T>]) {
  if (aligned) {
    if (column < width) *reinterpret_cast<uint4*>(row + column) = pack<T>(values);
    return;
  }
#pragma unroll
  for (int i = 0; i < VECTOR<T>; ++i)
    if (column + i < width) row[column + i] = from_opmath<T>(values[i]);
}

// The same into shared memory, whose vectors are always aligned: asynchronously where the row is too, until the group
// that it was committed with has been waited for.
template <class T>
__device__ inline void copy_vector(T* shared, const T* row, int column, int width, bool aligned, bool valid) {
  if (aligned && valid && column < width) {
    __pipeline_memcpy_async(shared, row + column, 16);
  } else if (aligned || !valid) {
    *reinterpret_cast<uint4*>(shared) = {0, 0, 0, 0};
  } else {
#pragma unroll 1
    for (int i = 0; i < VECTOR<T>; ++i) shared[i] = column + i < width ? row[column + i] : from_opmath<T>(0);
  }
}

// Several float32 of workspace, which is aligned.
template <int COUNT>
__device__ inline void load_floats(const float* from, float (&values)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i += 4) {
    float four[4];
    unpack<float>(*vector_at(from + i), four);
#pragma unroll
    for (int j = 0; j < 4; ++j) values[i + j] = four[j];
  }
}

}  // namespace pad::cuda
