// Memory of one task.
#pragma once
#include <cstddef>
#include <cstdint>
#include <new>

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// Uninitialized memory of one task, aligned to a vector.
template <class S>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<S*>(::operator new(static_cast<size_t>(size > 0 ? size : 1) * sizeof(S), alignment))) {}
  ~Buffer() { free(); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  // Before its time, where what comes next is large.
  void free() {
    ::operator delete(data_, alignment);
    data_ = nullptr;
  }
  S* data() const { return data_; }
  S& operator[](int64_t i) const { return data_[i]; }

 private:
  static constexpr std::align_val_t alignment{64};
  S* data_;
};

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
