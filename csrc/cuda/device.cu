#include "device.h"

#include <cuda_runtime.h>

namespace pad::cuda {

std::string targets() { return PAD_CUDA_TARGETS; }

std::string failure() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  return status == cudaSuccess ? "" : cudaGetErrorString(status);
}

}  // namespace pad::cuda
