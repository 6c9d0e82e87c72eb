/* The least time of memory traffic: every thread reads its share of READ bytes PASSES times and writes its share of
   WRITE bytes, once, as a loss does with its inputs and gradients. The buffers stay the same from round to round, so
   that they are found in the cache if they fit there.

     traffic READ PASSES WRITE THREADS SECONDS

   Tried are loads from one place and from four, ordinary stores and stores past the cache, writing after reading and
   while reading, large pages and small ones. Prints the milliseconds of the best round of the best kernel. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif
#define BLOCK 4096 /* bytes: written at once between reads, and the unit of a thread's share */

typedef uint32_t vector __attribute__((vector_size(WIDTH)));

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

enum { PLACES = 1, PAST_CACHE = 2, TOGETHER = 4, KERNELS = 8 };

struct Share {
  const char* read;
  char* write;
  size_t read_bytes, write_bytes;
};

static struct {
  int passes, kernel, done;
  pthread_barrier_t barrier;
} job;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* The sum of a block's vectors, in eight sums or, from four places, two each. */
static vector sum_block(const char* from, size_t stride) {
  const size_t part = stride ? BLOCK / 4 : BLOCK;
  vector sums[8] = {{0}};
  if (stride) {
    for (size_t i = 0; i < part; i += 2 * WIDTH)
      for (int place = 0; place < 4; ++place)
        for (int j = 0; j < 2; ++j) sums[2 * place + j] += *(const vector*)(from + place * stride + i + j * WIDTH);
  } else {
    for (size_t i = 0; i < part; i += 8 * WIDTH)
      for (int j = 0; j < 8; ++j) sums[j] += *(const vector*)(from + i + j * WIDTH);
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

static void write_block(char* to, vector value, int past_cache) {
  for (size_t i = 0; i < BLOCK; i += WIDTH) {
    if (past_cache) STREAM((vector*)(to + i), value);
    else *(vector*)(to + i) = value;
  }
}

/* One round of a thread. The blocks of `write` are spread evenly over those of the last pass, or follow them. */
static vector round_of(const struct Share* share, int passes, int kernel) {
  const size_t reads = share->read_bytes / BLOCK, writes = share->write_bytes / BLOCK;
  const size_t stride = kernel & PLACES ? share->read_bytes / 4 / (BLOCK / 4) * (BLOCK / 4) : 0;
  const size_t step = stride ? BLOCK / 4 : BLOCK;
  const vector value = {1};
  vector total = {0};
  size_t written = 0;
  for (int pass = 0; pass < passes; ++pass) {
    for (size_t i = 0; i < reads; ++i) {
      total += sum_block(share->read + i * step, stride);
      if (kernel & TOGETHER && pass == passes - 1)
        for (; written < (i + 1) * writes / reads; ++written)
          write_block(share->write + written * BLOCK, value, kernel & PAST_CACHE);
    }
  }
  for (; written < writes; ++written) write_block(share->write + written * BLOCK, value, kernel & PAST_CACHE);
#if defined(__SSE2__)
  if (kernel & PAST_CACHE) __builtin_ia32_sfence();
#endif
  return total;
}

static void* work(void* argument) {
  const struct Share* share = argument;
  volatile uint32_t sink = 0;
  for (;;) {
    pthread_barrier_wait(&job.barrier);
    if (job.done) return NULL;
    vector total = round_of(share, job.passes, job.kernel);
    sink = sink + total[0];
    pthread_barrier_wait(&job.barrier);
  }
}

static char* mapped(size_t bytes, int large_pages) {
  const size_t alignment = 2 << 20, size = (bytes + alignment) / alignment * alignment;
  char* memory = aligned_alloc(alignment, size);
  if (memory == NULL) exit(1);
#ifdef MADV_HUGEPAGE
  madvise(memory, size, large_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
  memset(memory, 1, size);
  return memory;
}

static double best_round(double seconds) {
  double best = 1e30, end = now() + seconds;
  for (int i = 0; i < 3 || now() < end; ++i) {
    const double begin = now();
    pthread_barrier_wait(&job.barrier);
    pthread_barrier_wait(&job.barrier);
    const double taken = now() - begin;
    if (i > 0 && taken < best) best = taken;
  }
  return best;
}

int main(int count, char** values) {
  if (count != 6) return 2;
  const size_t read = strtoull(values[1], NULL, 10), written = strtoull(values[3], NULL, 10);
  const double seconds = atof(values[5]);
  const int thread_count = atoi(values[4]);
  job.passes = atoi(values[2]);
  if (thread_count < 1) return 2;
  struct Share* shares = calloc(thread_count, sizeof *shares);
  /* Whole blocks, so a little less than asked for; scaled at the end. */
  const size_t own_read = read / thread_count / BLOCK * BLOCK, own_write = written / thread_count / BLOCK * BLOCK;
  if (own_read + own_write == 0) return 2;
  double best = 1e30;
  for (int large = 0; large < 2; ++large) {
    char* from = mapped(own_read * thread_count + 1, large);
    char* to = mapped(own_write * thread_count + 1, large);
    pthread_barrier_init(&job.barrier, NULL, thread_count + 1);
    pthread_t* threads = calloc(thread_count, sizeof *threads);
    job.done = 0;
    for (int i = 0; i < thread_count; ++i) {
      shares[i] = (struct Share){from + i * own_read, to + i * own_write, own_read, own_write};
      if (pthread_create(&threads[i], NULL, work, &shares[i])) return 1;
    }
    for (int kernel = 0; kernel < KERNELS; ++kernel) {
      if (own_write == 0 && kernel & (PAST_CACHE | TOGETHER)) continue;
      job.kernel = kernel;
      const double taken = best_round(seconds / (2 * KERNELS));
      if (taken < best) best = taken;
    }
    job.done = 1;
    pthread_barrier_wait(&job.barrier);
    for (int i = 0; i < thread_count; ++i) pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&job.barrier);
    free(threads);
    free(from);
    free(to);
  }
  const double asked = (double)read * job.passes + (double)written;
  const double moved = ((double)own_read * job.passes + (double)own_write) * thread_count;
  printf("%.6f\n", 1e3 * best * asked / moved);
  return 0;
}
