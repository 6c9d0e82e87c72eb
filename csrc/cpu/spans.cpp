#include "spans.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "threads.h"

namespace pad {
namespace {

// Candidates by prior, highest first; equal priors: the earlier frame.
template <class S>
std::vector<int64_t> candidates(const S* prior, const std::vector<int64_t>& real, size_t sorted) {
  std::vector<int64_t> frames;
  for (const int64_t frame : real)
    if (prior[frame] > 0) frames.push_back(frame);
  const auto before = [&](int64_t a, int64_t b) { return prior[a] != prior[b] ? prior[a] > prior[b] : a < b; };
  const auto middle = frames.begin() + static_cast<std::ptrdiff_t>(std::min(sorted, frames.size()));
  std::partial_sort(frames.begin(), middle, frames.end(), before);
  return frames;
}

template <class S>
std::vector<int64_t> topk(const S* prior, const std::vector<int64_t>& real, int64_t count) {
  std::vector<int64_t> frames = candidates(prior, real, static_cast<size_t>(count));
  frames.resize(std::min(frames.size(), static_cast<size_t>(count)));
  return frames;
}

// Greedy: a chosen anchor rules out the frames nearer than xi / 2 to it.
template <class S>
std::vector<int64_t> peaks(const S* prior, const std::vector<int64_t>& real, int64_t count, double xi, int64_t length) {
  std::vector<uint8_t> ruled_out(static_cast<size_t>(length), 0);
  std::vector<int64_t> chosen;
  // The largest whole distance below xi / 2.
  const double farthest = std::ceil(xi / 2) - 1;
  const int64_t reach = static_cast<int64_t>(std::min(std::max(farthest, 0.0), static_cast<double>(length)));
  for (const int64_t frame : candidates(prior, real, real.size())) {
    if (static_cast<int64_t>(chosen.size()) == count) break;
    if (ruled_out[static_cast<size_t>(frame)]) continue;
    chosen.push_back(frame);
    const int64_t first = std::max<int64_t>(0, frame - reach), last = std::min(length - 1, frame + reach);
    std::fill(ruled_out.begin() + first, ruled_out.begin() + last + 1, uint8_t{1});
  }
  return chosen;
}

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
  for (int64_t i = 0; i < a.frames; ++i)
    if (!a.frame_mask || a.frame_mask[b * a.frames + i]) real.push_back(i);
  const int64_t count = std::min(a.num_anchors[b], a.max_anchors);
  if (real.empty() || a.num_tokens[b] <= 0 || count <= 0) return;

  const double xi = a.xi ? a.xi[b] : static_cast<double>(real.size()) / static_cast<double>(a.num_tokens[b]);
  const S* prior = static_cast<const S*>(a.frame_prior) + b * a.frames;
  std::vector<int64_t> anchors = a.anchors == Anchors::topk    ? topk(prior, real, count)
                                 : a.anchors == Anchors::peaks ? peaks(prior, real, count, xi, a.frames)
                                                               : stride(real, count);
  std::sort(anchors.begin(), anchors.end());

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

void select_spans(const SpanArguments& arguments) {
  const auto task = [](void* context, int64_t b) {
    const auto& a = *static_cast<const SpanArguments*>(context);
    a.is_double ? select_utterance<double>(a, b) : select_utterance<float>(a, b);
  };
  // A few microseconds each: threads pay off for a large batch only.
  const int threads = arguments.batch * arguments.frames >= 1 << 14 ? arguments.threads : 1;
  parallel_for(arguments.batch, threads, task, const_cast<SpanArguments*>(&arguments));
}

}  // namespace pad
