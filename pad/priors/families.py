"""How the layers of each family of encoders are made to report their attention."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from pad.priors.record import Record, record_of
from pad.priors.replacing import attention_replaced, maps_asked_for
from pad_kernels import significance_from_attentions

# Attention modules that compute their map in any case, and the place of the map [B, H, T, T] in what they return.
_MAP_AT = {
    "WavLMAttention": 1,
    "MPNetSelfAttention": 1,
    "DisentangledSelfAttention": 1,  # DeBERTa v1 to v3
    "MegatronBertSelfAttention": 1,
    "RemBertSelfAttention": 1,
    "RoFormerSelfAttention": 1,
    # Before they attended through the interface:
    "T5Attention": 2,
    "MT5Attention": 2,
    "UMT5Attention": 1,
    "Wav2Vec2ConformerSelfAttention": 1,
    "Wav2Vec2BertSelfAttention": 1,
}

# Families whose layers give maps that are not of the positions that come out, by model_type.
_POOLED = ("sew", "sew-d")


@contextmanager
def reporting(encoders: Sequence[PreTrainedModel], record: Record) -> Iterator[None]:
    """In this context the encoders' layers report to the record; raises ValueError for a family that cannot."""
    # Those with others inside are no more than wrappers: heads, or an encoder with its decoder.
    innermost = [one for one in encoders if sum(isinstance(module, PreTrainedModel) for module in one.modules()) == 1]
    with ExitStack() as stack:
        replaced = False
        for encoder in innermost:
            if encoder.config.model_type in _POOLED:
                raise ValueError(
                    f"model: the layers of {encoder.config.model_type!r} attend to fewer positions than come out; its "
                    "prior would not fit. Use an objective without that prior"
                )
            if _attends_through_interface(encoder):
                replaced = True
            elif not _maps_reduced(encoder, record, stack):
                raise ValueError(
                    f"model: {encoder.config.model_type!r} neither attends through transformers' attention interface "
                    "nor gives its attention maps; its significance cannot be recorded. Use an objective without that "
                    "prior"
                )
            stack.callback(encoder.register_forward_hook(_length_checked(record)).remove)
        if replaced:
            for encoder in encoders:
                stack.callback(encoder.register_forward_pre_hook(_maps_refused(record), with_kwargs=True).remove)
            stack.enter_context(attention_replaced(encoders, record))
        yield


def _attends_through_interface(encoder: PreTrainedModel) -> bool:
    """Whether the file that defines the model uses transformers' table of attention functions."""
    defining = [kind for kind in type(encoder).__mro__[:-1] if issubclass(kind, PreTrainedModel)]
    return any(
        hasattr(sys.modules.get(kind.__module__), "ALL_ATTENTION_FUNCTIONS")
        for kind in defining
        if kind is not PreTrainedModel
    )


def _maps_reduced(encoder: PreTrainedModel, record: Record, stack: ExitStack) -> bool:
    """Reduce the map of each layer as the layer ends; False if the encoder has no layer that gives one."""
    layers = [module for module in encoder.modules() if type(module).__name__ in _MAP_AT]
    for layer in layers:
        if "output_attentions" in inspect.signature(type(layer).forward).parameters:
            stack.callback(layer.register_forward_pre_hook(_map_asked_for, with_kwargs=True).remove)
        stack.callback(layer.register_forward_hook(_map_taken(record, _MAP_AT[type(layer).__name__])).remove)
    return bool(layers)


def _map_asked_for(layer: nn.Module, arguments: tuple, named: dict | None = None) -> tuple[tuple, dict] | None:
    """Arguments with which the layer returns its map; the module around it ignores what it has not asked for.

    named: None where another thread is about to add or remove its hook.
    """
    if named is None or record_of(layer) is None:
        return None
    bound = inspect.signature(type(layer).forward).bind_partial(layer, *arguments, **named)
    bound.arguments["output_attentions"] = True
    return bound.args[1:], bound.kwargs


def _map_taken(record: Record, place: int):
    def hook(layer, arguments, output):
        if record_of(layer) is not record:
            return
        if output[place] is None:
            raise ValueError(f"model: {type(layer).__name__} of this version of transformers gives no attention map")
        weights = output[place].detach()
        if weights.stride(1) == 0:  # one map for all heads
            weights = weights[:, :1]
        dtype = torch.promote_types(weights.dtype, torch.float32)
        weights = weights.mean(dim=1, keepdim=True, dtype=dtype)
        record.add(layer, weights.shape[-1], lambda mask: significance_from_attentions([weights], mask))

    return hook


def _maps_refused(record: Record):
    def hook(encoder, arguments, named=None):
        if record_of(encoder) is record and maps_asked_for(encoder, named):
            raise ValueError(
                "output_attentions: there are no attention maps while significance is recorded; leave it out, or take "
                "the prior from the maps of the eager attention by pad_kernels.significance_from_attentions"
            )

    return hook


def _length_checked(record: Record):
    def hook(encoder, arguments, output):
        states = getattr(output, "last_hidden_state", None)
        if states is None and isinstance(output, tuple):
            states = output[0]
        if record_of(encoder) is not record or record.length is None or states is None:
            return
        if states.dim() == 3 and states.shape[1] != record.length:
            adapter = " (its config has add_adapter)" if getattr(encoder.config, "add_adapter", False) else ""
            raise ValueError(
                f"model: the layers of {type(encoder).__name__} attend to {record.length} positions, but its output "
                f"has {states.shape[1]}{adapter}: the prior would not fit. Use a model without adapter or pooling"
            )

    return hook
