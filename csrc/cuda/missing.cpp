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
void alignment_forward(const AlignmentForward&, const ExecutionContext&) { missing(); }
void alignment_backward(const AlignmentBackward&, const ExecutionContext&) { missing(); }
void select_spans(const SpanArguments&, const ExecutionContext&) { missing(); }
void pooled_distance_forward(const PooledDistanceForward&, const ExecutionContext&) { missing(); }
void pooled_distance_backward(const PooledDistanceBackward&, const ExecutionContext&) { missing(); }

}  // namespace pad::cuda
