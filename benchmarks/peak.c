/* Rate of fused multiply-adds in registers: no memory is touched, so this is the ceiling of any matrix product.
   `peak` takes float32, `peak bfloat16` products of bfloat16 summed in float32, in tiles where the processor and the
   system have them; 0 where there are none.
   Prints GFLOP/s of one thread; the caller runs one process per thread at the same time. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
#define CHAINS 12 /* independent sums: more than latency x issue width of today's cores */

typedef float vector __attribute__((vector_size(WIDTH * 4)));

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* In a register: filled element by element it would stay on the stack, and each product would read it there. */
static vector splat(float x) { return x + (vector){0}; }

/* 12 named chains, so that the compiler keeps them in registers. */
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define LOAD(c) vector sum##c = splat((float)c);
#define STEP(c) sum##c = sum##c * a + b;
#define ADD(c) total += sum##c;

__attribute__((noinline)) static float run(long steps, float scale, float shift) {
  const vector a = splat(scale), b = splat(shift);
  EACH(LOAD)
  for (long i = 0; i < steps; ++i) {
    EACH(STEP)
  }
  vector total = splat(0);
  EACH(ADD)
  return total[0];
}

#if defined(__AVX512BF16__)
#include <immintrin.h>
#define ZERO(c) __m512 half##c = _mm512_set1_ps((float)c);
#define DOT(c) half##c = _mm512_dpbf16_ps(half##c, a, b);
#define ADD_HALF(c) total += half##c;

__attribute__((noinline)) static float run_bfloat16(long steps, float scale, float shift) {
  const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(scale), _mm512_set1_ps(scale));
  const __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(shift), _mm512_set1_ps(shift));
  EACH(ZERO)
  for (long i = 0; i < steps; ++i) {
    EACH(DOT)
  }
  __m512 total = _mm512_setzero_ps();
  EACH(ADD_HALF)
  return total[0];
}
#define HALF_PRODUCTS (2.0 * WIDTH * CHAINS) /* of two pairs in each sum */
#else
#define HALF_PRODUCTS 0.0
static float run_bfloat16(long steps, float scale, float shift) { return run(steps, scale, shift); }
#endif

#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define TILE_PRODUCTS (4.0 * 16 * 16 * 32) /* of four sums, one after another; all operands are zero */

static int shape_tiles(void) {
  unsigned char shapes[64] = {1};
  if (syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* the tiles' data */)) return 0;
  for (int tile = 0; tile < 8; ++tile) {
    shapes[16 + 2 * tile] = 64;
    shapes[48 + tile] = 16;
  }
  _tile_loadconfig(shapes);
  return 1;
}

__attribute__((noinline)) static void run_tiles(long steps) {
  for (long i = 0; i < steps; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}
#else
#define TILE_PRODUCTS 0.0
static int shape_tiles(void) { return 0; }
static void run_tiles(long steps) { (void)steps; }
#endif

int main(int count, char** values) {
  const int half = count > 1 && strcmp(values[1], "bfloat16") == 0;
  const int tiles = half && shape_tiles();
  const long block = 1000000;
  long steps = 0;
  volatile float sink = 0;
  double begin = now(), end = begin;
  while ((end = now()) - begin < 0.5) {
    if (tiles) run_tiles(block);
    else sink = sink + (half ? run_bfloat16 : run)(block, 0.999f, 1e-3f);
    steps += block;
  }
  const double products = tiles ? TILE_PRODUCTS : half ? HALF_PRODUCTS : (double)WIDTH * CHAINS;
  printf("%.3f\n", 2.0 * products * (double)steps / (end - begin) * 1e-9);
  return 0;
}
