// Alignment backward. Soft: similarities are computed again tile by tile, and two more products per tile
// give the units' and the tokens' gradients. Hard: only the chosen units are touched.
//
// With phi = u.t / (|u| |t|) and G = d loss / d phi:
//   d loss / d u = sum_j G_j (t_j/|t_j| - phi_j u/|u|) / |u|,   d loss / d t = sum_k G_k (u_k/|u_k| - phi_k t/|t|) / |t|.
#include "speech_gradient.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// The most frames that lie between the first frame of a unit and the last of those before it.
template <class T>
int64_t open_frames(const Utterance<T>& utterance, const Units<T>& units) {
  if (!utterance.start) return 0;
  int64_t last = 0, most = 1;
  for (int64_t k = 0; k < units.count; ++k) {
    last = maximum(last, utterance.last_frame(units.index[k]));
    most = maximum(most, last - utterance.first_frame(units.index[k]));
  }
  return most;
}

// What backward knows of each token, padded with zeros: a padded token has gradient 0.
template <class S>
struct TokenTerms {
  template <class T>
  TokenTerms(const AlignmentBackward& arguments, int64_t batch, const Tokens<T>& tokens)
      : gradient(tokens.padded), similarity(tokens.padded), log_normalizer(tokens.padded), projection(tokens.padded) {
    const int64_t offset = batch * arguments.tokens;
    for (int64_t j = 0; j < tokens.padded; ++j) {
      const bool real = j < tokens.count;
      const int64_t token = real ? offset + tokens.index[j] : 0;
      gradient[j] = real ? static_cast<const S*>(arguments.grad_similarity)[token] : S{0};
      similarity[j] = real ? static_cast<const S*>(arguments.similarity)[token] : S{0};
      log_normalizer[j] = real ? static_cast<const S*>(arguments.log_normalizer)[token] : S{0};
      projection[j] = 0;
    }
  }
  Buffer<S> gradient, similarity, log_normalizer;
  Buffer<S> projection;  // sum over units of G phi
};

// Turns a tile of scores u.t/|t| into G/|u|, in place, and sums G phi per unit and per token.
template <class T>
void score_gradients(const Units<T>& units, int64_t first, int64_t n, int64_t columns,
                     Accumulator<T> inverse_temperature, const TokenTerms<Accumulator<T>>& terms,
                     Accumulator<T>* scores, Accumulator<T>* unit_projection) {
  using S = Accumulator<T>;
  for (int64_t r = 0; r < n; ++r) {
    const S inverse = units.inverse[first + r], log_prior = logarithm(units.prior[first + r]);
    Vector<S> projection{};
    for (int64_t j = 0; j < columns; j += lanes<S>) {
      const Vector<S> cosine = load(scores + r * columns + j) * inverse;
      const Vector<S> posterior =
          exponential(cosine * inverse_temperature + log_prior - load(terms.log_normalizer.data() + j));
      const Vector<S> gradient = load(terms.gradient.data() + j) * posterior *
                                 ((cosine - load(terms.similarity.data() + j)) * inverse_temperature + S{1});
      projection += gradient * cosine;
      store(terms.projection.data() + j, load(terms.projection.data() + j) + gradient * cosine);
      store(scores + r * columns + j, gradient * inverse);
    }
    unit_projection[r] = norm_is_clamped(inverse) ? S{0} : sum_lanes<S>(projection) * inverse * inverse;
  }
}

// out(r)[d] = sum_j scores[r][j] token_rows[j][d] - unit_projection[r] unit_rows[r][d], for columns
// [column, column + vectors).
template <int vectors, class T>
void unit_gradients(int64_t n, int64_t tokens, const Accumulator<T>* scores, int64_t columns,
                    const Accumulator<T>* token_rows, int64_t padded_width,
                    const Accumulator<T>* const* unit_rows, const Accumulator<T>* unit_projection, int64_t column,
                    T* const* out) {
  using S = Accumulator<T>;
  for (int64_t row = 0; row < n; row += tile_rows) {
    const S* gradients = scores + row * columns;
    Vector<S> sums[tile_rows][vectors] = {};
    multiply_tile<S, vectors>(
        tokens, [&](int r, int64_t j) { return gradients[r * columns + j]; },
        [&](int64_t j) { return token_rows + j * padded_width + column; }, sums);
    for (int r = 0; r < tile_rows && row + r < n; ++r)
      for (int v = 0; v < vectors; ++v) {
        const int64_t d = column + v * lanes<S>;
        store(out[row + r] + d, sums[r][v] - load(unit_rows[row + r] + d) * unit_projection[row + r]);
      }
  }
}

