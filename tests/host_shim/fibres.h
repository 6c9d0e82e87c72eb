// A fibre for each thread of a block, all on the calling thread: quick, and a barrier that not all threads
// reach is reported instead of waited for.
#pragma once
#include <ucontext.h>

#include <memory>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

inline dim3 threadIdx, blockIdx;

namespace host_shim {

constexpr size_t STACK_SIZE = 128 * 1024;

enum class Waiting { no, block, warp, done };

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK_SIZE]};
  void* sanitizer_stack = nullptr;
  Waiting waiting = Waiting::done;
  unsigned votes = 0;
};

struct Scheduler {
  std::vector<Fibre> fibres;
  ucontext_t context;
  void* sanitizer_stack = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
  const std::function<void()>* kernel = nullptr;
};

inline Scheduler scheduler;

inline void pause(Waiting why, unsigned votes) {
  Fibre& fibre = scheduler.fibres[threadIdx.x];
  fibre.waiting = why;
  fibre.votes = votes;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(why == Waiting::done ? nullptr : &fibre.sanitizer_stack, scheduler.bottom,
                                 scheduler.size);
#endif
  swapcontext(&fibre.context, &scheduler.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fibre.sanitizer_stack, nullptr, nullptr);
#endif
}

inline void enter() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.bottom, &scheduler.size);
#endif
  (*scheduler.kernel)();
  pause(Waiting::done, 0);
}

inline void resume(unsigned thread) {
  Fibre& fibre = scheduler.fibres[thread];
  threadIdx.x = thread;
  fibre.waiting = Waiting::no;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&scheduler.sanitizer_stack, fibre.stack.get(), STACK_SIZE);
#endif
  swapcontext(&scheduler.context, &fibre.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(scheduler.sanitizer_stack, nullptr, nullptr);
#endif
}

// Runs [first, past) on if all of them that are not done wait for the same; false if all are done.
inline bool release(unsigned first, unsigned past, Waiting what) {
  unsigned votes = 0;
  bool any = false;
  for (unsigned t = first; t < past; ++t) {
    const Fibre& fibre = scheduler.fibres[t];
    if (fibre.waiting == Waiting::done) continue;
    if (fibre.waiting != what) return false;
    votes |= fibre.votes;
    any = true;
  }
  if (!any) return false;
  for (unsigned t = first; t < past; ++t) scheduler.fibres[t].votes = votes;
  for (unsigned t = first; t < past; ++t)
    if (scheduler.fibres[t].waiting == what) resume(t);
  return true;
}

inline unsigned block_barrier(unsigned votes) {
  pause(Waiting::block, votes);
  return scheduler.fibres[threadIdx.x].votes;
}

inline unsigned warp_barrier(unsigned votes) {
  pause(Waiting::warp, votes);
  return scheduler.fibres[threadIdx.x].votes;
}

inline void run_block(unsigned threads) {
  for (unsigned t = 0; t < threads; ++t) {
    Fibre& fibre = scheduler.fibres[t];
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(fibre.stack.get(), STACK_SIZE);
#endif
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = STACK_SIZE;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, enter, 0);
  }
  for (unsigned t = 0; t < threads; ++t) resume(t);
  while (true) {
    bool done = true, moved = false;
    for (unsigned t = 0; t < threads; ++t) done &= scheduler.fibres[t].waiting == Waiting::done;
    if (done) return;
    for (unsigned first = 0; first < threads; first += 32) moved |= release(first, first + 32, Waiting::warp);
    moved |= release(0, threads, Waiting::block);
    if (moved) continue;
    std::fputs("host shim: threads of a block wait at different barriers\n", stderr);
    std::abort();
  }
}

inline void run(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  if (scheduler.fibres.size() < threads) scheduler.fibres = std::vector<Fibre>(threads);
  scheduler.kernel = &kernel;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) run_block(threads);
}

}  // namespace host_shim
