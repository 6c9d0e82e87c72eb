"""Attention with dropout on a CPU, a few rows at a time: torch's flash attention for CPUs has no dropout."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Scores held at once; few enough to stay in the cache while a chunk is processed.
_SCORES = 2**20


def attend_with_dropout(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [B, H, T, d] of attention whose weights are dropped, and the row log-sum-exp [B, H, T], float32 at least.

    query, key, value: [B, H, T, d]; mask: [B, 1, 1, T] bool, the keys that count, or None; dropout: the share of the
    weights that become 0. Backward computes the weights again and draws the same ones. A row without keys gives 0.
    The log-sum-exp carries no gradient.
    """
    return _AttentionWithDropout.apply(query, key, value, mask, dropout, scale)


class _AttentionWithDropout(torch.autograd.Function):
    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx, query, key, value, mask, dropout, scale):
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        ctx.save_for_backward(query, key, value, mask)
        ctx.seed, ctx.dropout, ctx.scale = seed, dropout, scale
        chunks = _Chunks(query, key, mask, dropout, scale, seed)
        output = torch.empty_like(value)
        normalizer = query.new_empty(query.shape[:3], dtype=chunks.dtype)
        for batch, rows in chunks:
            weights = chunks.weights(batch, rows, normalizer[batch, :, rows])
            weights.mul_(chunks.kept(weights.shape))
            output[batch, :, rows] = weights.to(value.dtype) @ value[batch]
        output.mul_(chunks.raised)
        ctx.mark_non_differentiable(normalizer)
        return output, normalizer

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output, _):
        query, key, value, mask = ctx.saved_tensors
        chunks = _Chunks(query, key, mask, ctx.dropout, ctx.scale, ctx.seed)
        grad_output = grad_output * chunks.raised
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.zeros_like(x, dtype=chunks.dtype) for x in (key, value))
        for batch, rows in chunks:
            weights = chunks.weights(batch, rows)
            kept = chunks.kept(weights.shape)
            received = grad_output[batch, :, rows]
            grad_weights = (received @ value[batch].transpose(-1, -2)).to(chunks.dtype).mul_(kept)
            grad_value[batch] += (weights * kept).to(value.dtype).transpose(-1, -2) @ received
            # softmax: w (g - sum of w g)
            grad_weights.mul_(weights)
            grad_scores = grad_weights.addcmul_(weights, grad_weights.sum(-1, keepdim=True), value=-1)
            grad_scores = grad_scores.mul_(ctx.scale).to(query.dtype)
            grad_query[batch, :, rows] = grad_scores @ key[batch]
            grad_key[batch] += grad_scores.transpose(-1, -2) @ query[batch, :, rows]
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


class _Chunks:
    """The chunks (utterance, rows) in which an attention map is processed, and the random draws for them."""

    def __init__(self, query, key, mask, dropout: float, scale: float, seed: int):
        self.query, self.key, self.mask, self.scale = query, key, mask, scale
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        self.generator = torch.Generator().manual_seed(seed)
        # Four 16-bit numbers of each draw decide: a draw for each weight would take most of the time.
        self.dropped = round(dropout * 2**16)
        self.raised = 2**16 / (2**16 - self.dropped) if self.dropped < 2**16 else 0.0
        heads, length = query.shape[1:3]
        self.rows = max(1, min(_SCORES // max(1, heads * length), -(-length // 4)))

    def __iter__(self):
        batch_size, _, length, _ = self.query.shape
        for batch in range(batch_size):
            for first in range(0, length, self.rows):
                yield batch, slice(first, first + self.rows)

    def weights(self, batch: int, rows: slice, normalizer: Tensor | None = None) -> Tensor:
        """Weights [H, R, T] of some rows before dropout; their log-sum-exp [H, R] goes to `normalizer`."""
        scores = (self.query[batch, :, rows] @ self.key[batch].transpose(-1, -2)).to(self.dtype).mul_(self.scale)
        if self.mask is not None:
            scores.masked_fill_(~self.mask[batch], torch.finfo(self.dtype).min)
        weights = scores.softmax(dim=-1)
        if self.mask is not None:
            weights.mul_(self.mask[batch].any())
        if normalizer is not None:
            # At the largest, whose weight is far from 0; torch's logsumexp takes seven times as long as its softmax.
            normalizer.copy_(scores.amax(-1).sub_(weights.amax(-1).log_()))
        return weights

    def kept(self, shape: torch.Size) -> Tensor:
        """Which of the next weights are kept, bool."""
        count = shape.numel()
        draws = torch.empty((count + 3) // 4, dtype=torch.int64, device="cpu").random_(
            -(2**63), None, generator=self.generator
        )
        return (draws.view(torch.int16)[:count] >= min(self.dropped, 2**16 - 1) - 2**15).view(shape)
