// Runs CUDA C++ sources on the CPU, blocks one after another: a fibre for each thread of a block, or, where
// races are looked for, a host thread. Only what the kernels of csrc/cuda use is here. Values of `__shared__`
// variables outlive a block, as stale memory would; a thread that returns no longer takes part in barriers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned x_) : x(x_) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
inline const char* cudaGetErrorString(cudaError_t status) { return status ? "invalid configuration" : "no error"; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

#ifdef __SANITIZE_THREAD__
#include "threads.h"
#else
#include "fibres.h"
#endif

inline void __syncthreads() { host_shim::block_barrier(0); }
inline int __syncthreads_or(int vote) { return host_shim::block_barrier(vote != 0) != 0; }
inline unsigned __ballot_sync(unsigned, bool vote) {
  return host_shim::warp_barrier(unsigned{vote} << threadIdx.x % 32);
}

// All 32 threads of the warp take part.
template <class S>
S __shfl_xor_sync(unsigned, S value, int distance) {
  static_assert(sizeof(S) <= 8, "shuffle");
  static uint64_t exchanged[1024];
  std::memcpy(&exchanged[threadIdx.x], &value, sizeof value);
  host_shim::warp_barrier(0);
  std::memcpy(&value, &exchanged[threadIdx.x ^ static_cast<unsigned>(distance)], sizeof value);
  host_shim::warp_barrier(0);
  return value;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  const unsigned threads = config->blockDim.x;
  if (config->gridDim.x == 0 || threads == 0 || threads > 1024 || threads % 32) return cudaErrorInvalidConfiguration;
  static std::mutex one_launch_at_a_time;
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  host_shim::run(config->gridDim.x, threads, [&] { kernel(static_cast<Parameters>(arguments)...); });
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t size, cudaStream_t) {
  std::memset(memory, value, size);
  return cudaSuccess;
}

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }

template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline unsigned __float_as_uint(float value) { return bit_cast<unsigned>(value); }
inline long long __double_as_longlong(double value) { return bit_cast<long long>(value); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
