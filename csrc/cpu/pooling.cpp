#include "pooling.h"

#include "cpu/buffer.h"
#include "cpu/stream.h"
#include "threads.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// Rows of one task. Fixed, so that the order of the sums does not depend on the number of threads.
constexpr int64_t chunk_rows = 64;
constexpr int rows_at_once = 4;

// The rows of one side that one task does.
struct Chunk {
  int64_t b;
  int side;
  int64_t first, count;
};

int64_t chunks_of(int64_t length) { return (length + chunk_rows - 1) / chunk_rows; }

// A task for each chunk of the wanted sides, utterance by utterance.
class Chunks {
 public:
  Chunks(const PooledDistanceArguments& arguments, bool speech, bool text)
      : lengths_{speech ? arguments.lengths[SPEECH] : 0, text ? arguments.lengths[TEXT] : 0},
        of_speech_(chunks_of(lengths_[SPEECH])),
        per_utterance_(of_speech_ + chunks_of(lengths_[TEXT])),
        count_(arguments.batch * per_utterance_) {}

  int64_t per_utterance() const { return per_utterance_; }
  int64_t of_speech() const { return of_speech_; }
  int64_t count() const { return count_; }

  Chunk operator[](int64_t index) const {
    int64_t within = index % per_utterance_;
    const int side = within < of_speech_ ? SPEECH : TEXT;
    if (side == TEXT) within -= of_speech_;
    const int64_t first = within * chunk_rows;
    return {index / per_utterance_, side, first, minimum(chunk_rows, lengths_[side] - first)};
  }

  // A second thread pays off from some microseconds of work.
  int useful_threads(const PooledDistanceArguments& a) const {
    return a.batch * (lengths_[SPEECH] + lengths_[TEXT]) * a.width >= 1 << 15 ? a.threads : 1;
  }

 private:
  int64_t lengths_[2];
  int64_t of_speech_, per_utterance_, count_;
};

template <class S>
S sum(const S* values, int64_t count) {
  Vector<S> sums{};
  int64_t i = 0;
  for (; i + lanes<S> <= count; i += lanes<S>) sums += load(values + i);
  S total = sum_lanes<S>(sums);
  for (; i < count; ++i) total += values[i];
  return total;
}

template <class T>
struct Forward {
  using S = OpMath<T>;
  const PooledDistanceForward& a;
  Chunks chunks;
  S* partial;  // [batch, chunks of an utterance, width]

  S& total(int64_t b, int side) const { return static_cast<S*>(a.totals)[2 * b + side]; }

  const S* weights(int64_t b, int side) const { return static_cast<const S*>(a.weights[side]) + b * a.lengths[side]; }

  void add_totals() const {
    for (int64_t b = 0; b < a.batch; ++b)
      for (int side = SPEECH; side <= TEXT; ++side) total(b, side) = sum(weights(b, side), a.lengths[side]);
  }

  void chunk(int64_t index) const {
    const Chunk part = chunks[index];
    const Rows& values = a.values[part.side];
    const S* weight = weights(part.b, part.side) + part.first;
    const T* row = static_cast<const T*>(values.data) + part.b * values.batch_stride + part.first * values.row_stride;
    S* sums = partial + index * a.width;
    fill_zero(sums, a.width);

    // Only rows with a weight are looked at; four at a time share one pass over the sums.
    const T* rows[chunk_rows];
    S scales[chunk_rows];
    int64_t used = 0;
    for (int64_t i = 0; i < part.count; ++i)
      if (weight[i] != 0) {
        rows[used] = row + i * values.row_stride;
        scales[used++] = weight[i] / total(part.b, part.side);
      }
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
      for (int r = 0; r < rows_at_once; ++r) sums[i] += to_opmath(rows[r][i]) * scales[r];
  }

