// The Python module: pointers, sizes and strides in, nothing out. The caller keeps the tensors alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <vector>

#include "alignment.h"
#include "cpu/dispatch.h"
#include "pooling.h"
#include "significance.h"
#include "spans.h"

namespace py = pybind11;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

using Address = uintptr_t;

// sizes: batch, frames, tokens, units, width; strides: of speech and text, batch then row.
pad::AlignmentArguments alignment_arguments(const std::array<int64_t, 5>& sizes, const std::array<int64_t, 4>& strides,
                                            int element, Address speech, Address text, Address frame_prior,
                                            Address token_mask, Address start, Address end, double temperature,
                                            int threads) {
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
          threads};
}

void alignment_forward(const std::array<int64_t, 5>& sizes, const std::array<int64_t, 4>& strides, int element,
                       Address speech, Address text, Address frame_prior, Address token_mask, Address start,
                       Address end, double temperature, int threads, Address similarity, Address unit,
                       Address log_normalizer) {
  const pad::AlignmentForward arguments{
      alignment_arguments(sizes, strides, element, speech, text, frame_prior, token_mask, start, end, temperature,
                          threads),
      pointer<void>(similarity), pointer<int64_t>(unit), pointer<void>(log_normalizer)};
  py::gil_scoped_release unlocked;
  pad::alignment_forward(arguments);
}

void alignment_backward(const std::array<int64_t, 5>& sizes, const std::array<int64_t, 4>& strides, int element,
                        Address speech, Address text, Address frame_prior, Address token_mask, Address start,
                        Address end, double temperature, int threads, Address grad_similarity, Address similarity,
                        Address unit, Address log_normalizer, Address grad_speech, Address grad_text) {
  const pad::AlignmentBackward arguments{
      alignment_arguments(sizes, strides, element, speech, text, frame_prior, token_mask, start, end, temperature,
                          threads),
      pointer<void>(grad_similarity), pointer<void>(similarity), pointer<int64_t>(unit),
      pointer<void>(log_normalizer),  pointer<void>(grad_speech), pointer<void>(grad_text)};
  py::gil_scoped_release unlocked;
  pad::alignment_backward(arguments);
}

// sizes: batch, heads, length, width; strides: of query and key, batch, head and row.
void significance(const std::array<int64_t, 4>& sizes, const std::array<int64_t, 6>& strides, int element,
                  Address query, Address key, Address mask, Address lse, double scale, int threads, Address out) {
  const pad::SignificanceArguments arguments{sizes[0],
                                             sizes[1],
                                             sizes[2],
                                             sizes[3],
                                             static_cast<pad::Element>(element),
                                             {pointer<void>(query), strides[0], strides[1], strides[2]},
                                             {pointer<void>(key), strides[3], strides[4], strides[5]},
                                             pointer<uint8_t>(mask),
                                             pointer<float>(lse),
                                             scale,
                                             pointer<void>(out),
                                             threads};
  py::gil_scoped_release unlocked;
  pad::significance(arguments);
}

// sizes: batch, frames, anchors of an utterance at most.
void select_spans(const std::array<int64_t, 3>& sizes, Address frame_prior, bool is_double, Address frame_mask,
                  Address num_tokens, Address num_anchors, const std::vector<double>& scales, Address xi, int anchors,
                  int threads, Address start, Address end) {
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
                                     threads};
  py::gil_scoped_release unlocked;
  pad::select_spans(arguments);
}

// sizes: batch, length, width; strides: of values, batch and row.
void pooling_forward(const std::array<int64_t, 3>& sizes, const std::array<int64_t, 2>& strides, int element,
                     Address values, Address weights, int threads, Address out) {
  const pad::PoolingForward arguments{
      {sizes[0], sizes[1], sizes[2], static_cast<pad::Element>(element), pointer<void>(weights), threads},
      {pointer<void>(values), strides[0], strides[1]},
      pointer<void>(out)};
  py::gil_scoped_release unlocked;
  pad::pooling_forward(arguments);
}

void pooling_backward(const std::array<int64_t, 3>& sizes, int element, Address grad, Address weights, int threads,
                      Address grad_values) {
  const pad::PoolingBackward arguments{
      {sizes[0], sizes[1], sizes[2], static_cast<pad::Element>(element), pointer<void>(weights), threads},
      pointer<void>(grad),
      pointer<void>(grad_values)};
  py::gil_scoped_release unlocked;
  pad::pooling_backward(arguments);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Compiled kernels of pad_kernels, on raw pointers.";
  module.def("alignment_forward", &alignment_forward);
  module.def("alignment_backward", &alignment_backward);
  module.def("significance", &significance);
  module.def("select_spans", &select_spans);
  module.def("pooling_forward", &pooling_forward);
  module.def("pooling_backward", &pooling_backward);
  module.def("instruction_set", &pad::instruction_set, "The instruction set in use: baseline, avx2 or avx512.");
  module.def("set_instruction_set", &pad::set_instruction_set,
             "Choose a lesser instruction set, for tests; False where it is not to be had.");
}
