// Whole losses on the CPU, for the Python module. A loss keeps what its backward needs in one block of memory, which
// the caller allocates and holds: to allocate each part from Python would take longer than a tiny loss does.
#include "loss_bindings.h"

#include <tuple>
#include <utility>
#include <vector>

#include "arguments.h"
#include "loss.h"

namespace pad {
namespace {

struct LossSizes {
  int64_t batch, frames, tokens, units, width;
  bool chosen;  // the units are spans that the loss chooses
  bool is_double;
};

// The parts of the memory one after another, each at its own cache line.
class Layout {
 public:
  int64_t add(int64_t bytes) {
    const int64_t place = bytes_;
    bytes_ += (bytes + line - 1) / line * line;
    return place;
  }
  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t line = 64;
  int64_t bytes_ = 0;
};

// Offsets in bytes.
struct WeightsMemory {
  WeightsMemory(Layout& layout, const LossSizes& of)
      : opmath(of.is_double ? 8 : 4),
        frame_weights(layout.add(of.batch * of.frames * opmath)),
        token_weights(layout.add(of.batch * of.tokens * opmath)) {}
  int64_t opmath;  // bytes of a number
  int64_t frame_weights, token_weights;
};

struct LocalMemory : private Layout, WeightsMemory {
  explicit LocalMemory(const LossSizes& of)
      : WeightsMemory(*this, of),
        similarity(add(of.batch * of.tokens * opmath)),
        log_normalizer(add(of.batch * of.tokens * opmath)),
        unit(add(of.batch * of.tokens * 8)),
        start(add(of.chosen ? of.batch * of.units * 4 : 0)),
        end(add(of.chosen ? of.batch * of.units * 4 : 0)),
        token_mask(add(of.batch * of.tokens)),
        size(bytes()) {}
  int64_t similarity, log_normalizer, unit, start, end, token_mask, size;
};

struct GlobalMemory : private Layout, WeightsMemory {
  explicit GlobalMemory(const LossSizes& of)
      : WeightsMemory(*this, of),
        difference(add(of.batch * of.width * opmath)),
        totals(add(of.batch * 2 * opmath)),
        distance(add(of.batch * opmath)),
        size(bytes()) {}
  int64_t difference, totals, distance, size;
};

LossSizes read_sizes(Arguments& from, bool is_double) {
  return {from.value<int64_t>("batch"),
          from.value<int64_t>("frames"),
          from.value<int64_t>("tokens"),
          from.value<int64_t>("units"),
          from.value<int64_t>("width"),
          from.value<bool>("chosen"),
          is_double};
}

// The arguments that every loss has, forward and backward.
struct LossCall {
  explicit LossCall(Arguments& from)
      : element(from.element("element")),
        is_global(from.value<bool>("is_global")),
        sizes(read_sizes(from, element == Element::float64)),
        speech(from.rows("speech")),
        text(from.rows("text")),
        start(from.pointer<int32_t>("start")),
        end(from.pointer<int32_t>("end")),
        temperature(from.value<double>("temperature")),
        memory(from.pointer<char>("memory")),
        threads(from.value<int>("threads")) {}

  template <class T>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(memory + offset);
  }

