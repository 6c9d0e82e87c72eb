// Lays out and pools the units of an alignment: what its forward and its backward begin with.
#pragma once
#include "launch.h"
#include "pool_units_kernels.h"

namespace pad::cuda {

// The units, and of spans the workspace that they are pooled into.
struct UnitSource {
  Units units;
  PoolParameters pool;  // of spans
};

template <class T>
UnitSource unit_source(const AlignmentArguments& a, Workspace& workspace) {
  UnitSource source{};
  Units& units = source.units;
  units.count = static_cast<int>(a.units);
  if (!a.start) {
    units.rows = a.speech;
    units.prior = static_cast<const float*>(a.frame_weights);
    units.width = static_cast<int>(a.width);
    units.aligned = rows_aligned<T>(a.speech.data, a.width, a.speech.row_stride, a.speech.batch_stride);
    return source;
  }
  PoolParameters& p = source.pool;
  const int64_t rows = a.batch * a.units;
  p.a = a;
  p.group_blocks = static_cast<int>(divide_up(a.units, NEIGHBORS * THREADS / 32));
  p.slabs = static_cast<int>(divide_up(a.width, 32 * VECTOR<T>));
  p.pitch = static_cast<int>(round_up(a.width, 8));
  p.aligned = rows_aligned<T>(a.speech.data, a.width, a.speech.row_stride, a.speech.batch_stride);
  p.pooled = workspace.take<T>(rows * p.pitch);
  if (sizeof(T) == 2) p.remainder = workspace.take<T>(rows * p.pitch);
  p.prior = workspace.take<float>(rows);
  p.pieces.count = units.count;
  p.pieces.start = workspace.take<int>(rows);
  p.pieces.end = workspace.take<int>(rows);
  p.pieces.total = workspace.take<float>(rows);
  units.rows = {p.pooled, a.units * p.pitch, p.pitch};
  units.remainder = p.remainder;
  units.prior = p.prior;
  units.width = p.pitch;
  units.aligned = true;
  return source;
}

template <class T>
void pool_units(const UnitSource& source, void* stream) {
  const PoolParameters& p = source.pool;
  if (!p.a.start) return;
  launch(p.a.batch * p.group_blocks * p.slabs, THREADS, stream, pool_units_kernel<T>, p);
}

}  // namespace pad::cuda
