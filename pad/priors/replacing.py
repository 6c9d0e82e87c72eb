"""The attention of a model's configs, replaced by the recording one while a context is open."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from pad.priors.attention import IMPLEMENTATION
from pad.priors.record import Record, in_backward

_Names = list[tuple[PretrainedConfig, str | None]]


@dataclass
class _Use:
    """How many contexts use a config, in all threads, what was there before, and whether backward needs it still."""

    before: str | None
    contexts: int = 0
    keep: bool = False


_in_use: dict[int, _Use] = {}  # by the id of a config
_lock = threading.Lock()


@contextmanager
def attention_replaced(encoders: Sequence[PreTrainedModel], record: Record) -> Iterator[None]:
    """In this context the encoders attend by the recording function; raises ValueError for a function of the user's.

    It stays afterwards where backward will run layers again: both passes must draw the same dropout.
    """
    # The layers' own too: an encoder that was put into an encoder-decoder has another than its layers.
    found = [getattr(module, "config", None) for encoder in encoders for module in encoder.modules()]
    configs = list({id(config): config for config in found if isinstance(config, PretrainedConfig)}.values())
    with _lock:
        kept = _give_back(encoders)
        before = [config._attn_implementation for config in configs]
        for name in before:
            _check_known(name)
        for config, name in zip(configs, before):
            _in_use.setdefault(id(config), _Use(name)).contexts += 1
        for config in configs:
            config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        flags = [getattr(module, "gradient_checkpointing", False) for one in encoders for module in one.modules()]
        # A context that ran nothing with gradients tells nothing new.
        again = kept if record.runs_again is None else record.runs_again
        with _lock:
            _leave(configs, encoders, any(flags) or again)


def _check_known(name: str | None) -> None:
    plain = (name or "eager").removeprefix("paged|")
    if plain not in ("eager", "sdpa", "flex_attention", IMPLEMENTATION) and "flash" not in plain:
        raise ValueError(
            f"model: it attends by {name!r}, a function that recording would replace by another; expected 'eager', "
            "'sdpa', 'flex_attention' or flash attention (model.set_attn_implementation)"
        )


def _leave(configs: list[PretrainedConfig], encoders: Sequence[PreTrainedModel], keep: bool) -> None:
    kept: _Names = []
    # Setting a config sets those inside it too, which come later here.
    for config in configs:
        use = _in_use[id(config)]
        use.contexts, use.keep = use.contexts - 1, use.keep or keep
        if use.contexts:
            continue
        del _in_use[id(config)]
        if use.keep and use.before != IMPLEMENTATION:
            kept.append((config, use.before))
        else:
            config._attn_implementation = use.before
    if kept:
        for config, _ in kept:
            config._attn_implementation = IMPLEMENTATION
        _Kept(kept, encoders)


def _give_back(encoders: Sequence[PreTrainedModel]) -> bool:
    """Give back what an earlier context kept; whether it kept anything."""
    hooks = [hook for encoder in encoders for hook in encoder._forward_pre_hooks.values()]
    owners = {id(owner): owner for hook in hooks if isinstance(owner := getattr(hook, "__self__", None), _Kept)}
    for owner in owners.values():
        owner.end()
    return bool(owners)


class _Kept:
    """The recording attention after its context; passes in evaluation mode without gradient have the model's own.

    Its methods are hooks of the encoders, so that a copy of the model has a copy of it.
    """

    def __init__(self, names: _Names, encoders: Sequence[PreTrainedModel]):
        self.names = names
        self.running: list[tuple[int, int]] = []  # thread and encoder of each pass that has the model's own
        self.handles = []
        for encoder in encoders:
            self.handles.append(encoder.register_forward_pre_hook(self.begin, with_kwargs=True))
            self.handles.append(encoder.register_forward_hook(self.finish, always_call=True))

    def begin(self, encoder: PreTrainedModel, arguments: tuple, named: dict | None = None) -> None:
        if in_backward():
            return
        if not encoder.training and not torch.is_grad_enabled():
            with _lock:
                self.running.append((threading.get_ident(), id(encoder)))
                self._set_own()
        elif maps_asked_for(encoder, named) and encoder.config._attn_implementation == IMPLEMENTATION:
            raise ValueError(
                "output_attentions: there are no attention maps, as the model keeps the recording attention for a "
                "backward pass that may run layers again (gradient checkpointing, or hooks of saved tensors); expected "
                "a pass in evaluation mode under torch.no_grad()"
            )

    def finish(self, encoder: nn.Module, arguments: tuple, output: object) -> None:
        with _lock:
            key = (threading.get_ident(), id(encoder))
            if key not in self.running:
                return
            self.running.remove(key)
            if not self.running:
                for config, name in self.names:
                    if config._attn_implementation == name:
                        config._attn_implementation = IMPLEMENTATION

    def _set_own(self) -> None:
        for config, name in self.names:
            if config._attn_implementation == IMPLEMENTATION:
                config._attn_implementation = name

    def end(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.running = []
        self._set_own()


def maps_asked_for(encoder: PreTrainedModel, named: dict | None) -> bool:
    """Whether a call asks for attention maps; named: None where another thread is about to add or remove its hook."""
    return named is not None and bool(named.get("output_attentions", encoder.config.output_attentions))
