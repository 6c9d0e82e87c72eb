#include "pooling.h"

#include "cpu/simd.h"
#include "threads.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// Rows of one task. Fixed, so that the order of the sums does not depend on the number of threads.
constexpr int64_t chunk_rows = 64;
constexpr int rows_at_once = 4;

// A second thread pays off from some microseconds of work.
int useful_threads(const PoolingArguments& arguments) {
  return arguments.batch * arguments.length * arguments.width >= 1 << 15 ? arguments.threads : 1;
}

template <class T>
struct Forward {
  using S = Accumulator<T>;
  const PoolingForward& a;
  int64_t chunks;
  S* partial;  // [batch, chunks, width]

  void chunk(int64_t index) const {
    const int64_t b = index / chunks, first = index % chunks * chunk_rows;
    const int64_t count = minimum(chunk_rows, a.length - first);
    const S* weights = static_cast<const S*>(a.weights) + b * a.length + first;
    const T* values = static_cast<const T*>(a.values.data) + b * a.values.batch_stride + first * a.values.row_stride;
    S* sums = partial + index * a.width;
    fill_zero(sums, a.width);

    // Only rows with a weight are looked at; four at a time share one pass over the sums.
    const T* rows[chunk_rows + rows_at_once];
    S scales[chunk_rows + rows_at_once];
    int64_t used = 0;
    for (int64_t i = 0; i < count; ++i)
      if (weights[i] != 0) rows[used] = values + i * a.values.row_stride, scales[used++] = weights[i];
    int64_t i = 0;
    for (; i + rows_at_once <= used; i += rows_at_once) add_rows(sums, rows + i, scales + i);
    for (; i < used; ++i) scaled_add(sums, rows[i], scales[i], a.width);
  }

  void add_rows(S* sums, const T* const* rows, const S* scales) const {
    int64_t i = 0;
    for (; i + lanes<S> <= a.width; i += lanes<S>) {
      Vector<S> total = load(sums + i);
      for (int r = 0; r < rows_at_once; ++r) total += load(rows[r] + i) * scales[r];
      store(sums + i, total);
    }
    for (; i < a.width; ++i)
      for (int r = 0; r < rows_at_once; ++r) sums[i] += to_accumulator(rows[r][i]) * scales[r];
  }

  void merge(int64_t b) const {
    S* out = static_cast<S*>(a.out) + b * a.width;
    fill_zero(out, a.width);
    for (int64_t c = 0; c < chunks; ++c) scaled_add(out, partial + (b * chunks + c) * a.width, S(1), a.width);
  }
};

template <class T>
void forward(const PoolingForward& arguments) {
  const int64_t chunks = maximum(1, (arguments.length + chunk_rows - 1) / chunk_rows);
  const Buffer<Accumulator<T>> partial(arguments.batch * chunks * arguments.width);
  Forward<T> work{arguments, chunks, partial.data()};
  parallel_for_rows(arguments.batch * chunks, useful_threads(arguments),
                    [](void* context, int64_t index) { static_cast<Forward<T>*>(context)->chunk(index); }, &work);
  for (int64_t b = 0; b < arguments.batch; ++b) work.merge(b);
}

template <class T>
void backward_chunk(const PoolingBackward& a, int64_t index, int64_t chunks) {
  using S = Accumulator<T>;
  const int64_t b = index / chunks, first = index % chunks * chunk_rows;
  const int64_t last = minimum(first + chunk_rows, a.length);
  const S* grad = static_cast<const S*>(a.grad) + b * a.width;
  for (int64_t l = first; l < last; ++l) {
    const S weight = static_cast<const S*>(a.weights)[b * a.length + l];
    T* row = static_cast<T*>(a.grad_values) + (b * a.length + l) * a.width;
    if (weight == 0)
      fill_zero(row, a.width);
    else
      scaled_copy(row, grad, weight, a.width);
  }
}

template <class T>
void backward(const PoolingBackward& arguments) {
  advise_large_pages(arguments.grad_values,
                     arguments.batch * arguments.length * arguments.width * static_cast<int64_t>(sizeof(T)));
  const int64_t chunks = maximum(1, (arguments.length + chunk_rows - 1) / chunk_rows);
  parallel_for_rows(arguments.batch * chunks, useful_threads(arguments),
                    [](void* context, int64_t index) {
                      const auto& a = *static_cast<const PoolingBackward*>(context);
                      backward_chunk<T>(a, index, maximum(1, (a.length + chunk_rows - 1) / chunk_rows));
                    },
                    const_cast<PoolingBackward*>(&arguments));
}

}  // namespace

void pooling_forward(const PoolingForward& arguments) {
  with_element(arguments.element, [&](auto element) { forward<decltype(element)>(arguments); });
}

void pooling_backward(const PoolingBackward& arguments) {
  with_element(arguments.element, [&](auto element) { backward<decltype(element)>(arguments); });
}

}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
