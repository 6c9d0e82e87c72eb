// Spans pooled into units: sum p s / sum p. A warp has a few neighboring units, and reads each frame of theirs once.
#pragma once
#include "units.h"

namespace pad::cuda {

constexpr int NEIGHBORS = 6;  // units of a warp

struct PoolParameters {
  AlignmentArguments a;
  int group_blocks, slabs, pitch;
  bool aligned;
  void* pooled;     // [batch, units, pitch]
  void* remainder;  // likewise, or null
  float* prior;     // [batch, units]
  Pieces pieces;    // their ranges and totals
};

__device__ inline int clamp(int value, int low, int high) { return min(max(value, low), high); }

template <class T>
__global__ void __launch_bounds__(THREADS, 3) pool_units_kernel(PoolParameters p) {
  constexpr int AHEAD = 4;  // frames on their way at a time
  const AlignmentArguments& a = p.a;
  const int lane = threadIdx.x % 32, frames = static_cast<int>(a.frames), count = static_cast<int>(a.units);
  const int slab = blockIdx.x % p.slabs, rest = blockIdx.x / p.slabs;
  const int group = rest % p.group_blocks * (THREADS / 32) + threadIdx.x / 32;
  const int64_t b = rest / p.group_blocks;
  if (group * NEIGHBORS >= count) return;
  const int column = (slab * 32 + lane) * VECTOR<T>, width = static_cast<int>(a.width);
  const float* frame_weights = static_cast<const float*>(a.frame_weights) + b * frames;
  const T* speech = static_cast<const T*>(a.speech.data) + b * a.speech.batch_stride;

  int start[NEIGHBORS], end[NEIGHBORS], low = frames, high = 0;
#pragma unroll
  for (int k = 0; k < NEIGHBORS; ++k) {
    const int unit = group * NEIGHBORS + k;
    start[k] = unit < count ? clamp(a.start[b * count + unit], 0, frames) : 0;
    end[k] = unit < count ? clamp(a.end[b * count + unit], start[k], frames) : 0;
    if (start[k] < end[k]) {
      low = min(low, start[k]);
      high = max(high, end[k]);
    }
  }
  float sum[NEIGHBORS][VECTOR<T>] = {}, total[NEIGHBORS] = {};
  for (int first = low; first < high; first += AHEAD) {
    uint4 bits[AHEAD];
    float weight[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      const int frame = first + i;
      bool inside = false;
#pragma unroll
      for (int k = 0; k < NEIGHBORS; ++k) inside |= start[k] <= frame && frame < end[k];
      weight[i] = inside ? frame_weights[frame] : -1.0f;
      bits[i] = load_bits(speech + (inside ? frame : 0) * a.speech.row_stride, column, width, p.aligned, weight[i] > 0);
    }
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      const int frame = first + i;
      if (!(weight[i] >= 0)) continue;
      float values[VECTOR<T>];
      unpack<T>(bits[i], values);
#pragma unroll
      for (int k = 0; k < NEIGHBORS; ++k) {
        if (frame < start[k] || frame >= end[k]) continue;
        total[k] += weight[i];
#pragma unroll
        for (int v = 0; v < VECTOR<T>; ++v) sum[k][v] += weight[i] * values[v];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < NEIGHBORS; ++k) {
    const int unit = group * NEIGHBORS + k;
    if (unit >= count) break;
    const int64_t place = b * count + unit;
    const bool valid = total[k] > 0;
    float rest[VECTOR<T>];
#pragma unroll
    for (int v = 0; v < VECTOR<T>; ++v) sum[k][v] = valid ? sum[k][v] / total[k] : 0.0f;
    store_vector(static_cast<T*>(p.pooled) + place * p.pitch, column, p.pitch, true, sum[k]);
    if (sizeof(T) == 2) {
#pragma unroll
      for (int v = 0; v < VECTOR<T>; ++v) rest[v] = sum[k][v] - to_opmath(from_opmath<T>(sum[k][v]));
      store_vector(static_cast<T*>(p.remainder) + place * p.pitch, column, p.pitch, true, rest);
    }
  }
  // A lane for each unit: its prior, and its range.
  const int unit = group * NEIGHBORS + lane;
  if (slab != 0 || lane >= NEIGHBORS || unit >= count) return;
  const int64_t place = b * count + unit;
  low = clamp(a.start[place], 0, frames);
  high = clamp(a.end[place], low, frames);
  float sum_of_weights = 0;
  int real = 0;
  for (int frame = low; frame < high; ++frame) {
    if (!(frame_weights[frame] >= 0)) continue;
    sum_of_weights += frame_weights[frame];
    ++real;
  }
  const bool valid = sum_of_weights > 0;
  p.prior[place] = valid ? sum_of_weights / real : 0.0f;
  p.pieces.start[place] = valid ? low : 0;
  p.pieces.end[place] = valid ? high : 0;
  p.pieces.total[place] = sum_of_weights;
}

}  // namespace pad::cuda