  Element element;
  bool is_global;
  LossSizes sizes;
  Rows speech, text;
  const int32_t *start, *end;  // of spans that are given, or null
  double temperature;
  char* memory;
  int threads;
};

// (mask, prior, element of the prior), addresses 0 where there is none
PositionWeights read_side(Arguments& from, const char* name, const LossCall& call, int64_t length) {
  const auto [mask, prior, element] = from.value<std::tuple<Address, Address, int>>(name);
  PositionWeights side{};
  side.batch = call.sizes.batch;
  side.length = length;
  side.mask = pointer<uint8_t>(mask);
  side.prior = pointer<void>(prior);
  side.element = static_cast<Element>(element);
  side.is_double = call.sizes.is_double;
  return side;
}

template <class Op>
void read_weights(Arguments& from, const LossCall& call, const WeightsMemory& memory, Op& op) {
  op.frames = read_side(from, "speech_side", call, call.sizes.frames);
  op.tokens = read_side(from, "text_side", call, call.sizes.tokens);
  op.frames.weights = call.at<void>(memory.frame_weights);
  op.tokens.weights = call.at<void>(memory.token_weights);
  op.tokens.normalized = true;
  op.frames.masked = from.value<double>("masked_frame_weight");
  op.loss.batch = call.sizes.batch;
  op.loss.is_double = call.sizes.is_double;
  op.loss.reduction = static_cast<Reduction>(from.value<int>("reduction"));
  op.loss.loss = from.pointer<void>("loss");
}

void read_alignment(const LossCall& call, const LocalMemory& memory, AlignmentArguments& op) {
  op.batch = call.sizes.batch;
  op.frames = call.sizes.frames;
  op.tokens = call.sizes.tokens;
  op.width = call.sizes.width;
  op.units = call.sizes.units;
  op.element = call.element;
  op.speech = call.speech;
  op.text = call.text;
  op.frame_weights = call.at<void>(memory.frame_weights);
  op.token_mask = call.at<uint8_t>(memory.token_mask);
  op.start = call.sizes.chosen ? call.at<int32_t>(memory.start) : call.start;
  op.end = call.sizes.chosen ? call.at<int32_t>(memory.end) : call.end;
  op.temperature = call.temperature;
  op.threads = call.threads;
}

// Where the alignment writes, in the forward, and what is read of that, in the backward.
template <class Op>
void place_alignment(const LossCall& call, const LocalMemory& memory, Op& op) {
  op.similarity = call.at<void>(memory.similarity);
  op.unit = call.at<int64_t>(memory.unit);
  op.log_normalizer = call.at<void>(memory.log_normalizer);
}

void read_pooling(const LossCall& call, const GlobalMemory& memory, PooledDistanceArguments& op) {
  op.batch = call.sizes.batch;
  op.width = call.sizes.width;
  op.lengths[SPEECH] = call.sizes.frames;
  op.lengths[TEXT] = call.sizes.tokens;
  op.element = call.element;
  op.weights[SPEECH] = call.at<void>(memory.frame_weights);
  op.weights[TEXT] = call.at<void>(memory.token_weights);
  op.threads = call.threads;
}

UpstreamGradient read_upstream(Arguments& from) {
  return {from.pointer<void>("grad"), from.value<int64_t>("grad_stride"), from.value<double>("grad_scale")};
}

// PriorBounds, for Python.
using Bounds = std::tuple<double, double, double>;

Bounds bounds_of(const PriorBounds& priors) { return {priors.lowest, priors.highest, priors.lowest_peak}; }

// grad_scale, and the bounds of the priors of speech and of text.
using Found = std::tuple<double, Bounds, Bounds>;

template <class Op>
Found run(Op& op, double (*forward)(const Op&)) {
  PriorBounds frames, tokens;
  op.frames.bounds = &frames;
  op.tokens.bounds = &tokens;
  const double grad_scale = [&] {
    py::gil_scoped_release unlocked;
    return forward(op);
  }();
  return {grad_scale, bounds_of(frames), bounds_of(tokens)};
}

// How spans are chosen, by name; None: they are not.
struct Selection {
  explicit Selection(const py::object& given) {
    if (given.is_none()) return;
    const auto named = py::reinterpret_borrow<py::kwargs>(given);
    Arguments from(named);
    scales = from.value<std::vector<double>>("scales");
    spans.anchors = static_cast<Anchors>(from.value<int>("anchors"));
    spans.max_anchors = from.value<int64_t>("max_anchors");
    spans.anchors_for_all = from.value<int64_t>("anchors_for_all");
    spans.num_anchors = from.pointer<int64_t>("num_anchors");
    spans.scales = scales.data();
    spans.scale_count = static_cast<int64_t>(scales.size());
    from.finish();
  }
  std::vector<double> scales;
  LossSpans spans{};
};

Found local_forward(Arguments& from, const LossCall& call) {
  const LocalMemory memory(call.sizes);
  const Selection selection(from.value<py::object>("selection"));
  LocalLossForward op{};
  read_weights(from, call, memory, op);
  read_alignment(call, memory, op.alignment);
  place_alignment(call, memory, op.alignment);
  op.selection = selection.spans;
  op.start = call.at<int32_t>(memory.start);
  op.end = call.at<int32_t>(memory.end);
  op.token_mask = call.at<uint8_t>(memory.token_mask);
  op.loss.tokens = call.sizes.tokens;
  op.loss.similarity = op.alignment.similarity;
  op.loss.unit = op.alignment.unit;
  op.loss.token_weights = op.tokens.weights;
  from.finish();
  return run(op, local_loss_forward);
}

Found global_forward(Arguments& from, const LossCall& call) {
  const GlobalMemory memory(call.sizes);
  const Selection none(from.value<py::object>("selection"));
  GlobalLossForward op{};
  read_weights(from, call, memory, op);
  read_pooling(call, memory, op.pooling);
  op.pooling.values[SPEECH] = call.speech;
  op.pooling.values[TEXT] = call.text;
  op.pooling.distance = call.at<void>(memory.distance);
  op.pooling.difference = call.at<void>(memory.difference);
  op.pooling.totals = call.at<void>(memory.totals);
  op.loss.distance = op.pooling.distance;
  op.loss.totals = op.pooling.totals;
  from.finish();
  return run(op, global_loss_forward);
}

void local_backward(Arguments& from, const LossCall& call) {
  const LocalMemory memory(call.sizes);
  LocalLossBackward op{};
  read_alignment(call, memory, op.alignment);
  place_alignment(call, memory, op.alignment);
  op.token_weights = call.at<void>(memory.token_weights);
  op.upstream = read_upstream(from);
  op.alignment.grad_speech = from.pointer<void>("grad_speech");
  op.alignment.grad_text = from.pointer<void>("grad_text");
  from.finish();
  py::gil_scoped_release unlocked;
  local_loss_backward(op);
}

void global_backward(Arguments& from, const LossCall& call) {
  const GlobalMemory memory(call.sizes);
  GlobalLossBackward op{};
  read_pooling(call, memory, op.pooling);
  op.pooling.difference = call.at<void>(memory.difference);
  op.pooling.totals = call.at<void>(memory.totals);
  op.upstream = read_upstream(from);
  op.pooling.grad_values[SPEECH] = from.pointer<void>("grad_speech");
  op.pooling.grad_values[TEXT] = from.pointer<void>("grad_text");
  from.finish();
  py::gil_scoped_release unlocked;
  global_loss_backward(op);
}

Found loss_forward(const py::kwargs& named) {
  Arguments from(named);
  const LossCall call(from);
  return call.is_global ? global_forward(from, call) : local_forward(from, call);
}

void loss_backward(const py::kwargs& named) {
  Arguments from(named);
  const LossCall call(from);
  call.is_global ? global_backward(from, call) : local_backward(from, call);
}

py::dict loss_memory(const py::kwargs& named) {
  Arguments from(named);
  const bool is_global = from.value<bool>("is_global"), is_double = from.value<bool>("is_double");
  const LossSizes sizes = read_sizes(from, is_double);
  from.finish();
  using namespace py::literals;
  if (is_global) {
    const GlobalMemory memory(sizes);
    return py::dict("frame_weights"_a = memory.frame_weights, "token_weights"_a = memory.token_weights,
                    "difference"_a = memory.difference, "totals"_a = memory.totals, "bytes"_a = memory.size);
  }
  const LocalMemory memory(sizes);
  return py::dict("frame_weights"_a = memory.frame_weights, "token_weights"_a = memory.token_weights,
                  "similarity"_a = memory.similarity, "unit"_a = memory.unit,
                  "log_normalizer"_a = memory.log_normalizer, "start"_a = memory.start, "end"_a = memory.end,
                  "token_mask"_a = memory.token_mask, "bytes"_a = memory.size);
}

}  // namespace

void define_losses(py::module_& module) {
  module.def("loss_forward", &loss_forward);
  module.def("loss_backward", &loss_backward);
  module.def("loss_memory", &loss_memory, "What a loss keeps, by its offset in bytes; and `bytes` in all.");
}

}  // namespace pad
