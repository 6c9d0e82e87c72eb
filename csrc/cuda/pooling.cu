#include "launch.h"
#include "pooling_kernels.h"

namespace pad::cuda {

void pooling_forward(const PoolingForward& a, void*, void* stream) {
  const PoolingForwardParameters parameters{a, (a.width + POOLING_COLUMNS - 1) / POOLING_COLUMNS};
  const int64_t blocks = a.batch * parameters.slabs;
  if (a.element == Element::float64)
    return launch(blocks, POOLING_THREADS, stream, pooling_forward_kernel<double>, parameters);
  with_element(a.element, [&](auto element) {
    launch(blocks, POOLING_THREADS, stream, pooling_forward_kernel<decltype(element)>, parameters);
  });
}

void pooling_backward(const PoolingBackward& a, void*, void* stream) {
  const int64_t blocks = (a.batch * a.length * a.width + POOLING_THREADS - 1) / POOLING_THREADS;
  if (a.element == Element::float64)
    return launch(blocks, POOLING_THREADS, stream, pooling_backward_kernel<double>, a);
  with_element(a.element, [&](auto element) {
    launch(blocks, POOLING_THREADS, stream, pooling_backward_kernel<decltype(element)>, a);
  });
}

}  // namespace pad::cuda
