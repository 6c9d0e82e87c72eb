"""The ways to compute one PAD loss. All take the same `Inputs` and return the scalar loss.

`eager` is what one writes first. `eager_scaled` is the same written well: no normalized copy of the frames,
the similarities are scaled by norms computed apart, and 16-bit inputs are widened once so that the result is
right. `compiled` is torch.compile of the latter. `sdpa` is the soft alignment of frames as an attention with
the log prior as its bias. `ours` is pad_kernels. What other packages compute stands in peers.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import pad_kernels

from . import peers
from .cases import Inputs

EPS = 1e-8
Loss = Callable[..., Tensor]


def _normalized(prior: Tensor, mask: Tensor) -> Tensor:
    prior = prior * mask
    return prior / prior.sum(1, keepdim=True)


def _pool(speech: Tensor, prior: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled units [B, U, D] and their priors [B, U], by a product with the weights [B, U, M]."""
    frames = torch.arange(speech.shape[1], device=speech.device)
    inside = (frames >= start[..., None]) & (frames < end[..., None])
    weights = inside * prior[:, None, :]
    total = weights.sum(2)
    unit_prior = total / inside.sum(2).clamp(min=1)
    weights = weights / total.clamp(min=torch.finfo(total.dtype).tiny)[..., None]
    return torch.bmm(weights.to(speech.dtype), speech), unit_prior


def _reduce(similarity: Tensor, unit_prior: Tensor, text_prior: Tensor, temperature: float) -> Tensor:
    """Loss of similarities [B, U, N]: best or soft-aligned unit, weighted by the text prior, batch mean."""
    if temperature == 0:
        best = similarity.masked_fill((unit_prior == 0)[..., None], -torch.inf).max(1).values
    else:
        logits = similarity / temperature + unit_prior.log()[..., None]
        best = (logits.softmax(1) * similarity).sum(1)
    return (text_prior * (1 - best)).sum(1).mean()


def eager(inputs: Inputs, level: str, temperature: float) -> Tensor:
    """Plain PyTorch: normalize, bmm, masked max (or softmax), in the inputs' dtype."""
    speech, text, speech_mask, text_mask, speech_prior, text_prior, start, end = inputs
    p, q = _normalized(speech_prior, speech_mask), _normalized(text_prior, text_mask)
    if level == "global":
        return ((p[..., None] * speech).sum(1) - (q[..., None] * text).sum(1)).abs().sum(1).mean()
    units, unit_prior = (speech, p) if level == "token" else _pool(speech, p, start, end)
    similarity = torch.bmm(F.normalize(units, dim=-1), F.normalize(text, dim=-1).transpose(1, 2))
    return _reduce(similarity, unit_prior, q, temperature)


def eager_scaled(inputs: Inputs, level: str, temperature: float) -> Tensor:
    """PyTorch written well: bmm of the embeddings as they are, similarities scaled by the norms."""
    speech, text, speech_mask, text_mask, speech_prior, text_prior, start, end = inputs
    p, q = _normalized(speech_prior, speech_mask), _normalized(text_prior, text_mask)
    compute = torch.promote_types(speech.dtype, torch.float32)
    speech, text, p, q = speech.to(compute), text.to(compute), p.to(compute), q.to(compute)
    if level == "global":
        pooled = torch.bmm(p[:, None], speech) - torch.bmm(q[:, None], text)
        return pooled.squeeze(1).abs().sum(1).mean()
    units, unit_prior = (speech, p) if level == "token" else _pool(speech, p, start, end)
    unit_scale = torch.linalg.vector_norm(units, dim=-1, keepdim=True).clamp(min=EPS).reciprocal()
    text_scale = torch.linalg.vector_norm(text, dim=-1, keepdim=True).clamp(min=EPS).reciprocal()
    similarity = torch.bmm(units, (text * text_scale).transpose(1, 2)) * unit_scale
    return _reduce(similarity, unit_prior, q, temperature)


def sdpa(inputs: Inputs, level: str, temperature: float) -> Tensor:
    """Tokens as queries, frames as keys and values, 1/temperature as the scale, the log prior as the bias."""
    speech, text, speech_mask, text_mask, speech_prior, text_prior, _, _ = inputs
    p, q = _normalized(speech_prior, speech_mask), _normalized(text_prior, text_mask)
    speech, text = F.normalize(speech, dim=-1), F.normalize(text, dim=-1)
    aligned = F.scaled_dot_product_attention(
        text[:, None], speech[:, None], speech[:, None], p.log().to(speech.dtype)[:, None, None], scale=1 / temperature
    )
    return (q * (1 - (aligned[:, 0] * text).sum(2))).sum(1).mean()


def ours(inputs: Inputs, level: str, temperature: float, backend: str | None = None) -> Tensor:
    """The public function of this package; the backend is chosen by itself unless named."""
    speech, text, speech_mask, text_mask, speech_prior, text_prior, start, end = inputs
    spans = None if start is None else pad_kernels.Spans(start, end)
    return pad_kernels.pad_loss(
        speech,
        text,
        speech_mask,
        text_mask,
        speech_prior,
        text_prior,
        level=level,
        temperature=temperature,
        spans=spans,
        backend=backend,
    )


# The definition, for checking: called on `inputs.double()`.
reference = partial(ours, backend="reference")


def compiled(device: str) -> Loss:
    """torch.compile of `eager_scaled`, static shapes; compiles at its first call."""
    mode = "max-autotune" if device == "cuda" else None
    return torch.compile(eager_scaled, fullgraph=True, dynamic=False, mode=mode)


@dataclass(frozen=True)
class Provider:
    """A way to compute a loss: what is called, what its inputs go through before any timing, and what is right."""

    loss: Loss
    prepare: Callable[[Inputs], Inputs] = lambda inputs: inputs
    definition: Loss = reference


_FIXED: dict[str, Loss] = {
    "eager": eager,
    "eager-scaled": eager_scaled,
    "sdpa": sdpa,
    "ours": ours,
    "ours-native": partial(ours, backend="native"),
    "ours-triton": partial(ours, backend="triton"),
}
PROVIDERS = ("eager", "eager-scaled", "torch.compile", *list(_FIXED)[2:], *peers.PEERS)
DEFAULT_PROVIDERS = {
    "cpu": ("eager", "eager-scaled", "torch.compile", "ours"),
    "cuda": PROVIDERS,
    "dry-run": PROVIDERS,
}


def make_provider(name: str, device: str) -> Provider:
    """The provider of a name; `device`: of the tensors. Raises ImportError where its package is not installed."""
    if name in peers.PEERS:
        return Provider(peers.make_loss(name), peers.prepare, peers.definition)
    return Provider(compiled(device) if name == "torch.compile" else _FIXED[name])


def serves(name: str, level: str, mode: str) -> bool:
    """Whether a provider has this level and mode."""
    if name in peers.PEERS:
        return level == "token" and mode == "hard"
    return name != "sdpa" or (level == "token" and mode == "soft")
