"""How the layers of each family of encoders are made to report their attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from transformers import PreTrainedModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from pad.priors.attention import IMPLEMENTATION
from pad.priors.record import Record, records
from pad_kernels import significance_from_attentions


@contextmanager
def reporting(encoder: PreTrainedModel, record: Record) -> Iterator[None]:
    """In this context the encoder's layers report to the record; raises ValueError for a family that cannot."""
    if encoder.config.model_type == "wavlm":
        with _maps_reduced(encoder, record):
            yield
    else:
        with _attention_replaced(encoder):
            yield


@contextmanager
def _maps_reduced(encoder: PreTrainedModel, record: Record) -> Iterator[None]:
    """For a family that computes its attention maps in any case: each map is reduced as its layer ends."""
    with ExitStack() as stack:
        for layer in encoder.modules():
            if isinstance(layer, WavLMAttention):
                stack.callback(layer.register_forward_hook(_hook_of(record)).remove)
        yield


def _hook_of(record: Record):
    def hook(module, arguments, output):
        if records.get(id(module)) is record:
            weights = output[1].detach()[:, :1]
            record.add(module, lambda mask: significance_from_attentions([weights], mask))

    return hook


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
