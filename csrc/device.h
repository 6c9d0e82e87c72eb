// What this library has for a GPU.
#pragma once
#include <string>

namespace pad::cuda {

// Where an op runs: launches go to a stream and return at once.
struct ExecutionContext {
  void* workspace;  // as many bytes as the op asks for, until the work is done
  void* stream;     // a cudaStream_t
};

std::string targets();  // what the kernels were compiled for; empty: no kernels in this build
std::string failure();  // why the CUDA runtime cannot be used; empty if it can

}  // namespace pad::cuda
