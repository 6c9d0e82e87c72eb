// Loads of wmma fragments from shared memory. For bfloat16 the wmma API reads it as if it could be any memory, four
// bytes at a time; told that it is shared, the same instruction reads whole matrices.
#pragma once
#include <mma.h>

#include <type_traits>

#include "numeric.h"

namespace pad::cuda {

template <class Use, class T, class Layout>
using Fragment = nvcuda::wmma::fragment<Use, 16, 16, 16, T, Layout>;

template <class Use, class T, class Layout>
__device__ void load_shared(Fragment<Use, T, Layout>& fragment, const T* shared, int stride) {
#ifdef __CUDA_ARCH__
#define PAD_LOAD_FRAGMENT(OPERAND, LAYOUT)                                                                    \
  asm volatile("wmma.load." OPERAND ".sync.aligned." LAYOUT ".m16n16k16.shared.bf16 {%0,%1,%2,%3}, [%4], %5;" \
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])                                           \
               : "r"(from), "r"(stride)                                                                       \
               : "memory")
  if constexpr (std::is_same_v<T, bfloat16>) {
    static_assert(sizeof(fragment) == 16, "four registers");
    auto* to = reinterpret_cast<uint32_t*>(&fragment);
    const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    constexpr bool LEFT = std::is_same_v<Use, nvcuda::wmma::matrix_a>;
    constexpr bool ROWS = std::is_same_v<Layout, nvcuda::wmma::row_major>;
    if constexpr (LEFT && ROWS) PAD_LOAD_FRAGMENT("a", "row");
    else if constexpr (LEFT) PAD_LOAD_FRAGMENT("a", "col");
    else if constexpr (ROWS) PAD_LOAD_FRAGMENT("b", "row");
    else PAD_LOAD_FRAGMENT("b", "col");
    return;
  }
#undef PAD_LOAD_FRAGMENT
#endif
  nvcuda::wmma::load_matrix_sync(fragment, shared, stride);
}

}  // namespace pad::cuda
