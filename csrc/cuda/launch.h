// Launching on the caller's stream, with every CUDA error turned into an exception.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace pad::cuda {

constexpr int64_t divide_up(int64_t number, int64_t by) { return (number + by - 1) / by; }
constexpr int64_t round_up(int64_t number, int64_t to) { return divide_up(number, to) * to; }

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("pad_kernels: CUDA: ") + what + ": " + cudaGetErrorString(status));
}

// A grid of one dimension; an empty one is not launched.
template <class... Parameters, class... Arguments>
void launch(int64_t blocks, int threads, void* stream, void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX) throw std::invalid_argument("pad_kernels: CUDA: the batch is too large for one launch");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "launch");
}

// Cuts one piece of memory into arrays; with no memory behind it, it only measures.
class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    T* taken = memory_ ? reinterpret_cast<T*>(memory_ + size_) : nullptr;
    size_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return taken;
  }

  int64_t size() const { return size_; }

 private:
  char* memory_;
  int64_t size_ = 0;
};

}  // namespace pad::cuda
