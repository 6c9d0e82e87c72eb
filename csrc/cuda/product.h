// C [ROWS, COLUMNS] += op(A) op(B) of tiles in shared memory, C spread over the 128 threads of a block: tensor cores
// for half precision, multiply-add for float32. Rows of the tiles are padded so that neighbors lie in other banks.
#pragma once
#include "fragments.h"
#include "vector.h"

namespace pad::cuda {

constexpr int THREADS = 128;

// A[row, k] = a[row * lda + k], transposed a[k * lda + row]; B[k, column] = b[k * ldb + column], transposed
// b[column * ldb + k].
template <class T, int ROWS, int COLUMNS, bool A_TRANSPOSED, bool B_TRANSPOSED>
class Product {
 public:
  static constexpr int SCRATCH_STRIDE = COLUMNS + 4;
  static constexpr int SCRATCH = ROWS * SCRATCH_STRIDE;  // float32 numbers that `store` needs room for

  __device__ void zero() {
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int j = 0; j < J; ++j) nvcuda::wmma::fill_fragment(sum_[i][j], 0.0f);
  }

  __device__ void add(const T* a, int lda, const T* b, int ldb, int depth) {
    namespace wmma = nvcuda::wmma;
    Fragment<wmma::matrix_a, T, Layout<A_TRANSPOSED>> left[I];
    Fragment<wmma::matrix_b, T, Layout<B_TRANSPOSED>> right;
    for (int k = 0; k < depth; k += 16) {
#pragma unroll
      for (int i = 0; i < I; ++i) load_shared(left[i], a + (A_TRANSPOSED ? k * lda + row(i) : row(i) * lda + k), lda);
#pragma unroll
      for (int j = 0; j < J; ++j) {
        load_shared(right, b + (B_TRANSPOSED ? column(j) * ldb + k : k * ldb + column(j)), ldb);
#pragma unroll
        for (int i = 0; i < I; ++i) wmma::mma_sync(sum_[i][j], left[i], right, sum_[i][j]);
      }
    }
  }

  __device__ void store(float* c) const {
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int j = 0; j < J; ++j)
        nvcuda::wmma::store_matrix_sync(c + row(i) * SCRATCH_STRIDE + column(j), sum_[i][j], SCRATCH_STRIDE,
                                        nvcuda::wmma::mem_row_major);
  }

 private:
  template <bool TRANSPOSED>
  using Layout = std::conditional_t<TRANSPOSED, nvcuda::wmma::col_major, nvcuda::wmma::row_major>;
  static constexpr int I = ROWS / 32, J = COLUMNS / 32;

  __device__ static int row(int i) { return (threadIdx.x / 64 * I + i) * 16; }
  __device__ static int column(int j) { return (threadIdx.x / 32 % 2 * J + j) * 16; }

  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sum_[I][J];
};

// Four steps of the depth at a time, each operand read 16 bytes at a time.
template <int ROWS, int COLUMNS, bool A_TRANSPOSED, bool B_TRANSPOSED>
class Product<float, ROWS, COLUMNS, A_TRANSPOSED, B_TRANSPOSED> {
 public:
  static constexpr int SCRATCH_STRIDE = COLUMNS + 4;
  static constexpr int SCRATCH = ROWS * SCRATCH_STRIDE;

  __device__ void zero() {
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int j = 0; j < J; ++j) sum_[i][j] = 0;
  }

  // What is added is summed by itself first: one long sum would round more.
  __device__ void add(const float* a, int lda, const float* b, int ldb, int depth) {
    float part[I][J] = {};
#pragma unroll 2
    for (int k = 0; k < depth; k += 4) {
      float left[4][I], right[4][J];
      load<A_TRANSPOSED, I>(a, lda, k, [](int i) { return row(i); }, left);
      load<!B_TRANSPOSED, J>(b, ldb, k, [](int j) { return column(j); }, right);
#pragma unroll
      for (int q = 0; q < 4; ++q)
#pragma unroll
        for (int i = 0; i < I; ++i)
#pragma unroll
          for (int j = 0; j < J; ++j) part[i][j] += left[q][i] * right[q][j];
    }
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int j = 0; j < J; ++j) sum_[i][j] += part[i][j];
  }

  __device__ void store(float* c) const {
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int j = 0; j < J; ++j) c[row(i) * SCRATCH_STRIDE + column(j)] = sum_[i][j];
  }

 private:
  static constexpr int I = ROWS / 16, J = COLUMNS / 8;

  // Neighboring threads read neighboring vectors: along the row, or of rows that lie in other banks.
  __device__ static int row(int i) {
    return A_TRANSPOSED ? threadIdx.x / 8 * I + i : static_cast<int>(threadIdx.x / 8) + 16 * i;
  }
  __device__ static int column(int j) {
    return B_TRANSPOSED ? static_cast<int>(threadIdx.x % 8) + 8 * j : threadIdx.x % 8 * 4 + j / 4 * 32 + j % 4;
  }

  // Depths [k, k + 4) of an operand at this thread's places.
  template <bool ALONG, int COUNT, class Place>
  __device__ static void load(const float* from, int stride, int k, Place place, float (&to)[4][COUNT]) {
    if constexpr (ALONG && COUNT % 4 == 0) {  // places are neighbors in memory
#pragma unroll
      for (int q = 0; q < 4; ++q)
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
          float four[4];
          unpack<float>(*vector_at(from + (k + q) * stride + place(i)), four);
#pragma unroll
          for (int n = 0; n < 4; ++n) to[q][i + n] = four[n];
        }
    } else if constexpr (ALONG) {
#pragma unroll
      for (int q = 0; q < 4; ++q)
#pragma unroll
        for (int i = 0; i < COUNT; ++i) to[q][i] = from[(k + q) * stride + place(i)];
    } else {  // depths are
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        float four[4];
        unpack<float>(*vector_at(from + place(i) * stride + k), four);
#pragma unroll
        for (int q = 0; q < 4; ++q) to[q][i] = four[q];
      }
    }
  }

  float sum_[I][J];
};

}  // namespace pad::cuda
