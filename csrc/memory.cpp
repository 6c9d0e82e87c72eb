#include "memory.h"

#include <new>

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <vector>
#endif

namespace pad {

#if defined(__linux__)

namespace {

constexpr int64_t page = int64_t{1} << 16, large_page = int64_t{1} << 21;  // 64 KiB: whole pages on every kernel
constexpr size_t most_kept = 2;  // a step has a large gradient of speech, and perhaps one of text

struct Region {
  char* data;
  int64_t size;
};

// What is kept, the oldest first. Never destroyed: tensors may be freed after static objects.
struct Kept {
  std::mutex mutex;
  std::vector<Region> regions;
};

Kept& kept() {
  static Kept& instance = *new Kept;
  return instance;
}

// A process that is forked while another thread is in here would wait for it without end.
[[maybe_unused]] const int watches_forks =
    pthread_atfork([] { kept().mutex.lock(); }, [] { kept().mutex.unlock(); }, [] { kept().mutex.unlock(); });

// A kept region that is not much too large, or an empty one.
Region take(int64_t size) {
  std::lock_guard<std::mutex> lock(kept().mutex);
  auto& regions = kept().regions;
  auto best = regions.end();
  for (auto region = regions.begin(); region != regions.end(); ++region)
    if (region->size >= size && region->size <= 2 * size && (best == regions.end() || region->size < best->size))
      best = region;
  if (best == regions.end()) return {nullptr, 0};
  const Region found = *best;
  regions.erase(best);
  return found;
}

int64_t round_up(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

// Fresh memory that begins at a large page and asks for such pages where they are filled.
char* map(int64_t size) {
  void* whole = mmap(nullptr, size + large_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (whole == MAP_FAILED) throw std::bad_alloc();
  char* begin = static_cast<char*>(whole);
  const int64_t before = -reinterpret_cast<intptr_t>(begin) & (large_page - 1);
  if (before) munmap(begin, before);
  munmap(begin + before + size, large_page - before);
#if defined(MADV_HUGEPAGE)
  madvise(begin + before, size / large_page * large_page, MADV_HUGEPAGE);
#endif
  return begin + before;
}

}  // namespace

Memory::Memory(int64_t bytes) : bytes_(bytes) {
  const int64_t size = round_up(std::max<int64_t>(1, bytes), page);
  const Region found = take(size);
  data_ = found.data ? found.data : map(size);
  capacity_ = found.data ? found.size : size;
}

Memory::~Memory() {
  std::lock_guard<std::mutex> lock(kept().mutex);
  auto& regions = kept().regions;
  regions.push_back({static_cast<char*>(data_), capacity_});
  if (regions.size() <= most_kept) return;
  munmap(regions.front().data, regions.front().size);
  regions.erase(regions.begin());
}

void release_kept_memory() {
  std::lock_guard<std::mutex> lock(kept().mutex);
  for (const Region& region : kept().regions) munmap(region.data, region.size);
  kept().regions.clear();
}

#else

namespace {
constexpr std::align_val_t alignment{64};
}

Memory::Memory(int64_t bytes)
    : bytes_(bytes), capacity_(bytes), data_(::operator new(static_cast<size_t>(bytes), alignment)) {}

Memory::~Memory() { ::operator delete(data_, alignment); }

void release_kept_memory() {}

#endif

}  // namespace pad
