#include "spans.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "threads.h"

namespace pad {
namespace {

// The frames of the highest weights above 0, in order of time; of equal ones the earlier frames.
template <class S>
std::vector<int64_t> topk(const S* weights, const std::vector<int64_t>& real, int64_t count) {
  using Bits = std::conditional_t<std::is_same_v<S, double>, uint64_t, uint32_t>;
  std::vector<S> heights;
  heights.reserve(real.size());
  for (const int64_t frame : real) heights.push_back(weights[frame]);
  // The highest number that `count` of them reach, bit by bit: bits of numbers above 0 have the order of the numbers.
  Bits bits = 0;
  S lowest = 0;
  for (Bits bit = Bits{1} << (8 * sizeof(S) - 2); bit; bit >>= 1) {
    const Bits tried = bits | bit;
    S height;
    std::memcpy(&height, &tried, sizeof(S));
    int32_t reaching = 0;
    for (const S own : heights) reaching += own >= height;
    if (reaching < count) continue;
    bits = tried;
    lowest = height;
  }
  int64_t equal = count;  // that are chosen beside those above
  for (const S own : heights) equal -= own > lowest;
  std::vector<int64_t> chosen;
  for (const int64_t frame : real) {
    if (!(weights[frame] > 0) || weights[frame] < lowest) continue;
    if (weights[frame] == lowest && equal-- <= 0) continue;
    chosen.push_back(frame);
  }
  return chosen;
}

// Greedy: a chosen anchor rules out the frames nearer than xi / 2 to it; of equal weights the earlier frame is chosen.
// In order of time.
template <class S>
std::vector<int64_t> peaks(const S* weights, const std::vector<int64_t>& real, int64_t count, double xi,
                           int64_t length) {
  // The largest whole distance below xi / 2.
  const double farthest = std::ceil(xi / 2) - 1;
  const int64_t reach = static_cast<int64_t>(std::min(std::max(farthest, 0.0), static_cast<double>(length)));
  std::vector<S> heights(static_cast<size_t>(length), S{0});  // 0: ruled out
  for (const int64_t frame : real) heights[static_cast<size_t>(frame)] = weights[frame];
  // The highest of each block of frames, so that the next one is found among few.
  constexpr int64_t block = 32;
  std::vector<S> highest(static_cast<size_t>((length + block - 1) / block));
  const auto highest_of = [&](int64_t place) {
    const auto begin = heights.begin() + place * block;
    return std::max_element(begin, heights.begin() + std::min(length, (place + 1) * block));
  };
  const auto update = [&](int64_t first, int64_t last) {
    for (int64_t place = first / block; place <= last / block; ++place) highest[place] = *highest_of(place);
  };
  update(0, length - 1);
  std::vector<int64_t> chosen;
  while (static_cast<int64_t>(chosen.size()) < count) {
    const auto top = std::max_element(highest.begin(), highest.end());
    if (!(*top > 0)) break;
    const int64_t frame = highest_of(top - highest.begin()) - heights.begin();
    chosen.push_back(frame);
    const int64_t first = std::max<int64_t>(0, frame - reach), last = std::min(length - 1, frame + reach);
    std::fill(heights.begin() + first, heights.begin() + last + 1, S{0});
    update(first, last);
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

// Evenly spaced, in order of time.
std::vector<int64_t> stride(const std::vector<int64_t>& real, int64_t count) {
  std::vector<int64_t> chosen;
  const int64_t frames = static_cast<int64_t>(real.size());
  for (int64_t k = 0; k < count; ++k) chosen.push_back(real[static_cast<size_t>((2 * k + 1) * frames / (2 * count))]);
  return chosen;
}

template <class S>
void select_utterance(const SpanArguments& a, int64_t b) {
  const int64_t units = a.max_anchors * a.scale_count;
  int32_t* start = a.start + b * units;
  int32_t* end = a.end + b * units;
  std::fill(start, start + units, 0);
  std::fill(end, end + units, 0);

  std::vector<int64_t> real;
  real.reserve(static_cast<size_t>(a.frames));
  for (int64_t i = 0; i < a.frames; ++i)
    if (!a.frame_mask || a.frame_mask[b * a.frames + i]) real.push_back(i);
  const int64_t count = std::min(a.num_anchors[b], a.max_anchors);
  if (real.empty() || a.num_tokens[b] <= 0 || count <= 0) return;

  const double xi = a.xi ? a.xi[b] : static_cast<double>(real.size()) / static_cast<double>(a.num_tokens[b]);
  const S* weights = static_cast<const S*>(a.frame_weights) + b * a.frames;
  const std::vector<int64_t> anchors = a.anchors == Anchors::topk    ? topk(weights, real, count)
                                       : a.anchors == Anchors::peaks ? peaks(weights, real, count, xi, a.frames)
                                                                     : stride(real, count);

  const int64_t first = real.front(), past = real.back() + 1;
  for (const int64_t anchor : anchors)
    for (int64_t s = 0; s < a.scale_count; ++s) {
      // A width beyond twice the frames covers them all.
      const double wanted = std::floor(a.scales[s] * xi + 0.5);
      const int64_t width = static_cast<int64_t>(std::min(std::max(wanted, 1.0), 2.0 * a.frames + 1.0));
      const int64_t low = anchor - width / 2;
      *start++ = static_cast<int32_t>(std::min(std::max(low, first), past));
      *end++ = static_cast<int32_t>(std::min(std::max(low + width, first), past));
    }
}

}  // namespace

bool spans_fit(const SpanBounds& spans, int64_t frames) {
  bool fit = true;
  for (int64_t i = 0; i < spans.count; ++i)
    fit &= spans.start[i] >= 0 && spans.start[i] <= spans.end[i] && spans.end[i] <= frames;
  return fit;
}

void sort_by_start(const int32_t* start, int64_t frames, int32_t* units, int64_t count) {
  const auto start_of = [&](int32_t unit) {
    return start ? std::clamp<int64_t>(start[unit], 0, frames) : static_cast<int64_t>(unit);
  };
  const auto precedes = [&](int32_t one, int32_t other) {
    const int64_t start = start_of(one), other_start = start_of(other);
    return start != other_start ? start < other_start : one < other;
  };
  // Insertion while it takes few moves: units of anchors come nearly sorted.
  int64_t moves = 32 * count;
  for (int64_t c = 1; c < count; ++c) {
    const int32_t unit = units[c];
    int64_t place = c;
    for (; place > 0 && precedes(unit, units[place - 1]); --place) units[place] = units[place - 1];
    units[place] = unit;
    moves -= c - place;
    if (moves < 0) {
      std::sort(units, units + count, precedes);
      return;
    }
  }
}

void select_spans(const SpanArguments& arguments) {
  const auto task = [](void* context, int64_t b) {
    const auto& a = *static_cast<const SpanArguments*>(context);
    a.is_double ? select_utterance<double>(a, b) : select_utterance<float>(a, b);
  };
  // A few microseconds each: threads do not pay off for a small batch.
  const int threads = arguments.batch * arguments.frames >= 1 << 13 ? arguments.threads : 1;
  parallel_for(arguments.batch, threads, task, const_cast<SpanArguments*>(&arguments));
}

}  // namespace pad
