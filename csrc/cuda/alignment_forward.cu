#include "pool_units.h"
#include "score_kernels.h"

namespace pad::cuda {
namespace {

template <class T>
struct Plan {
  UnitSource source;
  ScoreParameters score;
  ForwardParameters merge;

  Plan(const AlignmentForward& a, Workspace& workspace) : source(unit_source<T>(a, workspace)), score{}, merge{} {
    const int tile = a.start ? ScoreTile<T, true>::UNITS : ScoreTile<T, false>::UNITS;
    static_cast<AlignmentArguments&>(score.a) = a;
    score.units = source.units;
    score.token_tiles = static_cast<int>(divide_up(a.tokens, TOKENS));
    score.unit_tiles = static_cast<int>(divide_up(a.units, tile));
    score.inverse_temperature = a.temperature > 0 ? static_cast<float>(1 / a.temperature) : 0.0f;
    score.text_aligned = rows_aligned<T>(a.text.data, a.width, a.text.row_stride, a.text.batch_stride);
    score.states = workspace.take<RowState>(a.batch * score.unit_tiles * a.tokens);
    merge = {a, score.unit_tiles, score.states};
  }

  void run(void* stream) const {
    pool_units<T>(source, stream);
    launch(score.a.batch * score.unit_tiles * score.token_tiles, THREADS, stream,
           score.a.start ? score_kernel<T, true, false> : score_kernel<T, false, false>, score);
    launch(divide_up(score.a.batch * score.a.tokens, THREADS), THREADS, stream, merge_kernel<>, merge);
  }
};

}  // namespace

int64_t alignment_forward_workspace(const AlignmentForward& a) {
  Workspace workspace(nullptr);
  with_element(a.element, [&](auto element) { Plan<decltype(element)>(a, workspace); });
  return workspace.size();
}

void alignment_forward(const AlignmentForward& a, const ExecutionContext& context) {
  Workspace workspace(context.workspace);
  with_element(a.element, [&](auto element) { Plan<decltype(element)>(a, workspace).run(context.stream); });
}

}  // namespace pad::cuda
