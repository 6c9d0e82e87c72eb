#include "threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace pad {
namespace {

constexpr int most_stretches = 64;

// The tasks of one stretch that nobody has begun yet. A cache line each, so that threads do not wait for one another.
struct alignas(64) Stretch {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

struct Job {
  Job(int64_t count, int stretches, void (*task)(void*, int64_t), void* context)
      : stretch_count(stretches), task(task), context(context) {
    for (int i = 0; i < stretches; ++i) {
      stretch[i].next = i * count / stretches;
      stretch[i].end = (i + 1) * count / stretches;
    }
  }

  // A thread's own stretch first, then what is left of the others'.
  void work(int thread) {
    try {
      for (int i = 0; i < stretch_count; ++i) {
        Stretch& own = stretch[(thread + i) % stretch_count];
        for (int64_t index; (index = own.next.fetch_add(1)) < own.end;) task(context, index);
      }
    } catch (...) {
      std::lock_guard<std::mutex> lock(failure_mutex);
      failure = std::current_exception();
      for (int i = 0; i < stretch_count; ++i) stretch[i].next = stretch[i].end;
    }
  }

  const int stretch_count;
  void (*const task)(void*, int64_t);
  void* const context;
  Stretch stretch[most_stretches];
  std::exception_ptr failure;
  std::mutex failure_mutex;
};

template <class Function>
Function loaded(const char* name) {
#if defined(_WIN32)
  return (void)name, nullptr;
#else
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
#endif
}

// The OpenMP runtime that torch has loaded: running on its threads, instead of a pool of our own, keeps
// two pools from fighting over the cores. Every OpenMP runtime in use (GNU, LLVM, Intel) has these entries.
struct OpenMP {
  void (*const parallel)(void (*)(void*), void*, unsigned, unsigned) = loaded<decltype(parallel)>("GOMP_parallel");
  int (*const thread_number)() = loaded<decltype(thread_number)>("omp_get_thread_num");
};

// A process that was forked has none of the threads; GNU's runtime would wait for them without end. They may be of
// torch's making, so forks are watched from the start.
std::atomic<bool> forked{false};
#if !defined(_WIN32)
[[maybe_unused]] const int watches_forks = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

const OpenMP* openmp() {
  static const OpenMP runtime;
  return runtime.parallel && runtime.thread_number && !forked ? &runtime : nullptr;
}

void work_in_team(void* job) { static_cast<Job*>(job)->work(openmp()->thread_number()); }

void run(int64_t count, int threads, bool own_stretches, void (*task)(void*, int64_t), void* context) {
  const int used = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, count)));
  Job job(count, own_stretches ? std::min(used, most_stretches) : 1, task, context);
  if (used == 1) {
    job.work(0);
  } else if (const OpenMP* runtime = openmp()) {
    runtime->parallel(work_in_team, &job, static_cast<unsigned>(used), 0);
  } else {
    std::vector<std::thread> helpers;
    helpers.reserve(static_cast<size_t>(used));
    try {
      for (int i = 1; i < used; ++i) helpers.emplace_back([&job, i] { job.work(i); });
    } catch (const std::exception&) {  // no more threads, or no memory for one: those that there are do all
    }
    job.work(0);
    for (auto& helper : helpers) helper.join();
  }
  if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace

void parallel_for(int64_t count, int threads, void (*task)(void*, int64_t), void* context) {
  run(count, threads, false, task, context);
}

void parallel_for_rows(int64_t count, int threads, void (*task)(void*, int64_t), void* context) {
  run(count, threads, true, task, context);
}

}  // namespace pad
