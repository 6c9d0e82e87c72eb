// Alignment backward. Soft: similarities are computed again tile by tile, and two more products per tile
// give the units' and the tokens' gradients. Hard: only the chosen units are touched.
//
// With phi = u.t / (|u| |t|) and G = d loss / d phi:
//   d loss / d u = sum_j G_j (t_j/|t_j| - phi_j u/|u|) / |u|
//   d loss / d t = sum_k G_k (u_k/|u_k| - phi_k t/|t|) / |t|
#include "cpu/gradients.h"
#include "cpu/parts.h"
#include "cpu/speech_gradient.h"
#include "spans.h"

namespace pad {
namespace PAD_INSTRUCTION_SET {
namespace {

// The most frames that lie between the start of a unit and the end of those before it.
template <class T>
int64_t open_frames(const Utterance<T>& utterance, const Units<T>& units) {
  if (!utterance.start) return 0;
  int64_t last = 0, most = 1;
  for (int64_t k = 0; k < units.count; ++k) {
    last = maximum(last, utterance.unit_end(units.index[k]));
    most = maximum(most, last - utterance.unit_start(units.index[k]));
  }
  return most;
}

// What backward knows of each token, padded with zeros: a padded token has gradient 0.
template <class S>
struct TokenTerms {
  template <class T>
  TokenTerms(const AlignmentBackward& arguments, int64_t batch, const Tokens<T>& tokens)
      : gradient(tokens.padded), similarity(tokens.padded), log_normalizer(tokens.padded) {
    const int64_t offset = batch * arguments.tokens;
    for (int64_t j = 0; j < tokens.padded; ++j) {
      const bool real = j < tokens.count;
      const int64_t token = real ? offset + tokens.index[j] : 0;
      gradient[j] = real ? static_cast<const S*>(arguments.grad_similarity)[token] : S{0};
      similarity[j] = real ? static_cast<const S*>(arguments.similarity)[token] : S{0};
      log_normalizer[j] = real ? static_cast<const S*>(arguments.log_normalizer)[token] : S{0};
    }
  }
  Buffer<S> gradient, similarity, log_normalizer;
};

// Sums of G phi: [tile_units] for each unit, [padded tokens] for each token.
template <class S>
struct Projections {
  S* of_units;
  S* of_tokens;
};

// Turns a tile of scores u.t/|t| into G/|u|, in place, and sums G phi per unit and, added to what is there, per token.
template <class T>
void score_gradients(const Units<T>& units, const ScoreTile<OpMath<T>>& tile, const TokenTerms<OpMath<T>>& terms,
                     OpMath<T> inverse_temperature, const Projections<OpMath<T>>& projections) {
  using S = OpMath<T>;
  const auto [first, n, columns, scores] = tile;
  const auto [of_units, of_tokens] = projections;
  for (int64_t r = 0; r < n; ++r) {
    const S inverse = units.inverse[first + r], log_prior = logarithm(units.prior[first + r]);
    Vector<S> projection{};
    for (int64_t j = 0; j < columns; j += lanes<S>) {
      const Vector<S> cosine = load(scores + r * columns + j) * inverse;
      const Vector<S> exponent = cosine * inverse_temperature + log_prior - load(terms.log_normalizer.data() + j);
      const Vector<S> posterior = exponential(exponent > 0 ? Vector<S>{} : exponent);  // rounding, at a low temperature
      const Vector<S> gradient = load(terms.gradient.data() + j) * posterior *
                                 ((cosine - load(terms.similarity.data() + j)) * inverse_temperature + S{1});
      projection += gradient * cosine;
      store(of_tokens + j, load(of_tokens + j) + gradient * cosine);
      store(scores + r * columns + j, gradient * inverse);
    }
    of_units[r] = norm_is_clamped(inverse) ? S{0} : sum_lanes<S>(projection) * inverse * inverse;
  }
}

// One part of one utterance: a range of frames, whose speech gradient it writes, and the units that begin there,
// which it adds to the token gradients.
template <class T>
struct Part {
  Part(const AlignmentBackward& arguments, const PartIndex& index)
      : arguments(arguments),
        batch(index.batch),
        utterance(arguments, index.batch),
        tokens(utterance),
        frames(utterance.part_frames(index.part, index.parts)),
        is_first(index.part == 0),
        streamed(can_stream<T>(arguments.grad_speech, arguments.batch * arguments.frames, arguments.width)),
        grad_speech(static_cast<T*>(arguments.grad_speech)),
        grad_text(static_cast<T*>(arguments.grad_text)) {
    if (grad_speech) grad_speech += batch * utterance.frames * utterance.width;
    if (grad_text) grad_text += batch * utterance.tokens * utterance.width;
  }

