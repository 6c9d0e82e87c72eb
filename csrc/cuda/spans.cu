#include <algorithm>

#include "launch.h"
#include "spans_kernels.h"

namespace pad::cuda {

int64_t select_spans_workspace(const SpanArguments& arguments) { return arguments.batch * arguments.frames; }

void select_spans(const SpanArguments& a, const ExecutionContext& context) {
  for (int64_t first = 0; first < a.scale_count; first += SCALES_AT_ONCE) {
    const int64_t count = std::min<int64_t>(SCALES_AT_ONCE, a.scale_count - first);
    SpanParameters parameters{a, first, count, {}, static_cast<uint8_t*>(context.workspace)};
    std::copy_n(a.scales + first, count, parameters.scales);
    launch(a.batch, SPAN_THREADS, context.stream, a.is_double ? spans_kernel<double> : spans_kernel<float>, parameters);
  }
}

}  // namespace pad::cuda
