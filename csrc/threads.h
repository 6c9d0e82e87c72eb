// Runs tasks on several threads; the result never depends on how many there are.
#pragma once
#include <cstdint>

namespace pad {

// Calls task(context, index, thread) for each index in [0, count), in order of index per thread,
// on at most `threads` threads (thread < threads). Returns when all are done.
void parallel_for(int64_t count, int threads, void (*task)(void*, int64_t, int), void* context);

// Asks the system for large pages behind a fresh buffer that is about to be written whole.
void advise_large_pages(void* data, int64_t bytes);

}  // namespace pad
