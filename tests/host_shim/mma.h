// 16 x 16 x 16 matrix products on the CPU: each of a warp's 32 lanes keeps half a row of the result.
#pragma once
#include <type_traits>

#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace nvcuda::wmma {

struct row_major {};
struct col_major {};
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
enum layout_t { mem_row_major };

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static_assert(M == 16 && N == 16 && K == 16, "16 x 16 x 16 alone");
  // matrix_a: a row of 16; matrix_b: 16 rows of 8 columns; accumulator: 8 columns of a row.
  float value[std::is_same_v<Use, matrix_a> ? 16 : std::is_same_v<Use, matrix_b> ? 128 : 8];
};

inline int row() { return threadIdx.x % 32 / 2; }
inline int first_column() { return threadIdx.x % 2 * 8; }

inline float to_float(__half value) { return __half2float(value); }
inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

inline void check_address(const void* address, size_t stride_in_bytes) {
  if (reinterpret_cast<uintptr_t>(address) % 32 || stride_in_bytes % 16) {
    std::fputs("wmma: misaligned address or stride\n", stderr);
    std::abort();
  }
}

template <class T, class Layout>
void load_matrix_sync(fragment<matrix_a, 16, 16, 16, T, Layout>& a, const T* from, unsigned stride) {
  check_address(from, stride * sizeof(T));
  for (int k = 0; k < 16; ++k)
    a.value[k] = to_float(std::is_same_v<Layout, row_major> ? from[row() * stride + k] : from[k * stride + row()]);
}

template <class T, class Layout>
void load_matrix_sync(fragment<matrix_b, 16, 16, 16, T, Layout>& b, const T* from, unsigned stride) {
  check_address(from, stride * sizeof(T));
  for (int k = 0; k < 16; ++k)
    for (int i = 0; i < 8; ++i) {
      const int column = first_column() + i;
      b.value[k * 8 + i] =
          to_float(std::is_same_v<Layout, row_major> ? from[k * stride + column] : from[column * stride + k]);
    }
}

inline void fill_fragment(fragment<accumulator, 16, 16, 16, float>& c, float value) {
  for (float& element : c.value) element = value;
}

template <class T, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& d, const fragment<matrix_a, 16, 16, 16, T, LayoutA>& a,
              const fragment<matrix_b, 16, 16, 16, T, LayoutB>& b, const fragment<accumulator, 16, 16, 16, float>& c) {
  for (int i = 0; i < 8; ++i) {
    float sum = c.value[i];
    for (int k = 0; k < 16; ++k) sum += a.value[k] * b.value[k * 8 + i];
    d.value[i] = sum;
  }
}

inline void store_matrix_sync(float* to, const fragment<accumulator, 16, 16, 16, float>& c, unsigned stride, layout_t) {
  check_address(to, stride * sizeof(float));
  for (int i = 0; i < 8; ++i) to[row() * stride + first_column() + i] = c.value[i];
}

}  // namespace nvcuda::wmma
