#include "threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <dlfcn.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace pad {
namespace {

struct Job {
  int64_t count;
  void (*task)(void*, int64_t, int);
  void* context;
  std::atomic<int64_t> next{0};
  std::atomic<int> arrived{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;

  void work() {
    const int thread = arrived.fetch_add(1);
    try {
      for (int64_t index; (index = next.fetch_add(1)) < count;) task(context, index, thread);
    } catch (...) {
      std::lock_guard<std::mutex> lock(failure_mutex);
      failure = std::current_exception();
      next = count;
    }
  }
};

// The OpenMP runtime that torch has loaded: running on its threads, instead of a pool of our own, keeps
// two pools from fighting over the cores. Every OpenMP runtime in use (GNU, LLVM, Intel) has this entry.
using OpenMPParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

OpenMPParallel openmp_parallel() {
#if defined(_WIN32)
  return nullptr;
#else
  static const auto function = reinterpret_cast<OpenMPParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return function;
#endif
}

void run(void* job) { static_cast<Job*>(job)->work(); }

}  // namespace

void parallel_for(int64_t count, int threads, void (*task)(void*, int64_t, int), void* context) {
  Job job{count, task, context};
  const int used = static_cast<int>(std::min<int64_t>(threads, count));
  if (used <= 1) {
    job.work();
  } else if (const OpenMPParallel parallel = openmp_parallel()) {
    parallel(run, &job, static_cast<unsigned>(used), 0);
  } else {
    std::vector<std::thread> helpers;
    for (int i = 1; i < used; ++i) helpers.emplace_back(run, &job);
    job.work();
    for (auto& helper : helpers) helper.join();
  }
  if (job.failure) std::rethrow_exception(job.failure);
}

void advise_large_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t large_page = uintptr_t{1} << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + large_page - 1) & ~(large_page - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(large_page - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace pad
