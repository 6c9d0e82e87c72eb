#include "launch.h"
#include "pooling_kernels.h"

namespace pad::cuda {
namespace {

template <class T>
void forward(const PooledDistanceForward& a, void* stream) {
  const PooledDifferenceParameters parameters{a, (a.width + POOLING_COLUMNS - 1) / POOLING_COLUMNS};
  launch(a.batch * parameters.slabs, POOLING_THREADS, stream, pooled_difference_kernel<T>, parameters);
  launch(a.batch, POOLING_THREADS, stream, pooled_distance_kernel<OpMath<T>>, a);
}

template <class T>
void backward(const PooledDistanceBackward& a, void* stream) {
  for (int side = SPEECH; side <= TEXT; ++side) {
    if (!a.grad_values[side]) continue;
    const int64_t blocks = (a.batch * a.lengths[side] * a.width + POOLING_THREADS - 1) / POOLING_THREADS;
    launch(blocks, POOLING_THREADS, stream, pooled_gradient_kernel<T>, PooledGradientParameters{a, side});
  }
}

}  // namespace

void pooled_distance_forward(const PooledDistanceForward& a, const ExecutionContext& context) {
  if (a.element == Element::float64) return forward<double>(a, context.stream);
  with_element(a.element, [&](auto element) { forward<decltype(element)>(a, context.stream); });
}

void pooled_distance_backward(const PooledDistanceBackward& a, const ExecutionContext& context) {
  if (a.element == Element::float64) return backward<double>(a, context.stream);
  with_element(a.element, [&](auto element) { backward<decltype(element)>(a, context.stream); });
}

}  // namespace pad::cuda
