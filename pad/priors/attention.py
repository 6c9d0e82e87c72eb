"""The attention function registered with transformers: scaled dot product attention, and each layer to its record."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function

from pad.priors.dropout import attend_with_dropout
from pad.priors.record import records
from pad_kernels import significance

IMPLEMENTATION = "pad_significance"
# Rows of queries whose scores are held at once where the attention gives no log-sum-exp.
_ROWS = 64


def _mask(
    batch_size, q_length, kv_length, mask_function=bidirectional_mask_function, attention_mask=None, **options
) -> Tensor | None:
    """The padding mask as [B, 1, 1, T]: no T x T array, unlike that of the sdpa implementation."""
    if mask_function is not bidirectional_mask_function or options.get("local_size") is not None:
        raise ValueError("model: causal, sliding or chunked attention; significance is recorded of full attention only")
    return None if attention_mask is None else attention_mask[:, None, None, :].bool()


def _attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **options):
    """Attention [B, T, H, d] of query, key, value [B, H, T, d]; recorded where a record is open."""
    if options.get("position_bias") is not None or query.shape[1:3] != key.shape[1:3]:
        raise ValueError("model: significance is recorded of self-attention without position bias or shared heads only")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output, normalizer = _attend(query, key, value, attention_mask, dropout, scale)
    record = records.get(id(module))
    if record is not None:
        query, key = query.detach(), key.detach()
        normalizer = None if normalizer is None else normalizer.detach()

        def layer(mask):
            lse = _log_sum_exp(query, key, attention_mask, scale) if normalizer is None else normalizer
            return significance(query, key, mask, scale=scale, lse=lse)

        record.add(module, layer)
    return output.transpose(1, 2).contiguous(), None


def _attend(query, key, value, mask, dropout, scale) -> tuple[Tensor, Tensor | None]:
    """The attention's output, and the row log-sum-exp [B, H, T] where the kernel gives it."""
    if query.device.type == "cpu" and dropout > 0:
        return attend_with_dropout(query, key, value, mask, dropout, scale)
    if query.device.type == "cpu":
        bias = None if mask is None else torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=bias, scale=scale
        )
    if query.device.type == "cuda" and query.shape[3] % 8 == 0 and query.dtype != torch.float64:
        output, normalizer, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, _bias(mask, query), True, dropout, False, scale=scale
        )
        return output, normalizer[:, :, : query.shape[2]]
    return functional.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale), None


def _bias(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """0 or -inf [B, H, T, T] by the keys' mask, in the memory of [B, T]; rows begin where the kernel can read them."""
    if mask is None:
        return None
    batch_size, heads, length, _ = query.shape
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(~mask, -torch.inf)
    return functional.pad(bias, (0, -length % 16))[..., :length].expand(batch_size, heads, length, length)


def _log_sum_exp(query, key, mask, scale) -> Tensor:
    """Row log-sum-exp [B, H, T] float32 over the keys of the mask, a few rows at a time."""
    key = key.transpose(-1, -2)
    parts = []
    for rows in query.split(_ROWS, dim=2):
        scores = (rows @ key).float().mul_(scale)
        if mask is not None:
            scores.masked_fill_(~mask, -torch.inf)
        parts.append(scores.logsumexp(dim=-1))
    return torch.cat(parts, dim=2)


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)
