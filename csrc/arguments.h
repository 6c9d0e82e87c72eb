// The arguments of a call from Python, by name alone, so that none can be taken for another.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <unordered_map>

#include "significance.h"
#include "tensor.h"

namespace pad {

namespace py = pybind11;

using Address = uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

class Arguments {
 public:
  explicit Arguments(const py::kwargs& named) : named_(named) {}

  template <class T>
  T value(const char* name) {
    return find(name).cast<T>();
  }

  // Address 0: null.
  template <class T>
  T* pointer(const char* name) {
    return pad::pointer<T>(value<Address>(name));
  }

  Element element(const char* name) { return static_cast<Element>(value<int>(name)); }

  // (address, strides in elements of all dimensions but the last)
  Rows rows(const char* name) {
    const auto [address, batch, row] = value<std::tuple<Address, int64_t, int64_t>>(name);
    return {pad::pointer<void>(address), batch, row};
  }

  HeadRows head_rows(const char* name) {
    const auto [address, batch, head, row] = value<std::tuple<Address, int64_t, int64_t, int64_t>>(name);
    return {pad::pointer<void>(address), batch, head, row};
  }

  // To be called once all are taken: a name that nobody asked for is an error.
  void finish() const {
    if (taken_ != named_.size()) throw py::type_error("an argument that this function does not know");
  }

 private:
  py::handle find(const char* name) {
    PyObject* found = PyDict_GetItem(named_.ptr(), interned(name));
    if (!found) throw py::type_error(std::string("missing argument: ") + name);
    ++taken_;
    return found;
  }

  // The Python string of a literal, made once: to make it at each look-up would take longer than a tiny loss does.
  static PyObject* interned(const char* literal) {
    static auto& known = *new std::unordered_map<const char*, PyObject*>;
    PyObject*& name = known[literal];
    if (!name) name = PyUnicode_InternFromString(literal);
    return name;
  }

  const py::kwargs& named_;
  size_t taken_ = 0;
};

}  // namespace pad
