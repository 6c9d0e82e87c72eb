// The valid tokens of an utterance, as unit vectors.
#pragma once
#include "cpu/block_gemm.h"
#include "cpu/buffer.h"
#include "cpu/rows.h"
#include "cpu/utterance.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

template <class T>
struct Tokens {
  using S = OpMath<T>;

  explicit Tokens(const Utterance<T>& utterance)
      : index(utterance.tokens), inverse(padded_tokens(utterance.tokens)), width(utterance.width) {
    for (int64_t j = 0; j < utterance.tokens; ++j)
      if (utterance.token_mask[j]) {
        inverse[count] = inverse_norm<S>(sum_of_squares(utterance.token(j), width));
        index[count++] = static_cast<int32_t>(j);
      }
    padded = padded_tokens(count);
    for (int64_t j = count; j < padded; ++j) inverse[j] = 0;
  }

  // So many columns has a matrix product of `count` tokens: whole vectors, and whole register tiles.
  static int64_t padded_tokens(int64_t count) { return round_up(count, maximum(lanes<S>, tile_rows)); }

  // rows[j] = the j-th token, padded with zeros to [padded][padded_width], row_stride apart
  void write_rows(const Utterance<T>& utterance, S* rows) const {
    for (int64_t j = 0; j < padded; ++j) {
      S* row = rows + j * utterance.row_stride;
      const int64_t filled = j < count ? width : 0;
      if (j < count) scaled_copy(row, utterance.token(index[j]), inverse[j], width);
      for (int64_t d = filled; d < utterance.padded_width; ++d) row[d] = 0;
    }
  }

  // panel[d][j], padded with zeros to [width][padded]
  void write_panel(const Utterance<T>& utterance, S* panel) const {
    write_transposed(panel, width,
                     [&](int64_t j, int64_t d) { return load(utterance.token(index[j]) + d) * inverse[j]; });
    for (int64_t d = width - width % lanes<S>; d < width; ++d)
      for (int64_t j = 0; j < padded; ++j)
        panel[d * padded + j] = j < count ? to_opmath(utterance.token(index[j])[d]) * inverse[j] : S{0};
  }

  // panel[k][j] = element k of token j, padded with zeros to [padded], for the blocks of whole vectors that fit
  // `depth`; `read(j, k)` gives a vector of a token's elements from k on.
  template <class Read>
  void write_transposed(S* panel, int64_t depth, const Read& read) const {
    for (int64_t k = 0; k + lanes<S> <= depth; k += lanes<S>)
      for (int64_t j = 0; j < padded; j += lanes<S>) {
        Vector<S> rows[lanes<S>];
        for (int r = 0; r < lanes<S>; ++r) rows[r] = j + r < count ? read(j + r, k) : Vector<S>{};
        transpose<S>(rows);
        for (int r = 0; r < lanes<S>; ++r) store(panel + (k + r) * padded + j, rows[r]);
      }
  }

  // The same of pairs: `read(j, k)` gives where a token's pairs begin. A pair is moved as one float, whose bits nobody
  // reads as such.
  template <class Read>
  void write_transposed_pairs(Pair* panel, int64_t depth, const Read& read) const {
    write_transposed(reinterpret_cast<S*>(panel), depth,
                     [&](int64_t j, int64_t k) { return load(reinterpret_cast<const S*>(read(j, k))); });
  }

  int64_t count = 0, padded = 0;
  Buffer<int32_t> index;  // of the j-th valid token in the utterance
  Buffer<S> inverse;      // of its norm
  int64_t width;
};

}  // namespace
}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
