/* Rate of fused multiply-adds in registers: no memory is touched, so this is the ceiling of any matrix product.
   Prints GFLOP/s of one thread; the caller runs one process per thread at the same time. */
#include <stdio.h>
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

static vector splat(float x) {
  vector v;
  for (int i = 0; i < WIDTH; ++i) v[i] = x;
  return v;
}

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

int main(void) {
  const long block = 1000000;
  long steps = 0;
  volatile float sink = 0;
  double begin = now(), end = begin;
  while ((end = now()) - begin < 0.5) {
    sink = sink + run(block, 0.999f, 1e-3f);
    steps += block;
  }
  printf("%.3f\n", 2.0 * WIDTH * CHAINS * (double)steps / (end - begin) * 1e-9);
  return 0;
}
