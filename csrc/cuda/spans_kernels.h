// Anchors and their spans, one block for an utterance. Across threads only whole numbers are summed and
// extremes taken, so that the order in which threads run does not matter.
#pragma once
#include <cuda_runtime.h>

#include <type_traits>

#include "reduce.h"
#include "spans.h"

namespace pad::cuda {

constexpr int SPAN_THREADS = 256;
constexpr int SCALES_AT_ONCE = 16;

struct SpanParameters {
  SpanArguments a;
  int64_t first_scale, scale_count;  // of those that this launch writes
  double scales[SCALES_AT_ONCE];
  uint8_t* state;  // [batch, frames]: a State of each frame
};

enum State : uint8_t { FREE, RULED_OUT, CHOSEN };

__device__ inline uint32_t bits_of(float value) { return __float_as_uint(value); }
__device__ inline uint64_t bits_of(double value) { return static_cast<uint64_t>(__double_as_longlong(value)); }

// How many threads before this one say yes, and how many in all.
__device__ inline int rank_in_block(bool yes, int& total) {
  __shared__ int warps[SPAN_THREADS / 32];
  const unsigned votes = __ballot_sync(0xffffffffu, yes), lane = threadIdx.x % 32;
  __syncthreads();
  if (lane == 0) warps[threadIdx.x / 32] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane) - 1));
  total = 0;
  for (unsigned w = 0; w < SPAN_THREADS / 32; ++w) {
    if (w < threadIdx.x / 32) before += warps[w];
    total += warps[w];
  }
  return before;
}

template <class S>
class SpanSelection {
 public:
  struct Candidate {
    S weight;
    int64_t frame;
  };
  union Scratch {
    int64_t number[SPAN_THREADS / 32];
    Candidate candidate[SPAN_THREADS];
  };

  __device__ SpanSelection(const SpanParameters& p, int64_t b, Scratch& scratch)
      : p_(p),
        a_(p.a),
        b_(b),
        scratch_(scratch),
        weights_(static_cast<const S*>(p.a.frame_weights) + b * p.a.frames),
        mask_(p.a.frame_mask + b * p.a.frames),
        state_(p.state + b * p.a.frames) {}

  __device__ void run() {
    const int64_t units = p_.first_scale ? 0 : a_.max_anchors * a_.scale_count;
    for (int64_t u = threadIdx.x; u < units; u += SPAN_THREADS) a_.start[b_ * units + u] = a_.end[b_ * units + u] = 0;
    int64_t count = 0, first = a_.frames, past = 0;
    for (int64_t i = threadIdx.x; i < a_.frames; i += SPAN_THREADS) {
      state_[i] = FREE;
      if (!mask_[i]) continue;
      ++count;
      first = min(first, i);
      past = i + 1;
    }
    const auto smaller = [](int64_t x, int64_t y) { return x < y ? x : y; };
    const auto larger = [](int64_t x, int64_t y) { return x > y ? x : y; };
    real_ = sum(count);
    first_ = block_reduce<SPAN_THREADS>(first, scratch_.number, smaller);
    past_ = block_reduce<SPAN_THREADS>(past, scratch_.number, larger);
    wanted_ = smaller(a_.num_anchors[b_], a_.max_anchors);
    const int64_t tokens = a_.num_tokens[b_];
    if (real_ == 0 || tokens <= 0 || wanted_ <= 0) return;
    xi_ = a_.xi ? a_.xi[b_] : static_cast<double>(real_) / static_cast<double>(tokens);
    if (a_.anchors == Anchors::topk) choose_highest();
    if (a_.anchors == Anchors::peaks) choose_peaks();
    if (a_.anchors == Anchors::stride) emit_stride();
    else emit_chosen();
  }

 private:
  using Bits = std::conditional_t<sizeof(S) == 8, uint64_t, uint32_t>;

  __device__ bool candidate(int64_t i) const { return mask_[i] && weights_[i] > 0; }

  __device__ int64_t sum(int64_t value) { return block_reduce<SPAN_THREADS>(value, scratch_.number); }

  __device__ int64_t count_from(Bits least) {
    int64_t count = 0;
    for (int64_t i = threadIdx.x; i < a_.frames; i += SPAN_THREADS)
      count += candidate(i) && bits_of(weights_[i]) >= least;
    return sum(count);
  }

  // The bits of positive numbers are in their order: the K-th highest weight is found bit by bit.
  __device__ void choose_highest() {
    Bits threshold = 0;
    for (int bit = 8 * sizeof(S) - 2; bit >= 0; --bit) {
      const Bits higher = threshold | Bits{1} << bit;
      if (count_from(higher) >= wanted_) threshold = higher;
    }
    const int64_t ties_wanted = wanted_ - count_from(threshold + 1);
    int64_t ties_before = 0;
    for (int64_t tile = 0; tile < a_.frames; tile += SPAN_THREADS) {
      const int64_t i = tile + threadIdx.x;
      const bool possible = i < a_.frames && candidate(i);
      const bool tie = possible && bits_of(weights_[i]) == threshold;
      int ties;
      const int rank = rank_in_block(tie, ties);
      if (tie ? ties_before + rank < ties_wanted : possible && bits_of(weights_[i]) > threshold) state_[i] = CHOSEN;
      ties_before += ties;
    }
  }

