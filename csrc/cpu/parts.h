// Scheduling: an utterance is worked on in parts, so that a small batch fills many threads.
#pragma once
#include "alignment.h"
#include "cpu/buffer.h"
#include "cpu/scalar.h"
#include "threads.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// A matter of sizes alone: the order of the sums, and so every bit of the result, is the same for any number of
// threads.
inline int64_t parts_of_utterance(const AlignmentArguments& arguments) {
  constexpr int64_t wanted_tasks = 16, smallest_part = 96;
  const int64_t wanted = (wanted_tasks + maximum(1, arguments.batch) - 1) / maximum(1, arguments.batch);
  return maximum(1, minimum(wanted, arguments.frames / smallest_part));
}

// What one task does.
struct PartIndex {
  int64_t batch, part, parts;
};

// Calls task(PartIndex) for every part of every utterance, the utterances with the most valid frames first, so that no
// thread is left alone with a long one at the end.
template <class S, class Task>
inline void for_each_part(const AlignmentArguments& arguments, int64_t parts, const Task& task) {
  const Buffer<int64_t> order(arguments.batch), frames(arguments.batch), place(arguments.frames + 2);
  const S* weights = static_cast<const S*>(arguments.frame_weights);
  for (int64_t n = 0; n < arguments.frames + 2; ++n) place[n] = 0;
  for (int64_t b = 0; b < arguments.batch; ++b) {
    frames[b] = 0;
    for (int64_t i = 0; i < arguments.frames; ++i) frames[b] += weights[b * arguments.frames + i] > 0;
    ++place[arguments.frames - frames[b] + 1];
  }
  for (int64_t n = 0; n < arguments.frames; ++n) place[n + 1] += place[n];
  for (int64_t b = 0; b < arguments.batch; ++b) order[place[arguments.frames - frames[b]]++] = b;
  struct Context {
    const Task& task;
    const int64_t* order;
    int64_t parts;
  } context{task, order.data(), parts};
  parallel_for(
      arguments.batch * parts, arguments.threads,
      [](void* raw, int64_t i) {
        const Context& own = *static_cast<Context*>(raw);
        own.task(PartIndex{own.order[i / own.parts], i % own.parts, own.parts});
      },
      &context);
}

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
