#include "cpu/dispatch.h"

#include <atomic>
#include <cstring>

#if defined(PAD_X86)
#include <cpuid.h>
#endif
#if defined(PAD_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "alignment.h"
#include "pooling.h"
#include "significance.h"
#include "weights.h"

namespace pad {
namespace {

enum class Level : int { baseline = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3, amx = 4 };
const char* const names[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx"};

#if defined(PAD_X86)
// Older Clangs (14 and 16 among them) do not know F16C in the builtin below. That the system saves the registers, the
// builtin has checked where it says AVX2.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

// Whether the processor multiplies tiles of bfloat16, and the system lets this process use their registers.
bool has_amx() {
#if defined(PAD_AMX) && defined(__linux__)
  constexpr unsigned tiles = 1u << 24, bfloat16_products = 1u << 22;
  constexpr long ask_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & tiles) && (edx & bfloat16_products) &&
         syscall(SYS_arch_prctl, ask_permission, tile_data) == 0;
#else
  return false;
#endif
}
#endif

Level best_level() {
#if defined(PAD_X86)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#if defined(PAD_AVX512_BF16)
  if (has_avx512 && __builtin_cpu_supports("avx512bf16")) return has_amx() ? Level::amx : Level::avx512_bf16;
#endif
  if (has_avx512) return Level::avx512;
  if (has_avx2) return Level::avx2;
#endif
  return Level::baseline;
}

// Intel's processors take about twice as long over products of pairs as over multiply-adds, AMD's no longer.
Level preferred_level() {
#if defined(PAD_X86)
  if (best_level() == Level::avx512_bf16 && __builtin_cpu_is("intel")) return Level::avx512;
#endif
  return best_level();
}

std::atomic<int>& level() {
  static std::atomic<int> value{static_cast<int>(preferred_level())};
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

// `pairs` and `tiles`: the instruction sets used where there are products of bfloat16 pairs, and of tiles; not all
// functions gain from them.
// clang-format off
#if defined(PAD_X86)
#define PAD_DISPATCH(function, Arguments, pairs, tiles)                         \
  namespace baseline { void function(const Arguments&); }                       \
  namespace avx2 { void function(const Arguments&); }                           \
  namespace avx512 { void function(const Arguments&); }                         \
  namespace pairs { void function(const Arguments&); }                          \
  namespace tiles { void function(const Arguments&); }                          \
  void function(const Arguments& arguments) {                                   \
    const Level chosen = static_cast<Level>(level().load());                    \
    if (chosen == Level::amx) return pad::tiles::function(arguments);           \
    if (chosen == Level::avx512_bf16) return pad::pairs::function(arguments);   \
    if (chosen == Level::avx512) return pad::avx512::function(arguments);       \
    if (chosen == Level::avx2) return pad::avx2::function(arguments);           \
    pad::baseline::function(arguments);                                         \
  }
#else
#define PAD_DISPATCH(function, Arguments, pairs, tiles)                         \
  namespace baseline { void function(const Arguments&); }                       \
  void function(const Arguments& arguments) { pad::baseline::function(arguments); }
#endif
// clang-format on

#if defined(PAD_AVX512_BF16)
#define PAD_PAIRS avx512_bf16
#else
#define PAD_PAIRS avx512
#endif
#if defined(PAD_AMX)
#define PAD_TILES amx
#else
#define PAD_TILES avx512
#endif
PAD_DISPATCH(alignment_forward, AlignmentForward, PAD_PAIRS, PAD_TILES)
PAD_DISPATCH(alignment_backward, AlignmentBackward, PAD_PAIRS, PAD_TILES)
PAD_DISPATCH(significance, SignificanceArguments, PAD_PAIRS, PAD_TILES)
PAD_DISPATCH(pooled_distance_forward, PooledDistanceForward, avx512, avx512)
PAD_DISPATCH(pooled_distance_backward, PooledDistanceBackward, avx512, avx512)
PAD_DISPATCH(position_weights, PositionWeights, avx512, avx512)

}  // namespace pad
