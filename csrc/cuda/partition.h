// How the units of an utterance are divided among blocks: by sizes alone, so that the same input gives the
// same bits on any device.
#pragma once
#include <algorithm>

#include "alignment.h"
#include "product.h"

namespace pad::cuda {

struct Partition {
  int64_t token_tiles, unit_tiles, parts, tiles_per_part;
};

// About two for each of an H100's 132 multiprocessors.
constexpr int64_t WANTED_BLOCKS = 2 * 132;

// Enough parts for the wanted blocks, where there is that much to divide; `blocks_per_tile` blocks share the work of a
// token tile and a part.
inline Partition partition(const AlignmentArguments& a, int64_t blocks_per_tile) {
  const int64_t token_tiles = (a.tokens + TILE - 1) / TILE, unit_tiles = (a.units + TILE - 1) / TILE;
  const int64_t others = std::max<int64_t>(1, a.batch * token_tiles * blocks_per_tile);
  const int64_t wanted = std::min(std::max<int64_t>(1, WANTED_BLOCKS / others), std::max<int64_t>(1, unit_tiles));
  const int64_t tiles_per_part = std::max<int64_t>(1, (unit_tiles + wanted - 1) / wanted);
  return {token_tiles, unit_tiles, std::max<int64_t>(1, (unit_tiles + tiles_per_part - 1) / tiles_per_part),
          tiles_per_part};
}

}  // namespace pad::cuda