  // Greedy: a chosen anchor rules out the frames nearer than xi / 2 to it.
  __device__ void choose_peaks() {
    // The largest whole distance below xi / 2.
    const double farthest = ceil(xi_ / 2) - 1, most = static_cast<double>(a_.frames);
    const int64_t reach = farthest > 0 ? static_cast<int64_t>(farthest < most ? farthest : most) : 0;
    for (int64_t k = 0; k < wanted_; ++k) {
      Candidate best{0, a_.frames};
      for (int64_t i = threadIdx.x; i < a_.frames; i += SPAN_THREADS)
        if (candidate(i) && state_[i] == FREE && weights_[i] > best.weight) best = {weights_[i], i};
      best = best_of_block(best);
      if (best.frame == a_.frames) return;
      const int64_t last = min(best.frame + reach, a_.frames - 1);
      for (int64_t i = max(best.frame - reach, int64_t{0}) + threadIdx.x; i <= last; i += SPAN_THREADS)
        state_[i] = i == best.frame ? CHOSEN : RULED_OUT;
      __syncthreads();
    }
  }

  // The highest weight over the block; of equal ones the earlier frame.
  __device__ Candidate best_of_block(const Candidate& own) {
    Candidate* all = scratch_.candidate;
    __syncthreads();
    all[threadIdx.x] = own;
    for (unsigned half = SPAN_THREADS / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.x >= half) continue;
      const Candidate &x = all[threadIdx.x], &y = all[threadIdx.x + half];
      if (y.weight > x.weight || (y.weight == x.weight && y.frame < x.frame)) all[threadIdx.x] = y;
    }
    __syncthreads();
    return all[0];
  }

  __device__ void emit_chosen() {
    int64_t before = 0;
    for (int64_t tile = 0; tile < a_.frames; tile += SPAN_THREADS) {
      const int64_t i = tile + threadIdx.x;
      const bool chosen = i < a_.frames && state_[i] == CHOSEN;
      int total;
      const int rank = rank_in_block(chosen, total);
      if (chosen) emit(before + rank, i);
      before += total;
    }
  }

  // Anchor k is real frame number floor((k + 0.5) m / K); several anchors may share a frame.
  __device__ void emit_stride() {
    int64_t before = 0;
    for (int64_t tile = 0; tile < a_.frames; tile += SPAN_THREADS) {
      const int64_t i = tile + threadIdx.x;
      const bool is_real = i < a_.frames && mask_[i];
      int total;
      const int64_t rank = before + rank_in_block(is_real, total);
      if (is_real) {
        const int64_t least = (2 * wanted_ * rank + real_ - 1) / real_;  // 2 k + 1 is at least this
        for (int64_t k = least / 2; k < wanted_ && (2 * k + 1) * real_ / (2 * wanted_) == rank; ++k) emit(k, i);
      }
      before += total;
    }
  }

  __device__ void emit(int64_t k, int64_t anchor) const {
    const int64_t place = (b_ * a_.max_anchors + k) * a_.scale_count + p_.first_scale;
    const double most = 2.0 * static_cast<double>(a_.frames) + 1.0;  // covers them all
    for (int64_t s = 0; s < p_.scale_count; ++s) {
      // Rounded twice, as the reference does: no fused multiply-add.
      const double width = floor(__dadd_rn(__dmul_rn(p_.scales[s], xi_), 0.5));
      const int64_t frames = width > 1 ? static_cast<int64_t>(width < most ? width : most) : 1;
      const int64_t low = anchor - frames / 2;
      a_.start[place + s] = static_cast<int32_t>(min(max(low, first_), past_));
      a_.end[place + s] = static_cast<int32_t>(min(max(low + frames, first_), past_));
    }
  }

  const SpanParameters& p_;
  const SpanArguments& a_;
  const int64_t b_;
  Scratch& scratch_;
  const S* weights_;
  const uint8_t* mask_;
  uint8_t* state_;
  int64_t real_, first_, past_, wanted_;  // real frames, the first and past the last of them, anchors
  double xi_;
};

template <class S>
__global__ void __launch_bounds__(SPAN_THREADS) spans_kernel(SpanParameters p) {
  __shared__ typename SpanSelection<S>::Scratch scratch;
  SpanSelection<S>(p, blockIdx.x, scratch).run();
}

}  // namespace pad::cuda
