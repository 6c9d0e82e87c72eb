// The Python module: pointers, sizes and strides in, nothing out. The caller keeps the tensors alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "alignment.h"
#include "cpu/dispatch.h"

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

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Compiled kernels of pad_kernels, on raw pointers.";
  module.def("alignment_forward", &alignment_forward);
  module.def("alignment_backward", &alignment_backward);
  module.def("instruction_set", &pad::instruction_set, "The instruction set in use: baseline, avx2 or avx512.");
  module.def("set_instruction_set", &pad::set_instruction_set,
             "Choose a lesser instruction set, for tests; False where it is not to be had.");
}
