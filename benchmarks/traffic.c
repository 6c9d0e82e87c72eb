/* The time of memory traffic: every thread reads its rows and writes its part of a buffer, as a pass of a loss does
   with its inputs and gradients. A shared library, loaded and explained by traffic.py; it runs on the OpenMP threads
   that torch has started. */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif
#define BLOCK 4096 /* bytes: read and written at once */

typedef uint32_t vector __attribute__((vector_size(WIDTH)));
typedef uint32_t anywhere __attribute__((vector_size(WIDTH), aligned(4)));

#if defined(__clang__)
#define STREAM(where, value) __builtin_nontemporal_store(value, where)
#elif defined(__AVX512F__) || defined(__AVX__) || defined(__SSE2__)
#include <immintrin.h>
static inline void stream(vector* where, vector value) {
#if defined(__AVX512F__)
  _mm512_stream_si512((void*)where, (__m512i)value);
#elif defined(__AVX__)
  _mm256_stream_si256((void*)where, (__m256i)value);
#else
  _mm_stream_si128((void*)where, (__m128i)value);
#endif
}
#define STREAM(where, value) stream(where, value)
#else
#define STREAM(where, value) (*(where) = (value))
#endif

enum { PLACES = 1, PAST_CACHE = 2, TOGETHER = 4 };

struct Rows {
  const char* begin;
  size_t bytes;
};

struct Share {
  const struct Rows* reads;
  size_t read_count;
  char* write;
  size_t write_bytes;
};

struct Round {
  const struct Share* shares; /* one for each thread */
  int kernel;
  double* seconds; /* of each thread */
};

/* Every OpenMP runtime in use has these. */
void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned);
int omp_get_thread_num(void);

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

static vector load(const char* from) { return *(const anywhere*)from; }

/* The sum of a block's vectors, in eight sums or, from four places, two each. */
static vector sum_block(const char* from, size_t stride) {
  const size_t part = stride ? BLOCK / 4 : BLOCK;
  vector sums[8] = {{0}};
  if (stride) {
    for (size_t i = 0; i < part; i += 2 * WIDTH)
      for (int place = 0; place < 4; ++place)
        for (int j = 0; j < 2; ++j) sums[2 * place + j] += load(from + place * stride + i + j * WIDTH);
  } else {
    for (size_t i = 0; i < part; i += 8 * WIDTH)
      for (int j = 0; j < 8; ++j) sums[j] += load(from + i + j * WIDTH);
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

static void write_block(char* to, size_t bytes, vector value, int past_cache) {
  for (size_t i = 0; i < bytes; i += WIDTH) {
    if (past_cache) STREAM((vector*)(to + i), value);
    else *(vector*)(to + i) = value;
  }
}

struct Written {
  char *next, *end;
  int past_cache;
};

static void write_up_to(struct Written* written, const char* until) {
  while (written->next < until) {
    const size_t left = (size_t)(until - written->next), bytes = left < BLOCK ? left : BLOCK;
    write_block(written->next, bytes, (vector){1}, written->past_cache);
    written->next += bytes;
  }
}

/* One round of a thread. What it writes is spread evenly over the rows, or follows them. Of rows whose bytes are no
   whole blocks the rest is read by vectors, and less than a vector is left out. */
static vector round_of(const struct Share* share, int kernel) {
  struct Written written = {share->write, share->write + share->write_bytes, kernel & PAST_CACHE};
  size_t blocks = 0, seen = 0;
  for (size_t r = 0; r < share->read_count; ++r) blocks += share->reads[r].bytes / BLOCK;
  const size_t vectors = share->write_bytes / WIDTH;
  vector total = {0};
  for (size_t r = 0; r < share->read_count; ++r) {
    const struct Rows rows = share->reads[r];
    const size_t count = rows.bytes / BLOCK, stride = kernel & PLACES ? count * (BLOCK / 4) : 0;
    for (size_t i = 0; i < count; ++i) {
      total += sum_block(rows.begin + i * (stride ? BLOCK / 4 : BLOCK), stride);
      if (kernel & TOGETHER) write_up_to(&written, share->write + ++seen * vectors / blocks * WIDTH);
    }
    for (size_t i = count * BLOCK; i + WIDTH <= rows.bytes; i += WIDTH) total += load(rows.begin + i);
  }
  write_up_to(&written, share->write + vectors * WIDTH);
#if defined(__SSE2__)
  if (kernel & PAST_CACHE) __builtin_ia32_sfence();
#endif
  return total;
}

static void work(void* argument) {
  const struct Round* round = argument;
  const int thread = omp_get_thread_num();
  const double begin = now();
  volatile vector sink = round_of(&round->shares[thread], round->kernel);
  (void)sink;
  round->seconds[thread] = now() - begin;
}

void traffic(const struct Share* shares, int threads, int kernel, double* seconds) {
  struct Round round = {shares, kernel, seconds};
  GOMP_parallel(work, &round, (unsigned)threads, 0);
}
