// C [64, COLUMNS] += op(A) op(B) of tiles in shared memory, C spread over the 256 threads of a block:
// tensor cores for half precision, multiply-add for float32.
#pragma once
#include <mma.h>

#include "numeric.h"

namespace pad::cuda {

constexpr int THREADS = 256;
constexpr int TILE = 64;  // tokens, or units, of a tile

template <class T, int COLUMNS>
class Product {
 public:
  __device__ void zero() {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) nvcuda::wmma::fill_fragment(sum_[i], 0.0f);
  }

  // A[row, k] = a[row * lda + k], transposed a[k * lda + row]; B[k, column] = b[k * ldb + column], transposed
  // b[column * ldb + k].
  template <bool A_TRANSPOSED, bool B_TRANSPOSED>
  __device__ void add(const T* a, int lda, const T* b, int ldb, int depth) {
    namespace wmma = nvcuda::wmma;
    wmma::fragment<wmma::matrix_a, 16, 16, 16, T, Layout<A_TRANSPOSED>> left;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, T, Layout<B_TRANSPOSED>> right;
    for (int k = 0; k < depth; k += 16) {
      wmma::load_matrix_sync(left, a + (A_TRANSPOSED ? k * lda + row() : row() * lda + k), lda);
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        wmma::load_matrix_sync(right, b + (B_TRANSPOSED ? column(i) * ldb + k : k * ldb + column(i)), ldb);
        wmma::mma_sync(sum_[i], left, right, sum_[i]);
      }
    }
  }

  __device__ void store(float* c, int ldc) const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
      nvcuda::wmma::store_matrix_sync(c + row() * ldc + column(i), sum_[i], ldc, nvcuda::wmma::mem_row_major);
  }

 private:
  template <bool TRANSPOSED>
  using Layout = std::conditional_t<TRANSPOSED, nvcuda::wmma::col_major, nvcuda::wmma::row_major>;
  static constexpr int COUNT = COLUMNS / 32;

  __device__ static int row() { return threadIdx.x / 32 % 4 * 16; }
  __device__ static int column(int i) { return (threadIdx.x / 128 + 2 * i) * 16; }

  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sum_[COUNT];
};

template <int COLUMNS>
class Product<float, COLUMNS> {
 public:
  __device__ void zero() {
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
      for (int j = 0; j < COUNT; ++j) sum_[i][j] = 0;
  }

  template <bool A_TRANSPOSED, bool B_TRANSPOSED>
  __device__ void add(const float* a, int lda, const float* b, int ldb, int depth) {
    for (int k = 0; k < depth; ++k) {
      float left[ROWS], right[COUNT];
#pragma unroll
      for (int i = 0; i < ROWS; ++i) left[i] = A_TRANSPOSED ? a[k * lda + row(i)] : a[row(i) * lda + k];
#pragma unroll
      for (int j = 0; j < COUNT; ++j) right[j] = B_TRANSPOSED ? b[column(j) * ldb + k] : b[k * ldb + column(j)];
#pragma unroll
      for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int j = 0; j < COUNT; ++j) sum_[i][j] += left[i] * right[j];
    }
  }

  __device__ void store(float* c, int ldc) const {
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
      for (int j = 0; j < COUNT; ++j) c[row(i) * ldc + column(j)] = sum_[i][j];
  }

 private:
  static constexpr int ROWS = 4, COUNT = COLUMNS / 16;

  __device__ static int row(int i) { return threadIdx.x / 16 * ROWS + i; }
  __device__ static int column(int j) { return threadIdx.x % 16 + 16 * j; }

  float sum_[ROWS][COUNT];
};

}  // namespace pad::cuda
