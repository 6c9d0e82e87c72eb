#include "launch.h"
#include "spans_kernels.h"

namespace pad::cuda {

int64_t select_spans_workspace(const SpanArguments& arguments) { return arguments.batch * arguments.frames; }

void select_spans(const SpanArguments& a, const ExecutionContext& context) {
  if (a.scale_count > MAX_SCALES)
    throw std::invalid_argument("pad_kernels: CUDA: at most " + std::to_string(MAX_SCALES) + " scales, not " +
                                std::to_string(a.scale_count));
  SpanParameters parameters{a, {}, static_cast<uint8_t*>(context.workspace)};
  for (int64_t s = 0; s < a.scale_count; ++s) parameters.scales[s] = a.scales[s];
  launch(a.batch, SPAN_THREADS, context.stream, a.is_double ? spans_kernel<double> : spans_kernel<float>, parameters);
}

}  // namespace pad::cuda
