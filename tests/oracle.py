"""The method in loops over numpy float64 arrays, written from its words and from nothing of the package.

Slow on purpose; `test_reference.py` holds the reference backend against it.
"""

import math

import numpy as np

EPS = 1e-8


def cosine(u, t):
    return float(u @ t) / (max(np.linalg.norm(u), EPS) * max(np.linalg.norm(t), EPS))


def units_of(speech, frame_weights, spans):
    """(vector, prior) of each unit of one utterance; None where it takes no part. A weight below 0: masked."""
    if spans is None:
        return [(speech[i], frame_weights[i]) if frame_weights[i] > 0 else None for i in range(len(frame_weights))]
    units = []
    for start, end in spans:
        inside = [i for i in range(start, end) if frame_weights[i] > 0]
        if not inside:
            units.append(None)
            continue
        total = sum(frame_weights[i] for i in inside)
        vector = sum(frame_weights[i] * speech[i] for i in inside) / total
        units.append((vector, total / sum(frame_weights[i] >= 0 for i in range(start, end))))
    return units


def align_utterance(speech, text, frame_weights, token_mask, spans, temperature):
    """similarity, unit, log_normalizer, matrix of one utterance."""
    units = units_of(speech, frame_weights, spans)
    present = [k for k, unit in enumerate(units) if unit is not None]
    tokens = len(token_mask)
    similarity, log_normalizer = np.zeros(tokens), np.zeros(tokens)
    best, matrix = np.full(tokens, -1), np.zeros((tokens, len(units)))
    for j in range(tokens):
        if not token_mask[j] or not present:
            continue
        phi = {k: cosine(units[k][0], text[j]) for k in present}
        if temperature == 0:
            best[j] = min(present, key=lambda k: (-phi[k], k))
            similarity[j] = phi[best[j]]
            matrix[j, best[j]] = 1
            continue
        score = {k: phi[k] / temperature + math.log(units[k][1]) for k in present}
        best[j] = min(present, key=lambda k: (-score[k], k))
        highest = score[best[j]]
        total = sum(math.exp(score[k] - highest) for k in present)
        log_normalizer[j] = highest + math.log(total)
        for k in present:
            matrix[j, k] = math.exp(score[k] - log_normalizer[j])
            similarity[j] += matrix[j, k] * phi[k]
    return similarity, best, log_normalizer, matrix


def normalized(mask, prior):
    """The weights of one utterance's positions: they sum to 1, or are all 0."""
    weights = [0.0] * len(mask)
    for i, real in enumerate(mask):
        if real:
            weights[i] = 1.0 if prior is None else float(prior[i])
    total = sum(weights)
    return np.array([weight / total if total > 0 else 0.0 for weight in weights])


def spans_of(prior, mask, tokens, anchors_wanted, scales, xi, how):
    """The spans of one utterance, anchors in order of time."""
    real = [i for i, is_real in enumerate(mask) if is_real]
    if not real or tokens == 0:
        return []
    m = len(real)
    xi = m / tokens if xi is None else xi
    if prior is None:
        how = "stride"
    if how == "stride":
        chosen = [real[math.floor((2 * k + 1) * m / (2 * anchors_wanted))] for k in range(anchors_wanted)]
    else:
        chosen = []
        for i in sorted((i for i in real if prior[i] > 0), key=lambda i: (-prior[i], i)):
            if len(chosen) == anchors_wanted:
                break
            if how == "peaks" and any(abs(i - g) < xi / 2 for g in chosen):
                continue
            chosen.append(i)
    spans = []
    for g in sorted(chosen):
        for scale in scales:
            width = max(1, math.floor(scale * xi + 0.5))
            low = g - width // 2
            ends = (min(max(x, real[0]), real[-1] + 1) for x in (low, low + width))
            spans.append(tuple(ends))
    return spans


def loss_utterance(speech, text, speech_mask, text_mask, speech_prior, text_prior, level, temperature, spans):
    """The loss of one utterance, None if it lacks a real token or a real unit."""
    p, q = normalized(speech_mask, speech_prior), normalized(text_mask, text_prior)
    if not p.any() or not q.any():
        return None
    if level == "global":
        pooled = sum(p[i] * speech[i] for i in range(len(p)) if p[i] > 0)
        pooled = pooled - sum(q[j] * text[j] for j in range(len(q)) if q[j] > 0)
        return np.abs(pooled).sum()
    if level == "token":
        spans = None
    p = np.where(speech_mask, p, -1.0)
    if spans is not None and all(unit is None for unit in units_of(speech, p, spans)):
        return None
    similarity = align_utterance(speech, text, p, q > 0, spans, temperature)[0]
    return sum(q[j] * (1 - similarity[j]) for j in range(len(q)) if q[j] > 0)


def significance_utterance(query, key, mask, scale):
    """The significance prior [T] of one utterance; query and key [H, T, d]."""
    heads, length, _ = query.shape
    received = np.zeros(length)
    real = [i for i in range(length) if mask[i]]
    for h in range(heads):
        for i in real:
            scores = {m: scale * float(query[h, i] @ key[h, m]) for m in real}
            highest = max(scores.values())
            total = sum(math.exp(score - highest) for score in scores.values())
            for m in real:
                received[m] += math.exp(scores[m] - highest) / total / heads
    return received / received.sum() if real else received