  void merge(int64_t b) const {
    S* difference = static_cast<S*>(a.difference) + b * a.width;
    S& distance = static_cast<S*>(a.distance)[b];
    fill_zero(difference, a.width);
    distance = 0;
    if (total(b, SPEECH) == 0 || total(b, TEXT) == 0) return;
    const S* part = partial + b * chunks.per_utterance() * a.width;
    for (int64_t c = 0; c < chunks.per_utterance(); ++c, part += a.width)
      scaled_add(difference, part, c < chunks.of_speech() ? S(1) : S(-1), a.width);
    Vector<S> sums{};
    int64_t i = 0;
    for (; i + lanes<S> <= a.width; i += lanes<S>) {
      const Vector<S> value = load(difference + i);
      sums += value < 0 ? -value : value;
    }
    distance = sum_lanes<S>(sums);
    for (; i < a.width; ++i) distance += difference[i] < 0 ? -difference[i] : difference[i];
  }
};

template <class T>
void forward(const PooledDistanceForward& arguments) {
  const Chunks chunks(arguments, true, true);
  const Buffer<OpMath<T>> partial(chunks.count() * arguments.width);
  Forward<T> work{arguments, chunks, partial.data()};
  work.add_totals();
  parallel_for_rows(
      chunks.count(), chunks.useful_threads(arguments),
      [](void* context, int64_t index) { static_cast<Forward<T>*>(context)->chunk(index); }, &work);
  for (int64_t b = 0; b < arguments.batch; ++b) work.merge(b);
}

template <class T>
struct Backward {
  using S = OpMath<T>;
  const PooledDistanceBackward& a;
  Chunks chunks;
  S* grad_pooled;  // [batch, width], of the speech's side

  // The sign of the difference times the utterance's gradient; a NaN stays one.
  void find_grad_pooled() const {
    for (int64_t b = 0; b < a.batch; ++b) {
      const S grad = static_cast<const S*>(a.grad)[b];
      const S* difference = static_cast<const S*>(a.difference) + b * a.width;
      for (int64_t d = 0; d < a.width; ++d) {
        const S value = difference[d];
        grad_pooled[b * a.width + d] = value > 0 ? grad : value < 0 ? -grad : value;
      }
    }
  }

  void chunk(int64_t index) const {
    const Chunk part = chunks[index];
    const int64_t from = part.b * a.lengths[part.side] + part.first;
    const S* weights = static_cast<const S*>(a.weights[part.side]) + from;
    const S total = static_cast<const S*>(a.totals)[2 * part.b + part.side];
    T* row = static_cast<T*>(a.grad_values[part.side]) + from * a.width;
    const bool streamed = can_stream<T>(a.grad_values[part.side], a.batch * a.lengths[part.side], a.width);
    for (int64_t i = 0; i < part.count; ++i, row += a.width) {
      const S scale = weights[i] / (part.side == SPEECH ? total : -total);
      if (weights[i] == 0) write_zero(row, a.width, streamed);
      else write_row(row, grad_pooled + part.b * a.width, scale, a.width, streamed);
    }
    if (streamed) end_stream();
  }
};

template <class T>
void backward(const PooledDistanceBackward& arguments) {
  using S = OpMath<T>;
  const Chunks chunks(arguments, arguments.grad_values[SPEECH], arguments.grad_values[TEXT]);
  const Buffer<S> grad_pooled(arguments.batch * arguments.width);
  Backward<T> work{arguments, chunks, grad_pooled.data()};
  work.find_grad_pooled();
  parallel_for_rows(
      chunks.count(), chunks.useful_threads(arguments),
      [](void* context, int64_t index) { static_cast<Backward<T>*>(context)->chunk(index); }, &work);
}

}  // namespace

void pooled_distance_forward(const PooledDistanceForward& arguments) {
  with_element(arguments.element, [&](auto element) { forward<decltype(element)>(arguments); });
}

void pooled_distance_backward(const PooledDistanceBackward& arguments) {
  with_element(arguments.element, [&](auto element) { backward<decltype(element)>(arguments); });
}

}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
