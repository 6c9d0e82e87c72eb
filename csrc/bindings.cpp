// The Python module: pointers, sizes and strides in, nothing out. The caller keeps the tensors alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "alignment.h"
#include "cpu/dispatch.h"
#include "device.h"
#include "loss.h"
#include "memory.h"
#include "pooling.h"
#include "significance.h"
#include "spans.h"
#include "weights.h"

namespace py = pybind11;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

using Address = uintptr_t;

// Where an op runs: on the CPU with so many threads, or (no threads) on a CUDA stream, with memory that the
// caller allocates, by size in bytes, for as long as the work takes.
struct Place {
  explicit Place(const py::tuple& place)
      : threads(place[0].cast<int>()), stream(pointer<void>(place[1].cast<Address>())), allocate(place[2]) {}

  bool on_cpu() const { return threads > 0; }

  void* memory(int64_t bytes) const { return bytes ? pointer<void>(allocate(bytes).cast<Address>()) : nullptr; }

  int threads;
  void* stream;
  py::object allocate;
};

template <class Arguments>
int64_t no_workspace(const Arguments&) {
  return 0;
}

template <class Arguments>
void run(const Place& place, const Arguments& arguments, void (*on_cpu)(const Arguments&),
         int64_t (*workspace)(const Arguments&),
         void (*on_gpu)(const Arguments&, const pad::cuda::ExecutionContext&)) {
  void* memory = place.on_cpu() ? nullptr : place.memory(workspace(arguments));
  py::gil_scoped_release unlocked;
  place.on_cpu() ? on_cpu(arguments) : on_gpu(arguments, {.workspace = memory, .stream = place.stream});
}

// sizes: batch, frames, tokens, units, width; strides: of speech and text, batch then row.
pad::AlignmentArguments alignment_arguments(const std::array<int64_t, 5>& sizes, const std::array<int64_t, 4>& strides,
                                            int element, Address speech, Address text, Address frame_prior,
                                            Address token_mask, Address start, Address end, double temperature,
                                            const Place& place) {
  return {sizes[0],
          sizes[1],
          sizes[2],
          sizes[3],
          sizes[4],
          static_cast<pad::Element>(element),
          {pointer<void>(speech), strides[0], strides[1]},
          {pointer<void>(text), strides[2], strides[3]},
          pointer<void>(frame_prior),
          pointer<uint8_t>(token_mask),
          pointer<int32_t>(start),
          pointer<int32_t>(end),
          temperature,
          place.threads};
}

void alignment_forward(const std::array<int64_t, 5>& sizes, const std::array<int64_t, 4>& strides, int element,
                       Address speech, Address text, Address frame_prior, Address token_mask, Address start,
                       Address end, double temperature, Address similarity, Address unit, Address log_normalizer,
                       const py::tuple& where) {
  const Place place(where);
  const pad::AlignmentForward arguments{
      alignment_arguments(sizes, strides, element, speech, text, frame_prior, token_mask, start, end, temperature,
                          place),
      pointer<void>(similarity), pointer<int64_t>(unit), pointer<void>(log_normalizer)};
  run(place, arguments, pad::alignment_forward, pad::cuda::alignment_forward_workspace, pad::cuda::alignment_forward);
}

void alignment_backward(const std::array<int64_t, 5>& sizes, const std::array<int64_t, 4>& strides, int element,
                        Address speech, Address text, Address frame_prior, Address token_mask, Address start,
                        Address end, double temperature, Address grad_similarity, Address similarity, Address unit,
                        Address log_normalizer, Address grad_speech, Address grad_text, const py::tuple& where) {
  const Place place(where);
  const pad::AlignmentBackward arguments{
      alignment_arguments(sizes, strides, element, speech, text, frame_prior, token_mask, start, end, temperature,
                          place),
      pointer<void>(grad_similarity), pointer<void>(similarity), pointer<int64_t>(unit),
      pointer<void>(log_normalizer),  pointer<void>(grad_speech), pointer<void>(grad_text)};
  run(place, arguments, pad::alignment_backward, pad::cuda::alignment_backward_workspace,
      pad::cuda::alignment_backward);
}

// sizes: batch, heads, length, width; strides: of query and key, batch, head and row.
void significance(const std::array<int64_t, 4>& sizes, const std::array<int64_t, 6>& strides, int element,
                  Address query, Address key, Address mask, Address lse, double scale, Address out,
                  const py::tuple& where) {
  const pad::SignificanceArguments arguments{sizes[0],
                                             sizes[1],
                                             sizes[2],
                                             sizes[3],
                                             static_cast<pad::Element>(element),
                                             {pointer<void>(query), strides[0], strides[1], strides[2]},
                                             {pointer<void>(key), strides[3], strides[4], strides[5]},
                                             pointer<uint8_t>(mask),
                                             pointer<void>(lse),
                                             scale,
                                             pointer<void>(out),
                                             Place(where).threads};
  py::gil_scoped_release unlocked;
  pad::significance(arguments);
}

