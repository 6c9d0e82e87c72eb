#include "cpu/dispatch.h"

#include <atomic>
#include <cstring>

#include "alignment.h"
#include "pooling.h"
#include "significance.h"

namespace pad {
namespace {

enum class Level : int { baseline = 0, avx2 = 1, avx512 = 2 };
const char* const names[] = {"baseline", "avx2", "avx512"};

Level best_level() {
#if defined(PAD_X86)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return Level::avx512;
  if (has_avx2) return Level::avx2;
#endif
  return Level::baseline;
}

std::atomic<int>& level() {
  static std::atomic<int> value{static_cast<int>(best_level())};
  return value;
}

}  // namespace

const char* instruction_set() { return names[level()]; }

bool set_instruction_set(const char* name) {
  for (int candidate = 0; candidate <= static_cast<int>(best_level()); ++candidate)
    if (std::strcmp(name, names[candidate]) == 0) {
      level() = candidate;
      return true;
    }
  return false;
}

#if defined(PAD_X86)
#define PAD_DISPATCH(function, Arguments)                                       \
  namespace baseline { void function(const Arguments&); }                       \
  namespace avx2 { void function(const Arguments&); }                           \
  namespace avx512 { void function(const Arguments&); }                         \
  void function(const Arguments& arguments) {                                   \
    const Level chosen = static_cast<Level>(level().load());                      \
    if (chosen == Level::avx512) return pad::avx512::function(arguments);       \
    if (chosen == Level::avx2) return pad::avx2::function(arguments);           \
    pad::baseline::function(arguments);                                         \
  }
#else
#define PAD_DISPATCH(function, Arguments)                                       \
  namespace baseline { void function(const Arguments&); }                       \
  void function(const Arguments& arguments) { pad::baseline::function(arguments); }
#endif

PAD_DISPATCH(alignment_forward, AlignmentForward)
PAD_DISPATCH(alignment_backward, AlignmentBackward)
PAD_DISPATCH(significance, SignificanceArguments)
PAD_DISPATCH(pooling_forward, PoolingForward)
PAD_DISPATCH(pooling_backward, PoolingBackward)

}  // namespace pad
