"""Significance priors, recorded while a transformers model runs, with no attention map in memory (PAD, ASP).

    with record_significance(model, frame_mask) as record:
        outputs = model(**inputs)
    prior = record.prior()

Attention runs in a function registered with transformers: scaled dot product attention gives the output, and the fused
column sums of `pad_kernels.significance` on the same query and key give the prior.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from pad.priors.families import reporting
from pad.priors.record import Record, records


@contextmanager
def record_significance(
    model: nn.Module, mask: Tensor | None = None, *, layers: Collection[int] | None = None
) -> Iterator[Record]:
    """Record how much attention each position receives while `model` runs in this context.

    model: an encoder of transformers whose layers attend through its attention interface (Wav2Vec2, HuBERT,
    BERT, RoBERTa, DistilBERT, MiniLM-like, ...), or WavLM; wrapped in DDP or not, in training or evaluation
    mode. WavLM computes its attention maps in any case; they are reduced layer by layer.
    mask: [B, T] bool or 0/1, the positions (frames of speech, not samples; tokens without special tokens) that
    count. If it is given here, a layer keeps only its column sums; if it is given to `Record.prior` later, a layer
    keeps its query and key until then.
    layers: which layers to average, counted from 0 in the order in which the model holds them; None: all, as in
    the paper. Layers that layerdrop skips are left out of the mean.
    The prior is a constant for the gradient. Raises ValueError for a model that it cannot record.
    Source: PAD, section on the attention-based significance prior; docs/kernels.md.
    """
    encoders = {id(module.config): module for module in model.modules() if isinstance(module, PreTrainedModel)}
    if not encoders:
        raise ValueError(f"model: expected a transformers model, got {type(model).__name__} with none inside")
    record = Record(model, mask, layers)
    with ExitStack() as stack:
        stack.enter_context(_recorded_in(model, record))
        hook = model.register_forward_pre_hook(lambda *_: records[id(model)].clear())
        stack.callback(hook.remove)
        for encoder in encoders.values():
            stack.enter_context(reporting(encoder, record))
        yield record


@contextmanager
def _recorded_in(model: nn.Module, record: Record) -> Iterator[None]:
    """Register the record for the model's modules; afterwards the previous one, which is left as it was."""
    keys = [id(module) for module in model.modules()]
    outer = {key: records[key] for key in keys if key in records}
    records.update(dict.fromkeys(keys, record))
    try:
        yield
    finally:
        for key in keys:
            del records[key]
        records.update(outer)
