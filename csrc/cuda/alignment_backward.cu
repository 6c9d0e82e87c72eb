#include "alignment_gather_kernels.h"
#include "launch.h"
#include "partition.h"

namespace pad::cuda {
namespace {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t slabs(const AlignmentBackward& a) {
  const bool wide = a.start || a.element == Element::float32;
  return divide_up(a.width, SLAB_CHUNKS * (wide ? Tile<float>::CHUNK : Tile<float16>::CHUNK));
}

Pieces take_pieces(const AlignmentBackward& a, int64_t count, Workspace& workspace) {
  if (!a.start || !a.grad_speech) return {};
  const int64_t rows = a.batch * count;
  Pieces pieces{};
  pieces.count = count;
  pieces.start = workspace.take<int>(rows);
  pieces.end = workspace.take<int>(rows);
  pieces.total = workspace.take<float>(rows);
  pieces.gradient = workspace.take<float>(rows * a.width);
  return pieces;
}

SoftParameters soft_parameters(const AlignmentBackward& a, Workspace& workspace) {
  const Partition units = partition(a, slabs(a));
  SoftParameters p{};
  p.a = a;
  p.units = units;
  p.slabs = slabs(a);
  p.pieces = take_pieces(a, a.units, workspace);
  if (a.grad_speech && !a.start) {
    // More than one tile of tokens: summed in float32, where the gradient itself is not that.
    if (a.element == Element::float32) p.frame_gradient = static_cast<float*>(a.grad_speech);
    else if (units.token_tiles > 1) p.frame_gradient = workspace.take<float>(a.batch * a.frames * a.width);
  }
  if (a.grad_text) {
    const int64_t rows = a.batch * units.parts * a.tokens;
    p.text_partial = workspace.take<float>(rows * a.width);
    p.text_along = workspace.take<float>(rows);
  }
  return p;
}

template <class T>
void gather(const AlignmentBackward& a, const Pieces& pieces, void* stream) {
  const int64_t slabs = divide_up(a.width, THREADS * GATHER_COLUMNS);
  launch(a.batch * a.frames * slabs, THREADS, stream, gather_kernel<T>, GatherParameters{a, pieces, slabs});
}

template <class T>
void soft(const AlignmentBackward& a, Workspace& workspace, void* stream) {
  const SoftParameters p = soft_parameters(a, workspace);
  if (a.grad_speech) {
    launch(a.batch * p.units.unit_tiles, THREADS, stream,
           a.start ? soft_units_kernel<Kind<T, true>> : soft_units_kernel<Kind<T, false>>, p);
    const int64_t count = a.batch * a.frames * a.width;
    if (a.start) gather<T>(a, p.pieces, stream);
    else if (p.frame_gradient && a.element != Element::float32)
      launch(divide_up(count, THREADS), THREADS, stream, convert_kernel<T>, static_cast<const float*>(p.frame_gradient),
             static_cast<T*>(a.grad_speech), count);
  }
  if (a.grad_text) {
    launch(a.batch * p.units.token_tiles * p.units.parts * p.slabs, THREADS, stream,
           a.start ? soft_text_kernel<Kind<T, true>> : soft_text_kernel<Kind<T, false>>, p);
    launch(a.batch * a.tokens, THREADS, stream, text_reduce_kernel<T>, p);
  }
}

template <class T>
void hard(const AlignmentBackward& a, Workspace& workspace, void* stream) {
  const HardParameters p{a, take_pieces(a, a.tokens, workspace)};
  if (a.grad_speech && !a.start)
    check(cudaMemsetAsync(a.grad_speech, 0, static_cast<size_t>(a.batch * a.frames * a.width) * sizeof(T),
                          static_cast<cudaStream_t>(stream)),
          "memset");
  launch(a.batch * a.tokens, THREADS, stream, a.start ? hard_kernel<Kind<T, true>> : hard_kernel<Kind<T, false>>, p);
  if (a.grad_speech && a.start) gather<T>(a, p.pieces, stream);
}

}  // namespace

int64_t alignment_backward_workspace(const AlignmentBackward& a) {
  Workspace workspace(nullptr);
  if (a.temperature > 0) soft_parameters(a, workspace);
  else take_pieces(a, a.tokens, workspace);
  return workspace.size();
}

void alignment_backward(const AlignmentBackward& a, const ExecutionContext& context) {
  if (a.width > max_width)
    throw std::invalid_argument("pad_kernels: CUDA: widths up to " + std::to_string(max_width) + ", not " +
                                std::to_string(a.width));
  Workspace workspace(context.workspace);
  with_element(a.element, [&](auto element) {
    using T = decltype(element);
    a.temperature > 0 ? soft<T>(a, workspace, context.stream) : hard<T>(a, workspace, context.stream);
  });
}

}  // namespace pad::cuda
