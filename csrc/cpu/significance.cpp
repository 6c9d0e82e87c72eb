#include "significance.h"

#include "cpu/key_scores.h"
#include "threads.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// Up to this many bytes the scores of a block are kept; beyond it they are computed twice.
constexpr int64_t kept_score_bytes = 512 * 1024;
// Tasks to aim at. Fixed, so that the order of the sums does not depend on the number of threads.
constexpr int64_t wanted_tasks = 64;

template <class T>
struct Significance {
  using S = OpMath<T>;
  using V = Vector<S>;
  static constexpr int64_t queries = block_queries<S>;
  static constexpr S lowest = -static_cast<S>(3.0e38f);

  const SignificanceArguments& a;
  int64_t chunks;               // tasks per head
  const int64_t* valid;         // [batch, length] the valid positions, in order
  const int64_t* valid_counts;  // [batch] how many
  S* partial;                   // [batch, heads, chunks, length] column sums at the valid positions, packed

  static void update_highest(const S* scores, int64_t count, V (&highest)[tile_vectors]) {
    for (int64_t k = 0; k < count; ++k)
      for (int v = 0; v < tile_vectors; ++v) {
        const V score = load(scores + k * queries + v * lanes<S>);
        highest[v] = score > highest[v] ? score : highest[v];
      }
  }

  // Replaces the scores by exp(score - shift) and adds them up per query. No score is above its row's shift, but for
  // the rounding of a log-sum-exp that is given, which large scores would magnify without end.
  static void exponentiate(S* scores, int64_t count, const V (&shift)[tile_vectors], V (&sum)[tile_vectors]) {
    for (int64_t k = 0; k < count; ++k)
      for (int v = 0; v < tile_vectors; ++v) {
        const V exponent = load(scores + k * queries + v * lanes<S>) - shift[v];
        const V value = exponential(exponent > 0 ? V{} : exponent);
        sum[v] += value;
        store(scores + k * queries + v * lanes<S>, value);
      }
  }

  // Adds each key's attention, weights[q] * scores[k][q] summed over the queries, to its column sum.
  static void add_columns(const S* scores, int64_t count, const V (&weights)[tile_vectors], S* sums) {
    for (int64_t k = 0; k < count; ++k) {
      V total = load(scores + k * queries) * weights[0];
      for (int v = 1; v < tile_vectors; ++v) total += load(scores + k * queries + v * lanes<S>) * weights[v];
      sums[k] += sum_lanes<S>(total);
    }
  }

  // The attention is exp(score - shift) times the query's weight, block of keys by block of keys.
  void add_known(const Head<T>& head, const V (&shift)[tile_vectors], const V (&weights)[tile_vectors],
                 const KeyScores<T>& keys, S* sums) const {
    for (int64_t first = 0; first < head.count; first += block_keys) {
      const int64_t rows = minimum(block_keys, head.count - first);
      V unused[tile_vectors] = {};
      S* scores = keys.score(head, first, rows);
      exponentiate(scores, rows, shift, unused);
      add_columns(scores, rows, weights, sums + first);
    }
  }

  // Highest score and sum of exponentials of each query, over all keys, block by block.
  void online_softmax(const Head<T>& head, const KeyScores<T>& keys, V (&highest)[tile_vectors],
                      V (&sum)[tile_vectors]) const {
    for (int v = 0; v < tile_vectors; ++v) highest[v] = broadcast(lowest);
    for (int64_t first = 0; first < head.count; first += block_keys) {
      const int64_t rows = minimum(block_keys, head.count - first);
      S* scores = keys.score(head, first, rows);
      V before[tile_vectors] = {};
      for (int v = 0; v < tile_vectors; ++v) before[v] = highest[v];
      update_highest(scores, rows, highest);
      for (int v = 0; v < tile_vectors; ++v) sum[v] *= exponential(before[v] - highest[v]);
      exponentiate(scores, rows, highest, sum);
    }
  }