// token_sums[j][d] += sum_r scores[r][j] unit_rows[r][d]
template <int vectors, class S>
void token_gradients(int64_t n, int64_t tokens, const S* scores, int64_t columns, const S* const* unit_rows,
                     int64_t padded_width, int64_t column, S* token_sums) {
  for (int64_t token = 0; token < tokens; token += tile_rows) {
    Vector<S> sums[tile_rows][vectors];
    for (int r = 0; r < tile_rows; ++r)
      for (int v = 0; v < vectors; ++v)
        sums[r][v] = load(token_sums + (token + r) * padded_width + column + v * lanes<S>);
    multiply_tile<S, vectors>(
        n, [&](int r, int64_t unit) { return scores[unit * columns + token + r]; },
        [&](int64_t unit) { return unit_rows[unit] + column; }, sums);
    for (int r = 0; r < tile_rows; ++r)
      for (int v = 0; v < vectors; ++v)
        store(token_sums + (token + r) * padded_width + column + v * lanes<S>, sums[r][v]);
  }
}

template <class T>
void soft_backward(const AlignmentBackward& arguments, int64_t batch, const Utterance<T>& utterance,
                   const Tokens<T>& tokens, T* grad_speech, T* grad_text) {
  using S = Accumulator<T>;
  const int64_t columns = tokens.padded, width = utterance.width, padded_width = utterance.padded_width;
  const Buffer<int32_t> candidates(utterance.units);
  all_units(utterance.units, candidates.data());
  sort_by_first_frame(utterance, candidates.data(), utterance.units);
  Units<T> units(utterance, candidates.data(), utterance.units);

  TokenTerms<S> terms(arguments, batch, tokens);
  const Buffer<S> panel(width * columns), token_rows(columns * padded_width), scores(tile_units * columns);
  const Buffer<S> token_sums(grad_text ? columns * padded_width : 0);
  tokens.write_panel(utterance, panel.data());
  tokens.write_rows(utterance, token_rows.data());
  if (grad_text) token_sums.fill_zero(columns * padded_width);
  std::memset(scores.data(), 0, static_cast<size_t>(tile_units * columns) * sizeof(S));

  // A frame's gradient can go to its place at once where it is made of whole vectors.
  const bool to_place = !utterance.start && width % lanes<S> == 0;
  SpeechGradient<T> speech(grad_speech, utterance, grad_speech ? open_frames(utterance, units) : 0);
  const Buffer<S> unit_sums(grad_speech && !to_place ? tile_units * padded_width : 0);
  S unit_projection[tile_units];
  T* places[tile_units];
  S* sums[tile_units];
  for (int64_t r = 0; r < tile_units; ++r) sums[r] = unit_sums.data() + r * padded_width;

  for (int64_t first = 0; first < units.count; first += tile_units) {
    const int64_t n = minimum(tile_units, units.count - first);
    const S* const* rows = units.score_tile(first, n, panel.data(), columns, scores.data());
    score_gradients<T>(units, first, n, columns, static_cast<S>(1 / arguments.temperature), terms, scores.data(),
                       unit_projection);
    if (grad_speech && to_place)
      for (int64_t r = 0; r < n; ++r) places[r] = speech.row(units.index[first + r]);
    for_each_column_block<S>(padded_width, [&](auto vectors, int64_t column) {
      constexpr int block = decltype(vectors)::value;
      if (grad_speech && to_place)
        unit_gradients<block, T>(n, tokens.count, scores.data(), columns, token_rows.data(), padded_width, rows,
                                 unit_projection, column, places);
      else if (grad_speech)
        unit_gradients<block, S>(n, tokens.count, scores.data(), columns, token_rows.data(), padded_width, rows,
                                 unit_projection, column, sums);
      if (grad_text)
        token_gradients<block, S>(n, tokens.count, scores.data(), columns, rows, padded_width, column,
                                  token_sums.data());
    });
    if (grad_speech && !to_place)
      for (int64_t r = 0; r < n; ++r) speech.add(units, first + r, sums[r]);
  }
  if (grad_speech) speech.finish();
  if (!grad_text) return;
  for (int64_t j = 0; j < tokens.count; ++j) {
    S* sum = token_sums.data() + j * padded_width;
    if (!norm_is_clamped(tokens.inverse[j]))
      scaled_add(sum, token_rows.data() + j * padded_width, -terms.projection[j], width);
    scaled_copy(grad_text + tokens.index[j] * width, sum, tokens.inverse[j], width);
  }
}