  // Keeps the units that reach into the part, in order of their start.
  int64_t select(int32_t* units, int64_t count) const {
    int64_t kept = 0;
    for (int64_t c = 0; c < count; ++c)
      if (utterance.unit_start(units[c]) < frames.end && utterance.unit_end(units[c]) > frames.begin)
        units[kept++] = units[c];
    sort_by_start(utterance.start, utterance.frames, units, kept);
    return kept;
  }

  bool owns(int32_t unit) const { return utterance.unit_start(unit) >= frames.begin; }

  const AlignmentBackward& arguments;
  const int64_t batch;
  const Utterance<T> utterance;
  const Tokens<T> tokens;
  const Range frames;
  const bool is_first, streamed;
  T *grad_speech, *grad_text;
};

// The token gradients of one part before they are put together: sum of G u/|u| [padded tokens, row stride] and
// of G phi [padded tokens].
template <class S>
struct TokenSums {
  S *direction, *projection;
};

// Works through the units of a part, which `scores` scores tile by tile.
template <class T, class Scores>
void soft_units(const Part<T>& part, const Units<T>& units, Scores& scores, const TokenSums<OpMath<T>>& token_sums) {
  using S = OpMath<T>;
  const Utterance<T>& utterance = part.utterance;
  const Tokens<T>& tokens = part.tokens;
  T* const grad_speech = part.grad_speech;
  const int64_t columns = tokens.padded, width = utterance.width, row_stride = utterance.row_stride;
  int64_t shared = 0;  // units that begin in an earlier part
  while (shared < units.count && !part.owns(units.index[shared])) ++shared;

  const S inverse_temperature = static_cast<S>(1 / part.arguments.temperature);
  const TokenTerms<S> terms(part.arguments, part.batch, tokens);
  const Gradients<Scores> gradients(utterance, tokens, scores);

  // A frame's gradient can go to its place at once where it is made of whole vectors; past the caches only by whole
  // lines, or each line would be written in parts.
  constexpr int64_t together = Gradients<Scores>::columns_together;
  const bool to_place = !utterance.start && width % lanes<S> == 0 &&
                        (!part.streamed || (width % together == 0 && together * sizeof(T) % cache_line == 0));
  SpeechGradient<T> speech({grad_speech, part.streamed}, utterance, grad_speech ? open_frames(utterance, units) : 0,
                           part.frames);
  const Buffer<S> unit_sums(grad_speech && !to_place ? tile_units * row_stride : 0), token_projection(columns);
  S unit_projection[tile_units];
  T* places[tile_units];
  S* sums[tile_units];
  for (int64_t r = 0; r < tile_units; ++r) sums[r] = unit_sums.data() + r * row_stride;

  for (int64_t first = grad_speech ? 0 : shared, n; first < units.count; first += n) {
    const bool own = first >= shared;
    n = minimum(tile_units, (own ? units.count : shared) - first);
    const ScoreTile<S> tile = scores.tile(first, n);
    const bool for_text = own && part.grad_text;
    fill_zero(token_projection.data(), columns);
    score_gradients<T>(units, tile, terms, inverse_temperature,
                       {.of_units = unit_projection, .of_tokens = token_projection.data()});
    if (for_text) scaled_add(token_sums.projection, token_projection.data(), S{1}, columns);
    S* const direction = for_text ? token_sums.direction : nullptr;
    if (grad_speech && to_place) {
      for (int64_t r = 0; r < n; ++r) places[r] = speech.row(units.index[first + r]);
      gradients.add(tile, unit_projection, UnitRows<T>{places, part.streamed}, direction);
    } else {
      gradients.add(tile, unit_projection, UnitRows<S>{grad_speech ? sums : nullptr, false}, direction);
    }
    if (grad_speech && !to_place) {
      for (int64_t r = 0; r < n; ++r) {
        const auto& inner = units.inner(r);
        if (inner.number >= 0) scaled_add(sums[inner.number - first], sums[r], inner.share, utterance.padded_width);
      }
      speech.add_tile(units, first, n, sums);
    }
  }
  if (grad_speech) speech.finish();
}

template <class T>
void soft_part(const Part<T>& part, const TokenSums<OpMath<T>>& token_sums) {
  const Utterance<T>& utterance = part.utterance;
  const Buffer<int32_t> candidates(utterance.units);
  all_units(utterance.units, candidates.data());
  Units<T> units(utterance, candidates.data(), part.select(candidates.data(), utterance.units), UnitOrder::by_start);
  with_scores(utterance, part.tokens, units, [&](auto& scores) { soft_units<T>(part, units, scores, token_sums); });
}

// Adds the parts' sums in order and writes the text gradient of an utterance.
template <class T>
void finish_text(const AlignmentBackward& arguments, int64_t batch, const TokenSums<OpMath<T>>* parts,
                 int64_t part_count) {
  using S = OpMath<T>;
  const Utterance<T> utterance(arguments, batch);
  const Tokens<T> tokens(utterance);
  const int64_t width = utterance.width;
  T* grad_text = static_cast<T*>(arguments.grad_text) + batch * utterance.tokens * width;
  const Buffer<S> token_row(width);
  int64_t written = 0;
  for (int64_t j = 0; j < tokens.count; ++j) {
    S* sum = parts[0].direction + j * utterance.row_stride;
    S projection = parts[0].projection[j];
    for (int64_t part = 1; part < part_count; ++part) {
      scaled_add(sum, parts[part].direction + j * utterance.row_stride, S{1}, width);
      projection += parts[part].projection[j];
    }
    if (!norm_is_clamped(tokens.inverse[j])) {
      scaled_copy(token_row.data(), utterance.token(tokens.index[j]), tokens.inverse[j], width);
      scaled_add(sum, token_row.data(), -projection, width);
    }
    for (; written < tokens.index[j]; ++written) fill_zero(grad_text + written * width, width);
    scaled_copy(grad_text + written++ * width, sum, tokens.inverse[j], width);
  }
  for (; written < utterance.tokens; ++written) fill_zero(grad_text + written * width, width);
}

template <class T>
void hard_part(const Part<T>& part) {
  using S = OpMath<T>;
  const Utterance<T>& utterance = part.utterance;
  const Tokens<T>& tokens = part.tokens;
  T *const grad_speech = part.grad_speech, *const grad_text = part.grad_text;
  const int64_t width = utterance.width;
  const int64_t* chosen = part.arguments.unit + part.batch * utterance.tokens;
  const S* gradient = static_cast<const S*>(part.arguments.grad_similarity) + part.batch * utterance.tokens;
  if (grad_text && part.is_first)
    for (int64_t token = 0; token < utterance.tokens; ++token)
      if (!utterance.token_mask[token] || chosen[token] < 0) fill_zero(grad_text + token * width, width);

  const Buffer<int32_t> candidates(tokens.count);
  int64_t candidate_count = 0;
  for (int64_t j = 0; j < tokens.count; ++j)
    if (chosen[tokens.index[j]] >= 0) candidates[candidate_count++] = static_cast<int32_t>(chosen[tokens.index[j]]);
  candidate_count = part.select(candidates.data(), candidate_count);
  int64_t distinct = 0;
  for (int64_t c = 0; c < candidate_count; ++c)
    if (c == 0 || candidates[c] != candidates[c - 1]) candidates[distinct++] = candidates[c];
  const Units<T> units(utterance, candidates.data(), distinct, UnitOrder::by_start);

  SpeechGradient<T> speech({grad_speech, part.streamed}, utterance, grad_speech ? open_frames(utterance, units) : 0,
                           part.frames);
  const Buffer<S> unit_row(width), unit_sum(width), token_row(width), token_sum(width);
  for (int64_t k = 0; k < units.count; ++k) {
    units.pool(k, unit_row.data());
    const S inverse = inverse_norm<S>(sum_of_squares(unit_row.data(), width));
    const bool overflows = norm_overflows(inverse, unit_row.data(), width);
    fill_zero(unit_sum.data(), width);
    for (int64_t j = 0; j < tokens.count; ++j) {
      const int64_t token = tokens.index[j];
      if (chosen[token] != units.index[k]) continue;
      scaled_copy(token_row.data(), utterance.token(token), tokens.inverse[j], width);
      const S cosine = overflows ? S{0} : dot(unit_row.data(), token_row.data(), width) * inverse;
      if (grad_speech) {
        scaled_add(unit_sum.data(), token_row.data(), gradient[token] * inverse, width);
        if (!norm_is_clamped(inverse))
          scaled_add(unit_sum.data(), unit_row.data(), -gradient[token] * cosine * inverse * inverse, width);
      }
      if (grad_text && part.owns(units.index[k])) {
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
void hard_backward(const AlignmentBackward& arguments) {
  const int64_t parts = parts_of_utterance(arguments);
  for_each_part<OpMath<T>>(arguments, parts, [&](const PartIndex& index) { hard_part(Part<T>(arguments, index)); });
}

template <class T>
void soft_backward(const AlignmentBackward& arguments) {
  using S = OpMath<T>;
  const int64_t parts = parts_of_utterance(arguments);
  const int64_t columns = Tokens<T>::padded_tokens(arguments.tokens);
  const int64_t row_stride = Utterance<T>::row_stride_of(arguments.width), slot = columns * (row_stride + 1);
  // Where an utterance is one task, its sums live as long as the task.
  const bool together = parts == 1;
  const Buffer<S> shared(arguments.grad_text && !together ? arguments.batch * parts * slot : 0);
  const auto sums_in = [&](S* memory) { return TokenSums<S>{memory, memory + columns * row_stride}; };
  for_each_part<S>(arguments, parts, [&](const PartIndex& index) {
    const Buffer<S> own(arguments.grad_text && together ? slot : 0);
    S* memory = together ? own.data() : shared.data() + (index.batch * parts + index.part) * slot;
    if (arguments.grad_text) fill_zero(memory, slot);
    const TokenSums<S> sums = sums_in(memory);
    soft_part(Part<T>(arguments, index), sums);
    if (arguments.grad_text && together) finish_text<T>(arguments, index.batch, &sums, 1);
  });
  if (!arguments.grad_text || together) return;
  for_each_part<S>(arguments, 1, [&](const PartIndex& index) {
    const Buffer<TokenSums<S>> sums(parts);
    for (int64_t part = 0; part < parts; ++part)
      sums[part] = sums_in(shared.data() + (index.batch * parts + part) * slot);
    finish_text<T>(arguments, index.batch, sums.data(), parts);
  });
}

}  // namespace

void alignment_backward(const AlignmentBackward& arguments) {
  with_element(arguments.element, [&](auto element) {
    using T = decltype(element);
    if (arguments.temperature > 0) soft_backward<T>(arguments);
    else hard_backward<T>(arguments);
  });
}

}  // namespace PAD_INSTRUCTION_SET
}  // namespace pad
