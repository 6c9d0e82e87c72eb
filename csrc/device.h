// What this library has for a GPU.
#pragma once
#include <string>

namespace pad::cuda {

std::string targets();  // what the kernels were compiled for; empty: no kernels in this build
std::string failure();  // why the CUDA runtime cannot be used; empty if it can

}  // namespace pad::cuda
