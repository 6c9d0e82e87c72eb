#include "alignment_forward_kernels.h"
#include "launch.h"
#include "partition.h"

namespace pad::cuda {

int64_t alignment_forward_workspace(const AlignmentForward& arguments) {
  Workspace workspace(nullptr);
  const Partition units = partition(arguments, 1);
  workspace.take<RowState>(arguments.batch * units.parts * arguments.tokens);
  return workspace.size();
}

void alignment_forward(const AlignmentForward& a, const ExecutionContext& context) {
  Workspace workspace(context.workspace);
  const Partition units = partition(a, 1);
  const ForwardParameters parameters{a, units, workspace.take<RowState>(a.batch * units.parts * a.tokens)};
  const int64_t blocks = a.batch * units.token_tiles * units.parts;
  with_element(a.element, [&](auto element) {
    using T = decltype(element);
    launch(blocks, THREADS, context.stream, a.start ? forward_kernel<Kind<T, true>> : forward_kernel<Kind<T, false>>,
           parameters);
  });
  launch((a.batch * a.tokens + THREADS - 1) / THREADS, THREADS, context.stream, merge_kernel<>, parameters);
}

}  // namespace pad::cuda
