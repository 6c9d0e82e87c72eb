// Runs tasks on several threads; the result never depends on how many there are.
#pragma once
#include <cstdint>

namespace pad {

// Calls task(context, index) for each index in [0, count) on at most `threads` threads: whichever is free takes the
// next index, so put the longest tasks first. Returns when all are done.
void parallel_for(int64_t count, int threads, void (*task)(void*, int64_t), void* context);

// The same for short tasks on neighboring memory: a thread takes a stretch of indices of its own, as torch's ops do,
// and so finds in its cache what it or they left there; when done it helps the others.
void parallel_for_rows(int64_t count, int threads, void (*task)(void*, int64_t), void* context);

}  // namespace pad
