#include "launch.h"
#include "pooling_kernels.h"

namespace pad::cuda {
namespace {

template <class T>
void forward(const PooledDistanceForward& a, void* stream) {
  constexpr int COLUMNS = POOLING_LANES * VECTOR<T>;
  PooledDifferenceParameters p{a, static_cast<int>(divide_up(a.width, COLUMNS)), {}};
  for (int side = SPEECH; side <= TEXT; ++side) {
    const Rows& values = a.values[side];
    p.aligned[side] = rows_aligned<T>(values.data, a.width, values.row_stride, values.batch_stride);
  }
  launch(a.batch * p.slabs, POOLING_THREADS, stream, pooled_difference_kernel<T>, p);
  launch(a.batch, POOLING_THREADS, stream, pooled_distance_kernel<OpMath<T>>, a);
}

template <class T>
void backward(const PooledDistanceBackward& a, void* stream) {
  PooledGradientParameters p{a, {}, {}};
  for (int side = SPEECH; side <= TEXT; ++side) {
    if (!a.grad_values[side]) continue;
    p.tiles[side] = static_cast<int>(divide_up(a.lengths[side], GRADIENT_ROWS));
    p.aligned[side] = rows_aligned<T>(a.grad_values[side], a.width, 0, 0);
  }
  launch(a.batch * (p.tiles[SPEECH] + p.tiles[TEXT]), POOLING_THREADS, stream, pooled_gradient_kernel<T>, p);
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
