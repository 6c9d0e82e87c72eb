"""Significance priors while a transformers model runs: no layer's attention map is held in memory (PAD, ASP).

    with record_significance(model, frame_mask) as record:
        outputs = model(**inputs)
    prior = record.prior()

Attention goes through a function registered with transformers: the output by scaled dot product attention, the
prior by the fused column sums of `pad_kernels.significance` on the same query and key.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from pad.attention import attend_with_dropout
from pad_kernels import significance, significance_from_attentions

IMPLEMENTATION = "pad_significance"
# Rows of queries whose scores are held at once where the attention gives no log-sum-exp.
_ROWS = 64

_records: dict[int, Record] = {}  # by the id of a module; models may share a config


class Record:
    """What the layers of one forward pass gave; a later pass in the same context replaces it."""

    def __init__(self, model: nn.Module, mask: Tensor | None, layers: Collection[int] | None = None):
        self.mask = None if mask is None else mask.bool()
        self.layers = layers
        self._model = model
        self._numbers: dict[int, int] = {}  # by the id of an attention module
        self._trained = False
        self._layers: list[Callable[[Tensor | None], Tensor]] = []
        self._priors: list[Tensor] = []

    def clear(self) -> None:
        """Forget the layers recorded so far."""
        self._layers, self._priors, self._trained = [], [], self._model.training

    @torch.no_grad()
    def add(self, attention: nn.Module, layer: Callable[[Tensor | None], Tensor]) -> None:
        """Record a layer, a function from the mask to its prior: called at once if the mask is known."""
        if torch._C._current_graph_task_id() != -1:
            return  # gradient checkpointing runs the layer again
        if self.layers is not None and self._number(attention) not in self.layers:
            return
        if self.mask is None:
            self._layers.append(layer)
        else:
            self._priors.append(layer(self.mask))

    def _number(self, attention: nn.Module) -> int:
        if id(attention) not in self._numbers:
            alike = [module for module in self._model.modules() if type(module) is type(attention)]
            self._numbers = {id(module): number for number, module in enumerate(alike)}
            if any(number not in range(len(alike)) for number in self.layers):
                raise ValueError(f"layers: expected numbers from 0 to {len(alike) - 1}, got {sorted(self.layers)}")
        return self._numbers[id(attention)]

    @torch.no_grad()
    def prior(self, mask: Tensor | None = None) -> Tensor:
        """Prior [B, T] float32, the mean over the layers that ran; sums to 1 over the real positions.

        mask: [B, T] bool or 0/1, the positions that count as rows and as columns; None: that given to
        `record_significance`, or all. Uniform where layerdrop left out every layer. Raises ValueError if no layer
        was recorded, or another mask was used.
        """
        if self.mask is not None and mask is not None and mask is not self.mask:
            if mask.shape != self.mask.shape or not torch.equal(mask.bool(), self.mask):
                raise ValueError("mask: differs from the mask given to record_significance; give it once")
        if self._layers:
            mask = None if mask is None else mask.bool()
            self._priors = [layer(mask) for layer in self._layers]
            self._layers = []
        if not self._priors and self._trained and (self.mask is not None or mask is not None):
            real = (self.mask if mask is None else mask).float()
            return real / real.sum(dim=1, keepdim=True).clamp(min=1)
        if not self._priors:
            raise ValueError("no attention layer was recorded: run the model in the context, then ask for the prior")
        return torch.stack(self._priors).mean(dim=0)


@contextmanager
def record_significance(
    model: nn.Module, mask: Tensor | None = None, *, layers: Collection[int] | None = None
) -> Iterator[Record]:
    """Record how much attention each position receives while `model` runs in this context.

    model: an encoder of transformers whose layers attend through its attention interface (Wav2Vec2, HuBERT,
    BERT, RoBERTa, DistilBERT, MiniLM-like, ...), or WavLM; wrapped in DDP or not, in training or evaluation
    mode. WavLM computes its attention maps in any case; they are reduced layer by layer.
    mask: [B, T] bool or 0/1, the positions (frames of speech, not samples; tokens without special tokens) that
    count. Given here, a layer leaves only its column sums behind; given to `Record.prior` later, its query and
    key are kept until then.
    layers: which layers to average, counted from 0 in the order in which the model holds them; None: all, as in
    the paper. Layers that layerdrop leaves out are left out of the mean.
    The prior is a constant for the gradient. Raises ValueError for a model that it cannot record.
    Source: PAD, section on the attention-based significance prior; docs/kernels.md.
    """
    encoders = {id(module.config): module for module in model.modules() if isinstance(module, PreTrainedModel)}
    if not encoders:
        raise ValueError(f"model: expected a transformers model, got {type(model).__name__} with none inside")
    record = Record(model, mask, layers)
    with ExitStack() as stack:
        stack.enter_context(_recorded_in(model, record))
        hook = model.register_forward_pre_hook(lambda *_: _records[id(model)].clear())
        stack.callback(hook.remove)
        for encoder in encoders.values():
            if encoder.config.model_type == "wavlm":
                for layer in encoder.modules():
                    if isinstance(layer, WavLMAttention):
                        stack.callback(layer.register_forward_hook(_hook_of(record)).remove)
            else:
                stack.enter_context(_attention_replaced(encoder))
        yield record


@contextmanager
def _recorded_in(model: nn.Module, record: Record) -> Iterator[None]:
    """What the model's modules attend to goes to this record; afterwards to the one before, which it leaves alone."""
    keys = [id(module) for module in model.modules()]
    outer = {key: _records[key] for key in keys if key in _records}
    _records.update(dict.fromkeys(keys, record))
    try:
        yield
    finally:
        for key in keys:
            del _records[key]
        _records.update(outer)


@contextmanager
def _attention_replaced(model: PreTrainedModel) -> Iterator[None]:
    if not getattr(model, "_supports_sdpa", False):
        raise ValueError(
            f"model: {model.config.model_type!r} does not attend through transformers' attention interface; its "
            "significance cannot be recorded. Use an objective without that prior"
        )
    before = model.config._attn_implementation
    model.config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        # Backward runs checkpointed layers again: by the same function.
        if not any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            model.config._attn_implementation = before


def _hook_of(record: Record):
    def hook(module, arguments, output):
        if _records.get(id(module)) is record:
            weights = output[1].detach()[:, :1]
            record.add(module, lambda mask: significance_from_attentions([weights], mask))

    return hook


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
    record = _records.get(id(module))
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
