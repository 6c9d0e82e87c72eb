// A host thread for each thread of a block, so that a race between two of them is a race to ThreadSanitizer.
#pragma once
#include <condition_variable>
#include <thread>
#include <vector>

inline thread_local dim3 threadIdx, blockIdx;

namespace host_shim {

// Combines the votes of those who reach it.
class Barrier {
 public:
  void reset(unsigned threads) {
    expected_ = threads;
    arrived_ = 0;
    votes_ = 0;
  }

  unsigned wait(unsigned votes) {
    std::unique_lock<std::mutex> lock(mutex_);
    votes_ |= votes;
    const uint64_t generation = generation_;
    if (++arrived_ == expected_) release();
    else changed_.wait(lock, [&] { return generation_ != generation; });
    return result_;
  }

  void leave() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--expected_ > 0 && arrived_ == expected_) release();
  }

 private:
  void release() {
    result_ = votes_;
    votes_ = 0;
    arrived_ = 0;
    ++generation_;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  unsigned expected_ = 0, arrived_ = 0, votes_ = 0, result_ = 0;
  uint64_t generation_ = 0;
};

inline Barrier block, end_of_block, warps[32];

inline unsigned block_barrier(unsigned votes) { return block.wait(votes); }
inline unsigned warp_barrier(unsigned votes) { return warps[threadIdx.x / 32].wait(votes); }

inline void reset(unsigned threads) {
  block.reset(threads);
  for (unsigned w = 0; w < threads / 32; ++w) warps[w].reset(32);
}

inline void run(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  reset(threads);
  end_of_block.reset(threads);
  const auto body = [&](unsigned thread) {
    threadIdx.x = thread;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
      kernel();
      block.leave();
      warps[thread / 32].leave();
      end_of_block.wait(0);
      if (thread == 0) reset(threads);
      end_of_block.wait(0);
    }
  };
  std::vector<std::thread> team;
  for (unsigned t = 0; t < threads; ++t) team.emplace_back(body, t);
  for (std::thread& thread : team) thread.join();
}

}  // namespace host_shim
