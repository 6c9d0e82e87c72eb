"""The attention function registered with transformers: scaled dot product attention, and each layer to its record."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

from pad.priors.dropout import attend_with_dropout
from pad.priors.record import is_running, record_of
from pad_kernels import significance, significance_from_attentions
from pad_kernels.weights import normalize

IMPLEMENTATION = "pad_significance"
# Rows of queries whose scores are held at once where the attention gives no log-sum-exp.
_ROWS = 64


def _mask(*, mask_function=bidirectional_mask_function, attention_mask=None, **options) -> Tensor | None:
    """The padding mask as [B, 1, 1, T]: no T x T array, unlike that of the sdpa implementation, but for windows."""
    if mask_function is bidirectional_mask_function:
        return None if attention_mask is None else attention_mask[:, None, None, :].bool()
    # A decoder may share the config of the encoder that is recorded.
    if is_running() and _is_causal(mask_function):
        raise ValueError(
            "model: causal, sliding or chunked attention; significance is recorded of layers that attend both ways. Of "
            "a model with a decoder, record the encoder alone: record_significance(model.get_encoder()). One that is "
            "only a decoder has no such prior"
        )
    options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **options)


def _is_causal(mask_function) -> bool:
    """Whether the second position attends to the first one, but not the first one to the second."""
    zero, one = torch.tensor([0, 1], device="cpu")
    return bool(mask_function(zero, zero, one, zero)) and not bool(mask_function(zero, zero, zero, one))


def _attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **options):
    """Attention [B, T, H, d] of query, key, value [B, H, T, d]; recorded where a record is open."""
    record = record_of(module)
    unknown = [name for name in ("softcap", "s_aux") if options.get(name) is not None]
    if unknown or record is not None and query.shape[2] != key.shape[2]:
        what = f"attention with {unknown[0]}" if unknown else "cross-attention, or attention to cached keys"
        raise ValueError(f"model: {what}; significance is recorded of plain self-attention only")
    query, key, value = _as_autocast(query, key, value)
    if query.shape[1] != key.shape[1]:  # groups of heads share a key
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    bias = _position_bias(attention_mask, options.get("position_bias"), query)
    if record is not None:
        record.note_pass(_runs_again(dropout))
    elif options.get("output_attentions") or query.shape[2] != key.shape[2]:
        mask = attention_mask if bias is None else bias
        return _plain(query, key, value, mask, dropout, scale, bool(options.get("output_attentions")))
    if bias is not None:
        output = functional.scaled_dot_product_attention(query, key, value, bias, dropout, scale=scale)
        if record is not None:
            with torch.no_grad():
                weights = _mean_map(query, key, bias, scale)
            record.add(module, query.shape[2], lambda mask: significance_from_attentions([weights], mask))
        return output.transpose(1, 2).contiguous(), None
    output, normalizer = _attend(query, key, value, attention_mask, dropout, scale)
    if record is not None:
        query, key = query.detach(), key.detach()
        normalizer = None if normalizer is None else normalizer.detach()

        def layer(mask):
            lse = _log_sum_exp(query, key, attention_mask, scale) if normalizer is None else normalizer
            return _significance_of(query, key, mask, attention_mask, scale, lse)

        record.add(module, query.shape[2], layer)
    return output.transpose(1, 2).contiguous(), None


def _plain(query, key, value, mask, dropout, scale, with_map):
    """The attention of a module that is not recorded but has the config of one that is: a decoder, a copy, the same
    model in another thread. It may attend to other positions, and be asked for its map."""
    if not with_map:
        output = functional.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale)
        return output.transpose(1, 2).contiguous(), None
    scores = (query @ key.transpose(-1, -2)) * scale
    if mask is not None:
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    weights = functional.dropout(scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype), dropout)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype in which autocast runs attention; rotary positions leave query and key in float32."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _runs_again(dropout: float) -> bool | None:
    """Whether backward will run this layer again, as activation checkpointing does; None if this pass does not tell."""
    if not torch.is_grad_enabled():
        # Training without gradient: what the checkpointing of use_reentrant=True does.
        return True if dropout > 0 else None
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if hooks is None:  # torch 2.7 and older
        return dropout > 0
    return hooks(True) is not None


def _position_bias(mask: Tensor | None, bias: Tensor | None, query: Tensor) -> Tensor | None:
    """What is added to the scores, at most [B, H, T, T]; None if that is a mask of keys alone, or nothing.

    mask: bool, True where a query attends to a key, or what is added to the scores.
    """
    if bias is None and (mask is None or mask.dtype == torch.bool and mask.shape[1] == mask.shape[2] == 1):
        return None
    # Not -inf: a query that attends to nothing, as padding may, would give NaN.
    lowest = torch.finfo(query.dtype).min
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, lowest)
    terms = [term for term in (mask, bias) if term is not None]
    return sum(terms[1:], start=terms[0]).to(query.dtype).clamp(min=lowest)


def _mean_map(query: Tensor, key: Tensor, bias: Tensor, scale: float) -> Tensor:
    """The attention map averaged over the heads [B, 1, T, T], float32 at least, a few rows at a time."""
    key = key.transpose(-1, -2)
    length = query.shape[2]
    parts = []
    for first in range(0, length, _ROWS):
        rows = slice(first, first + _ROWS)
        of_rows = bias[:, :, rows] if bias.shape[2] == length else bias
        scores = (query[:, :, rows] @ key).to(torch.promote_types(query.dtype, torch.float32)).mul_(scale)
        parts.append(scores.add_(of_rows).softmax(dim=-1).mean(dim=1, keepdim=True))
    return torch.cat(parts, dim=2)


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
        # Flash attention takes no mask, and cuDNN's is not asked to.
        chosen = SDPBackend.EFFICIENT_ATTENTION if mask is not None else _chosen(query, key, value, dropout, scale)
        if chosen == SDPBackend.FLASH_ATTENTION:
            output, normalizer, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
                query, key, value, dropout, scale=scale
            )
            return output, normalizer
        if chosen == SDPBackend.CUDNN_ATTENTION:
            output, normalizer, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
                query, key, value, None, True, dropout, scale=scale
            )
            return output, normalizer.squeeze(-1) if normalizer.dim() == 4 else normalizer
        if chosen == SDPBackend.EFFICIENT_ATTENTION and _has_efficient(query):
            output, normalizer, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
                query, key, value, _bias(mask, query), True, dropout, False, scale=scale
            )
            return output, normalizer[:, :, : query.shape[2]]
    return functional.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale), None


def _has_efficient(query: Tensor) -> bool:
    """Whether the memory-efficient kernel takes this dtype: bfloat16 not before compute capability 8.0."""
    return query.dtype != torch.bfloat16 or torch.cuda.get_device_capability(query.device) >= (8, 0)


def _chosen(query: Tensor, key: Tensor, value: Tensor, dropout: float, scale: float) -> SDPBackend:
    """The attention that torch itself would take without a mask."""
    return SDPBackend(torch._fused_sdp_choice(query, key, value, None, dropout, False, scale=scale))


def _bias(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """0 or -inf [B, H, T, T] by the keys' mask, in the memory of [B, T]; rows begin where the kernel can read them."""
    if mask is None:
        return None
    batch_size, heads, length, _ = query.shape
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(~mask, -torch.inf)
    return functional.pad(bias, (0, -length % 16))[..., :length].expand(batch_size, heads, length, length)


def _significance_of(query, key, mask, attention_mask, scale, lse) -> Tensor:
    """The prior [B, T] over `mask`, of attention that went to the keys of `attention_mask` [B, 1, 1, T] alone; `mask`
    may count other positions too: as rows, and as columns that received nothing."""
    if attention_mask is None:
        return significance(query, key, mask, scale=scale, lse=lse)
    keys = attention_mask[:, 0, 0].expand(key.shape[0], -1)
    counted = torch.ones_like(keys) if mask is None else mask
    if query.device.type == "cpu" and not (counted & ~keys).any():
        return significance(query, key, mask, scale=scale, lse=lse)
    # In place of the others a key that is attended to: no score exceeds the log-sum-exp.
    attended = keys.int().argmax(dim=1)[:, None, None, None].expand(-1, key.shape[1], 1, key.shape[3])
    key = torch.where(keys[:, None, :, None], key, key.gather(2, attended))
    counted = counted & keys.any(dim=1, keepdim=True)
    return normalize(significance(query, key, counted, scale=scale, lse=lse) * keys)


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
