"""Significance priors, recorded while a transformers model runs (PAD, ASP); of an SDPA model without attention maps.

    with record_significance(model, frame_mask) as record:
        outputs = model(**inputs)
    prior = record.prior()

Attention runs in a function registered with transformers: scaled dot product attention gives the output, and the fused
column sums of `pad_kernels.significance` on the same query and key give the prior. Families that do not attend that way
compute their attention maps; each map is reduced as its layer ends.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from pad.priors.families import reporting
from pad.priors.numbering import kind_of
from pad.priors.record import Record, in_backward, record_of, records

_ONE_PROCESS_EACH = (
    "model: nn.DataParallel runs copies of the model, whose attention is not recorded; run one process for each GPU: "
    "torchrun --nproc-per-node N, or accelerate launch"
)


@contextmanager
def record_significance(
    model: nn.Module, mask: Tensor | None = None, *, layers: Collection[int] | Mapping[int, float] | None = None
) -> Iterator[Record]:
    """Record how much attention each position receives while `model` runs in this context.

    model: an encoder of transformers of a family that docs/families.md lists; wrapped in DDP or not, in training
    or evaluation mode. Other threads may use the same model; each thread has its own records. Of contexts of one model
    within one another, the innermost records.
    mask: [B, T] bool or 0/1, the positions (frames of speech, not samples; tokens without special tokens) that
    count. If it is given here, a layer keeps only its column sums; if it is given to `Record.prior` later, a layer
    keeps its query and key until then, or its map averaged over the heads.
    layers: which layers to average, counted from 0 in the order in which the model holds them, or in which they run if
    they share a module; None: all, as in the paper; {0: 0.8, 1: 0.2}: the mean with these weights, which are positive
    and need not sum to 1. Layers that layerdrop skips are left out of the mean.
    The prior is a constant for the gradient. Backward may come after the context: where it runs layers again, the model
    keeps the recording attention. Raises ValueError for a model that it cannot record or that attends by a function of
    the user's, for one whose output has other positions than its layers attend to, and for a call with
    `output_attentions=True`.
    Source: PAD, section on the attention-based significance prior; docs/families.md.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a transformers model, got {type(model).__name__}")
    encoders = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if not encoders:
        raise ValueError(f"model: expected a transformers model, got {type(model).__name__} with none inside")
    if any(isinstance(module, nn.DataParallel) and len(module.device_ids) > 1 for module in model.modules()):
        raise ValueError(_ONE_PROCESS_EACH)
    record = Record(model, mask, layers)
    with ExitStack() as stack:
        stack.enter_context(_recorded_in(model, record))
        stack.enter_context(_watched(model, record))
        stack.enter_context(reporting(encoders, record))
        yield record


@contextmanager
def _recorded_in(model: nn.Module, record: Record) -> Iterator[None]:
    """Register the record for the model's modules; contexts may end in any order."""
    keys = [(threading.get_ident(), id(module)) for module in model.modules()]
    for key in keys:
        records.setdefault(key, []).append(record)
    try:
        yield
    finally:
        record.open = False
        for key in keys:
            records[key].remove(record)
            if not records[key]:
                del records[key]


@contextmanager
def _watched(model: nn.Module, record: Record) -> Iterator[None]:
    """Begin anew with each pass of the model or its encoder, refuse copies, and note which attention runs."""

    def begin(module, arguments):
        # A copy made by copy.deepcopy carries this hook too, and is none of the record's business.
        if getattr(module, "_is_replica", False) and record.open:
            raise ValueError(_ONE_PROCESS_EACH)
        if record_of(module) is record and not in_backward():
            record.begin_pass(module)
            record.running += 1

    def end(module, arguments, output):
        if record_of(module) is record and not in_backward() and record.running:
            record.running -= 1

    def attend(module, arguments):
        if record_of(module) is record and not in_backward():
            record.note_run(module)

    with ExitStack() as stack:
        for module in model.modules():
            if module is model or isinstance(module, PreTrainedModel):
                stack.callback(module.register_forward_pre_hook(begin).remove)
                stack.callback(module.register_forward_hook(end, always_call=True).remove)
            if "Attention" in kind_of(module).__name__:
                stack.callback(module.register_forward_pre_hook(attend).remove)
        yield
