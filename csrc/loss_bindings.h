// Whole losses for the Python module.
#pragma once
#include <pybind11/pybind11.h>

namespace pad {

void define_losses(pybind11::module_& module);

}  // namespace pad