template <class T>
void hard_backward(const AlignmentBackward& arguments, int64_t batch, const Utterance<T>& utterance,
                   const Tokens<T>& tokens, T* grad_speech, T* grad_text) {
  using S = Accumulator<T>;
  const int64_t width = utterance.width;
  const int64_t* chosen = arguments.unit + batch * utterance.tokens;
  const S* gradient = static_cast<const S*>(arguments.grad_similarity) + batch * utterance.tokens;
  const Buffer<int32_t> candidates(tokens.count);
  int64_t candidate_count = 0;
  for (int64_t j = 0; j < tokens.count; ++j)
    if (chosen[tokens.index[j]] >= 0) candidates[candidate_count++] = static_cast<int32_t>(chosen[tokens.index[j]]);
  sort_by_first_frame(utterance, candidates.data(), candidate_count);
  int64_t distinct = 0;
  for (int64_t c = 0; c < candidate_count; ++c)
    if (c == 0 || candidates[c] != candidates[c - 1]) candidates[distinct++] = candidates[c];
  const Units<T> units(utterance, candidates.data(), distinct);

  SpeechGradient<T> speech(grad_speech, utterance, grad_speech ? open_frames(utterance, units) : 0);
  const Buffer<S> unit_row(width), unit_sum(width), token_row(width), token_sum(width);
  for (int64_t k = 0; k < units.count; ++k) {
    units.pool(k, unit_row.data(), 0, width);
    const S inverse = inverse_norm<S>(sum_of_squares(unit_row.data(), width));
    unit_sum.fill_zero(width);
    for (int64_t j = 0; j < tokens.count; ++j) {
      const int64_t token = tokens.index[j];
      if (chosen[token] != units.index[k]) continue;
      scaled_copy(token_row.data(), utterance.token(token), tokens.inverse[j], width);
      const S cosine = dot(unit_row.data(), token_row.data(), width) * inverse;
      if (grad_speech) {
        scaled_add(unit_sum.data(), token_row.data(), gradient[token] * inverse, width);
        if (!norm_is_clamped(inverse))
          scaled_add(unit_sum.data(), unit_row.data(), -gradient[token] * cosine * inverse * inverse, width);
      }
      if (grad_text) {
        scaled_copy(token_sum.data(), unit_row.data(), inverse, width);
        if (!norm_is_clamped(tokens.inverse[j])) scaled_add(token_sum.data(), token_row.data(), -cosine, width);
        scaled_copy(grad_text + token * width, token_sum.data(), gradient[token] * tokens.inverse[j], width);
      }
    }
    if (grad_speech) speech.add(units, k, unit_sum.data());
  }
  if (grad_speech) speech.finish();
}

template <class T>
void backward_utterance(const AlignmentBackward& arguments, int64_t batch) {
  const Utterance<T> utterance(arguments, batch);
  T* grad_speech =
      arguments.grad_speech ? static_cast<T*>(arguments.grad_speech) + batch * utterance.frames * utterance.width
                            : nullptr;
  T* grad_text = arguments.grad_text
                     ? static_cast<T*>(arguments.grad_text) + batch * utterance.tokens * utterance.width
                     : nullptr;
  if (grad_text)
    std::memset(static_cast<void*>(grad_text), 0,
                static_cast<size_t>(utterance.tokens * utterance.width) * sizeof(T));
  const Tokens<T> tokens(utterance);
  if (arguments.temperature > 0)
    soft_backward<T>(arguments, batch, utterance, tokens, grad_speech, grad_text);
  else
    hard_backward<T>(arguments, batch, utterance, tokens, grad_speech, grad_text);
}

}  // namespace

void alignment_backward(const AlignmentBackward& arguments) {
  with_element(arguments.element, [&](auto element) {
    using T = decltype(element);
    if (arguments.grad_speech)
      advise_large_pages(arguments.grad_speech, arguments.batch * arguments.frames * arguments.width *
                                                    static_cast<int64_t>(sizeof(T)));
    for_each_utterance<Accumulator<T>>(arguments,
                                       [&](int64_t batch) { backward_utterance<T>(arguments, batch); });
  });
}

}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
