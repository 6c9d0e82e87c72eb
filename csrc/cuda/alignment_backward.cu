#include "gradient_kernels.h"
#include "hard_kernels.h"
#include "pool_units.h"
#include "spread_kernels.h"

namespace pad::cuda {
namespace {

// About four for each of an H100's 132 multiprocessors.
constexpr int64_t WANTED_BLOCKS = 4 * 132;

template <class T>
class Plan {
 public:
  Plan(const AlignmentBackward& a, Workspace& workspace) : a_(a), source_(unit_source<T>(a, workspace)) {
    text_aligned_ = rows_aligned<T>(a.text.data, a.width, a.text.row_stride, a.text.batch_stride);
    grad_speech_aligned_ = rows_aligned<T>(a.grad_speech, a.width, 0, 0);
    grad_text_aligned_ = rows_aligned<T>(a.grad_text, a.width, 0, 0);
    pieces_ = source_.pool.pieces;
    if (a.temperature > 0) lay_out_soft(workspace);
    if (!a.start || !a.grad_speech) return;
    if (a.temperature == 0) {
      const int64_t rows = a.batch * a.tokens;
      pieces_.count = static_cast<int>(a.tokens);
      pieces_.start = workspace.take<int>(rows);
      pieces_.end = workspace.take<int>(rows);
      pieces_.total = workspace.take<float>(rows);
    }
    pieces_.pitch = source_.pool.pitch;
    pieces_.gradient = workspace.take<PieceElement<T>>(a.batch * pieces_.count * pieces_.pitch);
  }

  void run(void* stream) const {
    if (a_.units == 0 || a_.tokens == 0) return fill(stream, true, true);
    pool_units<T>(source_, stream);
    a_.temperature > 0 ? soft(stream) : hard(stream);
    if (!a_.start || !a_.grad_speech) return;
    const SpreadParameters p{a_, pieces_, a_.grad_speech, static_cast<int>(divide_up(a_.frames, SPREAD_FRAMES)),
                             grad_speech_aligned_};
    launch(a_.batch * p.tiles, THREADS, stream, spread_kernel<T>, p);
  }

 private:
  void lay_out_soft(Workspace& workspace) {
    const int tile = a_.start ? ScoreTile<T, true>::UNITS : ScoreTile<T, false>::UNITS;
    weights_.token_tiles = static_cast<int>(divide_up(a_.tokens, TOKENS));
    weights_.unit_tiles = static_cast<int>(divide_up(a_.units, tile));
    weights_.pitch = static_cast<int>(round_up(a_.tokens, 8));
    weights_.weights = workspace.take<T>(a_.batch * a_.units * weights_.pitch);
    weights_.unit_inverse = workspace.take<float>(a_.batch * a_.units);
    weights_.unit_along = workspace.take<float>(a_.batch * weights_.token_tiles * a_.units);
    weights_.text_inverse = workspace.take<float>(a_.batch * a_.tokens);
    weights_.text_along = workspace.take<float>(a_.batch * weights_.unit_tiles * a_.tokens);
  }

  void soft(void* stream) const {
    ScoreParameters score{};
    score.a = a_;
    score.units = source_.units;
    score.out = weights_;
    score.token_tiles = weights_.token_tiles;
    score.unit_tiles = weights_.unit_tiles;
    score.inverse_temperature = static_cast<float>(1 / a_.temperature);
    score.text_aligned = text_aligned_;
    launch(a_.batch * weights_.unit_tiles * weights_.token_tiles, THREADS, stream,
           a_.start ? score_kernel<T, true, true> : score_kernel<T, false, true>, score);
    if (!a_.start) return products<T>(a_.grad_speech, a_.width, grad_speech_aligned_, stream);
    products<PieceElement<T>>(pieces_.gradient, pieces_.pitch, true, stream);
  }

  // Both gradients in one pass over the units, where that makes enough blocks.
  template <class Out>
  void products(void* grad_units, int64_t pitch, bool aligned, void* stream) const {
    GradientParameters p{};
    p.a = a_;
    p.units = source_.units;
    p.weights = weights_;
    p.grad_units = grad_units;
    p.grad_pitch = pitch;
    p.slabs = static_cast<int>(divide_up(a_.width, GradientTile<T>::COLUMNS));
    p.text_aligned = text_aligned_;
    p.grad_units_aligned = aligned;
    p.grad_text_aligned = grad_text_aligned_;
    const int64_t unit_tiles = divide_up(a_.units, GRADIENT_UNITS), blocks = a_.batch * p.slabs;
    const bool both = a_.grad_speech && a_.grad_text && weights_.token_tiles == 1 && blocks >= WANTED_BLOCKS / 2;
    if (a_.grad_text) {
      p.parts = weights_.token_tiles;
      launch(blocks * p.parts, THREADS, stream,
             both ? gradient_kernel<T, Out, true, true> : gradient_kernel<T, Out, false, true>, p);
    }
    if (a_.grad_speech && !both) {
      const int64_t parts = std::min(unit_tiles, divide_up(WANTED_BLOCKS, blocks));
      p.tiles_per_part = static_cast<int>(divide_up(unit_tiles, parts));
      p.parts = static_cast<int>(divide_up(unit_tiles, p.tiles_per_part));
      launch(blocks * p.parts, THREADS, stream, gradient_kernel<T, Out, true, false>, p);
    }
  }

  void hard(void* stream) const {
    fill(stream, !a_.start, false);
    HardParameters p{
        a_, source_.units, source_.pool.pieces, pieces_, text_aligned_, grad_speech_aligned_, grad_text_aligned_};
    launch(a_.batch * a_.tokens, THREADS, stream, a_.start ? hard_kernel<T, true> : hard_kernel<T, false>, p);
  }

  void fill(void* stream, bool speech, bool text) const {
    const auto zero = [&](void* gradient, int64_t rows) {
      const size_t size = static_cast<size_t>(a_.batch * rows * a_.width) * sizeof(T);
      if (gradient && size) check(cudaMemsetAsync(gradient, 0, size, static_cast<cudaStream_t>(stream)), "memset");
    };
    if (speech) zero(a_.grad_speech, a_.frames);
    if (text) zero(a_.grad_text, a_.tokens);
  }

  const AlignmentBackward& a_;
  UnitSource source_;
  Weights weights_{};
  Pieces pieces_;
  bool text_aligned_, grad_speech_aligned_, grad_text_aligned_;
};

}  // namespace

int64_t alignment_backward_workspace(const AlignmentBackward& a) {
  Workspace workspace(nullptr);
  with_element(a.element, [&](auto element) { Plan<decltype(element)>(a, workspace); });
  return workspace.size();
}

void alignment_backward(const AlignmentBackward& a, const ExecutionContext& context) {
  if (a.width > max_width)
    throw std::invalid_argument("pad_kernels: CUDA: widths up to " + std::to_string(max_width) + ", not " +
                                std::to_string(a.width));
  Workspace workspace(context.workspace);
  with_element(a.element, [&](auto element) { Plan<decltype(element)>(a, workspace).run(context.stream); });
}

}  // namespace pad::cuda
