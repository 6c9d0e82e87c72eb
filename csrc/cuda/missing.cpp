// Stands in for the CUDA kernels where the library is built without a CUDA compiler.
#include <stdexcept>

#include "alignment.h"
#include "device.h"
#include "pooling.h"
#include "spans.h"

namespace pad::cuda {
namespace {

[[noreturn]] void missing() { throw std::runtime_error("pad_kernels: built without CUDA kernels"); }

}  // namespace

std::string targets() { return ""; }
std::string failure() { return "built without CUDA kernels"; }

int64_t alignment_forward_workspace(const AlignmentForward&) { missing(); }
int64_t alignment_backward_workspace(const AlignmentBackward&) { missing(); }
int64_t select_spans_workspace(const SpanArguments&) { missing(); }
void alignment_forward(const AlignmentForward&, void*, void*) { missing(); }
void alignment_backward(const AlignmentBackward&, void*, void*) { missing(); }
void select_spans(const SpanArguments&, void*, void*) { missing(); }
void pooled_distance_forward(const PooledDistanceForward&, void*, void*) { missing(); }
void pooled_distance_backward(const PooledDistanceBackward&, void*, void*) { missing(); }

}  // namespace pad::cuda