  void chunk(int64_t index) const {
    const int64_t head_index = index / chunks, b = head_index / a.heads, h = head_index % a.heads;
    const Head<T> head{
        .query = static_cast<const T*>(a.query.data) + b * a.query.batch_stride + h * a.query.head_stride,
        .key = static_cast<const T*>(a.key.data) + b * a.key.batch_stride + h * a.key.head_stride,
        .query_stride = a.query.row_stride,
        .key_stride = a.key.row_stride,
        .positions = valid + b * a.length,
        .count = valid_counts[b],
    };
    const int64_t count = head.count;
    S* sums = partial + index * a.length;
    fill_zero(sums, count);

    const bool keep = !a.lse && count * queries * static_cast<int64_t>(sizeof(S)) <= kept_score_bytes;
    const KeyScores<T> keys(a, keep ? count : block_keys);

    const int64_t blocks = (count + queries - 1) / queries;
    for (int64_t block = blocks * (index % chunks) / chunks; block < blocks * (index % chunks + 1) / chunks; ++block) {
      const int64_t first = block * queries, used = minimum(queries, count - first);
      keys.take_queries(head, first, used);
      V weights[tile_vectors] = {}, shift[tile_vectors] = {}, sum[tile_vectors] = {};
      for (int v = 0; v < tile_vectors; ++v)
        for (int i = 0; i < lanes<S>; ++i) weights[v][i] = v * lanes<S> + i < used ? S(1) : S(0);
      if (keep) {
        for (int v = 0; v < tile_vectors; ++v) shift[v] = broadcast(lowest);
        S* scores = keys.score(head, 0, count);
        update_highest(scores, count, shift);
        exponentiate(scores, count, shift, sum);
        for (int v = 0; v < tile_vectors; ++v) weights[v] /= sum[v];
        add_columns(scores, count, weights, sums);
        continue;
      }
      if (a.lse) {
        const S* lse = static_cast<const S*>(a.lse) + head_index * a.length;
        for (int64_t q = 0; q < queries; ++q)
          shift[q / lanes<S>][q % lanes<S>] = q < used ? lse[head.positions[first + q]] : S(0);
      } else {
        // Not as one log-sum-exp: large scores would swallow the logarithm.
        online_softmax(head, keys, shift, sum);
        for (int v = 0; v < tile_vectors; ++v) weights[v] /= sum[v];
      }
      add_known(head, shift, weights, keys, sums);
    }
  }

  // Adds heads and chunks in order, normalizes, and puts the result at its positions.
  void merge(int64_t b) const {
    S* out = static_cast<S*>(a.out) + b * a.length;
    fill_zero(out, a.length);
    const S* parts = partial + b * a.heads * chunks * a.length;
    const int64_t count = valid_counts[b], *positions = valid + b * a.length;
    double total = 0;
    const Buffer<double> sums(count);
    for (int64_t k = 0; k < count; ++k) {
      sums[k] = 0;
      for (int64_t part = 0; part < a.heads * chunks; ++part)
        sums[k] += static_cast<double>(parts[part * a.length + k]);
      total += sums[k];
    }
    if (total == 0) return;  // a log-sum-exp that was given lies far above the scores
    for (int64_t k = 0; k < count; ++k) out[positions[k]] = static_cast<S>(sums[k] / total);
  }
};

template <class T>
void run(const SignificanceArguments& a) {
  using S = OpMath<T>;
  const int64_t heads = maximum(1, a.batch * a.heads);
  const int64_t blocks = maximum(1, (a.length + block_queries<S> - 1) / block_queries<S>);
  const int64_t chunks = minimum(blocks, (wanted_tasks + heads - 1) / heads);
  const Buffer<int64_t> valid(a.batch * a.length), valid_counts(a.batch);
  for (int64_t b = 0; b < a.batch; ++b) {
    int64_t count = 0;
    for (int64_t i = 0; i < a.length; ++i)
      if (!a.mask || a.mask[b * a.length + i]) valid[b * a.length + count++] = i;
    valid_counts[b] = count;
  }
  const Buffer<S> partial(a.batch * a.heads * chunks * a.length);
  Significance<T> work{
      .a = a, .chunks = chunks, .valid = valid.data(), .valid_counts = valid_counts.data(), .partial = partial.data()};
  parallel_for(
      a.batch * a.heads * chunks, a.threads,
      [](void* context, int64_t index) { static_cast<Significance<T>*>(context)->chunk(index); }, &work);
  parallel_for(
      a.batch, a.threads, [](void* context, int64_t b) { static_cast<Significance<T>*>(context)->merge(b); }, &work);
}

}  // namespace

void significance(const SignificanceArguments& arguments) {
  with_element(arguments.element, [&](auto element) { run<decltype(element)>(arguments); });
}

}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