// sizes: batch, frames, anchors of an utterance at most.
void select_spans(const std::array<int64_t, 3>& sizes, Address frame_prior, bool is_double, Address frame_mask,
                  Address num_tokens, Address num_anchors, const std::vector<double>& scales, Address xi, int anchors,
                  Address start, Address end, const py::tuple& where) {
  const Place place(where);
  const pad::SpanArguments arguments{sizes[0],
                                     sizes[1],
                                     sizes[2],
                                     static_cast<int64_t>(scales.size()),
                                     pointer<void>(frame_prior),
                                     is_double,
                                     pointer<uint8_t>(frame_mask),
                                     pointer<int64_t>(num_tokens),
                                     pointer<int64_t>(num_anchors),
                                     scales.data(),
                                     pointer<double>(xi),
                                     static_cast<pad::Anchors>(anchors),
                                     pointer<int32_t>(start),
                                     pointer<int32_t>(end),
                                     place.threads};
  run(place, arguments, pad::select_spans, pad::cuda::select_spans_workspace, pad::cuda::select_spans);
}

// sizes: batch, frames, tokens, width.
pad::PooledDistanceArguments pooled_distance_arguments(const std::array<int64_t, 4>& sizes, int element,
                                                       Address frame_weights, Address token_weights,
                                                       const Place& place) {
  return {sizes[0],
          sizes[3],
          {sizes[1], sizes[2]},
          static_cast<pad::Element>(element),
          {pointer<void>(frame_weights), pointer<void>(token_weights)},
          place.threads};
}

// strides: of speech and text, batch then row.
void pooled_distance_forward(const std::array<int64_t, 4>& sizes, int element, Address frame_weights,
                             Address token_weights, const std::array<int64_t, 4>& strides, Address speech,
                             Address text, Address distance, Address difference, Address totals,
                             const py::tuple& where) {
  const Place place(where);
  const pad::PooledDistanceForward arguments{
      pooled_distance_arguments(sizes, element, frame_weights, token_weights, place),
      {{pointer<void>(speech), strides[0], strides[1]}, {pointer<void>(text), strides[2], strides[3]}},
      pointer<void>(distance),
      pointer<void>(difference),
      pointer<void>(totals)};
  run(place, arguments, pad::pooled_distance_forward, no_workspace, pad::cuda::pooled_distance_forward);
}

// A gradient that is not wanted: address 0.
void pooled_distance_backward(const std::array<int64_t, 4>& sizes, int element, Address frame_weights,
                              Address token_weights, Address grad, Address difference, Address totals,
                              Address grad_speech, Address grad_text, const py::tuple& where) {
  const Place place(where);
  const pad::PooledDistanceBackward arguments{
      pooled_distance_arguments(sizes, element, frame_weights, token_weights, place),
      pointer<void>(grad),
      pointer<void>(difference),
      pointer<void>(totals),
      {pointer<void>(grad_speech), pointer<void>(grad_text)}};
  run(place, arguments, pad::pooled_distance_backward, no_workspace, pad::cuda::pooled_distance_backward);
}

// sizes: batch, length. Returns the bounds of the priors.
std::pair<double, double> position_weights(const std::array<int64_t, 2>& sizes, Address real, Address prior,
                                           int element, bool normalized, double masked, Address weights,
                                           bool is_double) {
  double bounds[2];
  pad::position_weights({sizes[0], sizes[1], pointer<uint8_t>(real), pointer<void>(prior),
                         static_cast<pad::Element>(element), normalized, masked, pointer<void>(weights), is_double,
                         bounds});
  return {bounds[0], bounds[1]};
}

bool spans_fit(Address start, Address end, int64_t count, int64_t frames) {
  return pad::spans_fit({.count = count, .start = pointer<int32_t>(start), .end = pointer<int32_t>(end)}, frames);
}

double token_loss(int64_t batch, bool is_double, int reduction, Address loss, int64_t tokens, Address similarity,
                  Address unit, Address weights) {
  return pad::token_loss({{batch, is_double, static_cast<pad::Reduction>(reduction), pointer<void>(loss)},
                          tokens, pointer<void>(similarity), pointer<int64_t>(unit), pointer<void>(weights)});
}

double pooled_loss(int64_t batch, bool is_double, int reduction, Address loss, Address distance, Address totals) {
  return pad::pooled_loss({{batch, is_double, static_cast<pad::Reduction>(reduction), pointer<void>(loss)},
                           pointer<void>(distance), pointer<void>(totals)});
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
  module.def("position_weights", &position_weights);
  module.def("spans_fit", &spans_fit);
  module.def("token_loss", &token_loss);
  module.def("pooled_loss", &pooled_loss);
  py::class_<pad::Memory>(module, "Memory", py::buffer_protocol(), "Bytes for a large result, kept when they are freed.")
      .def(py::init<int64_t>())
      .def_buffer([](const pad::Memory& memory) {
        return py::buffer_info(static_cast<uint8_t*>(memory.data()), memory.bytes());
      });
  module.attr("LARGE_RESULT_BYTES") = pad::large_result_bytes;
  module.attr("CUDA_MAX_WIDTH") = pad::cuda::max_width;
  module.def("release_kept_memory", &pad::release_kept_memory, "Give back to the system what is kept of freed results.");
  module.def("cuda_targets", &pad::cuda::targets, "What the CUDA kernels were compiled for; empty: not at all.");
  module.def("cuda_failure", &pad::cuda::failure, "Why the CUDA runtime cannot be used; empty if it can.");
  module.def("instruction_set", &pad::instruction_set, "The instruction set in use: baseline, avx2, avx512 or avx512_bf16.");
  module.def("set_instruction_set", &pad::set_instruction_set,
             "Choose a lesser instruction set, for tests; False where it is not to be had.");
}
