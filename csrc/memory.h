// Memory for large results on a CPU. On Linux the last two blocks that were freed are kept for the next ones of their
// size, so that their pages need not be cleared again, which costs as much as filling them.
#pragma once
#include <cstdint>

namespace pad {

// From this size on a result finds little room in the caches and its memory is worth keeping.
constexpr int64_t large_result_bytes = int64_t{1} << 23;

class Memory {
 public:
  explicit Memory(int64_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_, capacity_;
  void* data_;
};

// Gives back to the system what is kept.
void release_kept_memory();

}  // namespace pad
