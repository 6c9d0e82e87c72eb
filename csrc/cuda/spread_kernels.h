// From the gradients of pooled units to those of the frames: each frame gathers from the ranges that cover it.
#pragma once
#include "units.h"

namespace pad::cuda {

constexpr int SPREAD_FRAMES = 32;  // of a block
constexpr int LISTED = 256;        // ranges of a block that shared memory has room for

struct SpreadParameters {
  AlignmentArguments a;
  Pieces pieces;
  void* grad_speech;  // [batch, frames, width]
  int tiles;
  bool aligned;
};

// A block is a tile of frames; a warp writes whole rows, some vectors of a lane at a time.
template <class T>
__global__ void __launch_bounds__(THREADS) spread_kernel(SpreadParameters p) {
  constexpr int ROUND = 4;  // vectors of a lane
  __shared__ int start[LISTED], end[LISTED], piece[LISTED], votes[THREADS / 32];
  __shared__ float total[LISTED];
  const AlignmentArguments& a = p.a;
  const int frames = static_cast<int>(a.frames), width = static_cast<int>(a.width), count = p.pieces.count;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_frame = blockIdx.x % p.tiles * SPREAD_FRAMES, past_frame = min(first_frame + SPREAD_FRAMES, frames);
  const int64_t b = blockIdx.x / p.tiles;
  const int* starts = p.pieces.start + b * count;
  const int* ends = p.pieces.end + b * count;
  const float* totals = p.pieces.total + b * count;

  int listed = 0;
  for (int first = 0; first < count; first += THREADS) {
    const int k = first + threadIdx.x;
    const bool covers = k < count && starts[k] < past_frame && ends[k] > first_frame;
    const unsigned vote = __ballot_sync(0xffffffffu, covers);
    __syncthreads();
    if (lane == 0) votes[warp] = __popc(vote);
    __syncthreads();
    int place = listed + __popc(vote & ((1u << lane) - 1));
#pragma unroll
    for (int w = 0; w < THREADS / 32; ++w) {
      if (w < warp) place += votes[w];
      listed += votes[w];
    }
    if (covers && place < LISTED) {
      piece[place] = k;
      start[place] = starts[k];
      end[place] = ends[k];
      total[place] = totals[k];
    }
  }
  __syncthreads();
  const bool fits = listed <= LISTED;  // else all ranges are looked at, where they lie
  if (!fits) listed = count;
  const auto* gradients = static_cast<const PieceElement<T>*>(p.pieces.gradient) + b * count * p.pieces.pitch;
  for (int frame = first_frame + warp; frame < past_frame; frame += THREADS / 32) {
    const float weight = static_cast<const float*>(a.frame_weights)[b * frames + frame];
    T* out = static_cast<T*>(p.grad_speech) + (b * frames + frame) * width;
    for (int first = lane * VECTOR<T>; first - lane * VECTOR<T> < width; first += ROUND * 32 * VECTOR<T>) {
      float sum[ROUND][VECTOR<T>] = {};
      for (int k = 0; weight > 0 && k < listed; ++k) {
        if (frame < (fits ? start[k] : starts[k]) || frame >= (fits ? end[k] : ends[k])) continue;
        const float share = weight / (fits ? total[k] : totals[k]);
        const auto* row = gradients + int64_t{fits ? piece[k] : k} * p.pieces.pitch;
#pragma unroll
        for (int i = 0; i < ROUND; ++i) {
          const int column = first + i * 32 * VECTOR<T>;
          if (column >= width) continue;
          float values[VECTOR<T>];
          load_columns<T>(row, column, values);
#pragma unroll
          for (int v = 0; v < VECTOR<T>; ++v) sum[i][v] += share * values[v];
        }
      }
#pragma unroll
      for (int i = 0; i < ROUND; ++i) store_vector(out, first + i * 32 * VECTOR<T>, width, p.aligned, sum[i]);
    }
  }
}

}  // namespace pad::cuda
