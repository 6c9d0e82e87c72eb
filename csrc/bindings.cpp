// The Python module: pointers, sizes and strides in, by name. The caller keeps the tensors alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "alignment.h"
#include "arguments.h"
#include "cpu/dispatch.h"
#include "device.h"
#include "loss_bindings.h"
#include "memory.h"
#include "pooling.h"
#include "significance.h"
#include "spans.h"

namespace py = pybind11;

namespace {

using pad::Arguments;

// Where an op runs: on the CPU with so many threads, or (no threads) on a CUDA stream, with memory that the
// caller allocates, by size in bytes, for as long as the work takes.
struct CallContext {
  explicit CallContext(const py::tuple& context)
      : threads(context[0].cast<int>()),
        stream(pad::pointer<void>(context[1].cast<pad::Address>())),
        allocate(context[2]) {}

  bool on_cpu() const { return threads > 0; }

  void* memory(int64_t bytes) const {
    return bytes ? pad::pointer<void>(allocate(bytes).cast<pad::Address>()) : nullptr;
  }

  int threads;
  void* stream;
  py::object allocate;
};

template <class Op>
int64_t no_workspace(const Op&) {
  return 0;
}

template <class Op>
void run(const CallContext& context, const Op& op, void (*on_cpu)(const Op&), int64_t (*workspace)(const Op&),
         void (*on_gpu)(const Op&, const pad::cuda::ExecutionContext&)) {
  void* memory = context.on_cpu() ? nullptr : context.memory(workspace(op));
  py::gil_scoped_release unlocked;
  context.on_cpu() ? on_cpu(op) : on_gpu(op, {.workspace = memory, .stream = context.stream});
}

CallContext read_alignment(Arguments& from, pad::AlignmentArguments& op) {
  const CallContext context(from.value<py::tuple>("context"));
  op.batch = from.value<int64_t>("batch");
  op.frames = from.value<int64_t>("frames");
  op.tokens = from.value<int64_t>("tokens");
  op.units = from.value<int64_t>("units");
  op.width = from.value<int64_t>("width");
  op.element = from.element("element");
  op.speech = from.rows("speech");
  op.text = from.rows("text");
  op.frame_weights = from.pointer<void>("frame_weights");
  op.token_mask = from.pointer<uint8_t>("token_mask");
  op.start = from.pointer<int32_t>("start");
  op.end = from.pointer<int32_t>("end");
  op.temperature = from.value<double>("temperature");
  op.threads = context.threads;
  return context;
}

void alignment_forward(const py::kwargs& named) {
  Arguments from(named);
  pad::AlignmentForward op{};
  const CallContext context = read_alignment(from, op);
  op.similarity = from.pointer<void>("similarity");
  op.unit = from.pointer<int64_t>("unit");
  op.log_normalizer = from.pointer<void>("log_normalizer");
  from.finish();
  run(context, op, pad::alignment_forward, pad::cuda::alignment_forward_workspace, pad::cuda::alignment_forward);
}

void alignment_backward(const py::kwargs& named) {
  Arguments from(named);
  pad::AlignmentBackward op{};
  const CallContext context = read_alignment(from, op);
  op.grad_similarity = from.pointer<void>("grad_similarity");
  op.similarity = from.pointer<void>("similarity");
  op.unit = from.pointer<int64_t>("unit");
  op.log_normalizer = from.pointer<void>("log_normalizer");
  op.grad_speech = from.pointer<void>("grad_speech");
  op.grad_text = from.pointer<void>("grad_text");
  from.finish();
  run(context, op, pad::alignment_backward, pad::cuda::alignment_backward_workspace, pad::cuda::alignment_backward);
}

void significance(const py::kwargs& named) {
  Arguments from(named);
  pad::SignificanceArguments op{};
  op.batch = from.value<int64_t>("batch");
  op.heads = from.value<int64_t>("heads");
  op.length = from.value<int64_t>("length");
  op.width = from.value<int64_t>("width");
  op.element = from.element("element");
  op.query = from.head_rows("query");
  op.key = from.head_rows("key");
  op.mask = from.pointer<uint8_t>("mask");
  op.lse = from.pointer<void>("lse");
  op.scale = from.value<double>("scale");
  op.out = from.pointer<void>("out");
  op.threads = CallContext(from.value<py::tuple>("context")).threads;
  from.finish();
  py::gil_scoped_release unlocked;
  pad::significance(op);
}

void select_spans(const py::kwargs& named) {
  Arguments from(named);
  const CallContext context(from.value<py::tuple>("context"));
  const auto scales = from.value<std::vector<double>>("scales");
  pad::SpanArguments op{};
  op.batch = from.value<int64_t>("batch");
  op.frames = from.value<int64_t>("frames");
  op.max_anchors = from.value<int64_t>("max_anchors");
  op.scale_count = static_cast<int64_t>(scales.size());
  op.frame_weights = from.pointer<void>("frame_weights");
  op.is_double = from.value<bool>("is_double");
  op.frame_mask = from.pointer<uint8_t>("frame_mask");
  op.num_tokens = from.pointer<int64_t>("num_tokens");
  op.num_anchors = from.pointer<int64_t>("num_anchors");
  op.scales = scales.data();
  op.xi = from.pointer<double>("xi");
  op.anchors = static_cast<pad::Anchors>(from.value<int>("anchors"));
  op.start = from.pointer<int32_t>("start");
  op.end = from.pointer<int32_t>("end");
  op.threads = context.threads;
  from.finish();
  run(context, op, pad::select_spans, pad::cuda::select_spans_workspace, pad::cuda::select_spans);
}

CallContext read_pooling(Arguments& from, pad::PooledDistanceArguments& op) {
  const CallContext context(from.value<py::tuple>("context"));
  op.batch = from.value<int64_t>("batch");
  op.width = from.value<int64_t>("width");
  op.lengths[pad::SPEECH] = from.value<int64_t>("frames");
  op.lengths[pad::TEXT] = from.value<int64_t>("tokens");
  op.element = from.element("element");
  op.weights[pad::SPEECH] = from.pointer<void>("frame_weights");
  op.weights[pad::TEXT] = from.pointer<void>("token_weights");
  op.threads = context.threads;
  return context;
}

void pooled_distance_forward(const py::kwargs& named) {
  Arguments from(named);
  pad::PooledDistanceForward op{};
  const CallContext context = read_pooling(from, op);
  op.values[pad::SPEECH] = from.rows("speech");
  op.values[pad::TEXT] = from.rows("text");
  op.distance = from.pointer<void>("distance");
  op.difference = from.pointer<void>("difference");
  op.totals = from.pointer<void>("totals");
  from.finish();
  run(context, op, pad::pooled_distance_forward, no_workspace, pad::cuda::pooled_distance_forward);
}

// A gradient that is not wanted: address 0.
void pooled_distance_backward(const py::kwargs& named) {
  Arguments from(named);
  pad::PooledDistanceBackward op{};
  const CallContext context = read_pooling(from, op);
  op.grad = from.pointer<void>("grad");
  op.difference = from.pointer<void>("difference");
  op.totals = from.pointer<void>("totals");
  op.grad_values[pad::SPEECH] = from.pointer<void>("grad_speech");
  op.grad_values[pad::TEXT] = from.pointer<void>("grad_text");
  from.finish();
  run(context, op, pad::pooled_distance_backward, no_workspace, pad::cuda::pooled_distance_backward);
}

bool spans_fit(const py::kwargs& named) {
  Arguments from(named);
  pad::SpanBounds spans{};
  spans.count = from.value<int64_t>("count");
  spans.start = from.pointer<int32_t>("start");
  spans.end = from.pointer<int32_t>("end");
  const auto frames = from.value<int64_t>("frames");
  from.finish();
  return pad::spans_fit(spans, frames);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Compiled kernels of pad_kernels, on raw pointers.";
  module.def("alignment_forward", &alignment_forward);
  module.def("alignment_backward", &alignment_backward);
  module.def("significance", &significance);
  module.def("select_spans", &select_spans);
  module.def("pooled_distance_forward", &pooled_distance_forward);
  module.def("pooled_distance_backward", &pooled_distance_backward);
  module.def("spans_fit", &spans_fit);
  pad::define_losses(module);
  py::class_<pad::Memory>(module, "Memory", py::buffer_protocol(),
                          "Bytes for a large result, kept when they are freed.")
      .def(py::init<int64_t>())
      .def_buffer([](const pad::Memory& memory) {
        return py::buffer_info(static_cast<uint8_t*>(memory.data()), memory.bytes());
      });
  module.attr("LARGE_RESULT_BYTES") = pad::large_result_bytes;
  module.attr("CUDA_MAX_WIDTH") = pad::cuda::max_width;
  module.def("release_kept_memory", &pad::release_kept_memory,
             "Give back to the system what is kept of freed results.");
  module.def("sources", [] { return PAD_SOURCES; }, "Digest of the sources that this was compiled from; empty: none.");
  module.def("cuda_targets", &pad::cuda::targets, "What the CUDA kernels were compiled for; empty: not at all.");
  module.def("cuda_failure", &pad::cuda::failure, "Why the CUDA runtime cannot be used; empty if it can.");
  module.def("instruction_set", &pad::instruction_set,
             "The instruction set in use: baseline, avx2, avx512, avx512_bf16 or amx.");
  module.def("set_instruction_set", &pad::set_instruction_set,
             "Choose a lesser instruction set, for tests; False where it is not to be had.");
}
