"""Stops a run whose loss or gradients are no longer finite, before they reach the weights."""

from __future__ import annotations

import math
import os

import torch
from torch import distributed
from transformers import TrainerCallback

from pad.errors import Diverged

# oneDNN's gradient of a bfloat16 convolution on AMX (torch 2.13 and 2.14) multiplies by zero what it never wrote.
_VARIABLE, _WITHOUT_AMX = "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16"
# With float16 the loss scaler skips such steps and halves its scale, from 65536 down to 1 if need be.
_SKIPPED_WITH_FLOAT16 = 20


class StopWhenDiverged(TrainerCallback):
    """Raises Diverged before the optimizer step of the first loss or gradient norm that is not finite.

    trainer: a DistillationTrainer. With float16 some steps in a row are allowed, which its loss scaler skips. What was
    computed since the last entry of the log is added to it first.
    """

    def __init__(self, trainer):
        self.trainer, self.norm = trainer, None
        self.computed: list[tuple[int, torch.Tensor]] = []  # steps and losses since the last entry of the log
        self.seen = self.skipped = 0
        clip = trainer.accelerator.clip_grad_norm_

        def clip_and_note(*arguments, **options):
            self.norm = clip(*arguments, **options)
            return self.norm

        trainer.accelerator.clip_grad_norm_ = clip_and_note

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        losses = torch.stack(self.trainer.step_losses[self.seen :]).float()
        # As tensors they would hold a GPU's memory to the end of the run.
        self.trainer.step_losses[self.seen :] = losses.tolist()
        self.seen = len(self.trainer.step_losses)
        self.computed.append((state.global_step + 1, losses.mean()))
        norm = losses.new_zeros(()) if self.norm is None else torch.as_tensor(self.norm, device=losses.device)
        if all_agree(losses.isfinite().all() & norm.isfinite().all(), args):
            self.skipped = 0
            return
        self.skipped += 1
        if self.skipped <= (_SKIPPED_WITH_FLOAT16 if args.fp16 else 0):
            return
        for step, loss in self.computed:
            state.log_history.append({"step": step, "loss": loss.item()})
        state.log_history[-1]["grad_norm"] = math.nan if self.norm is None else float(norm)
        message = f"diverged at step {state.global_step + 1}: loss {losses.mean():g}, gradient norm {norm:g}"
        if losses.isfinite().all() and _may_be_the_convolutions(args):
            message += (
                "; on a processor with AMX, torch's gradients of bfloat16 convolutions can be NaN by mistake: "
                f"{_VARIABLE}={_WITHOUT_AMX} in the environment prevents it"
            )
        raise Diverged(message)

    def on_log(self, args, state, control, **kwargs):
        self.computed.clear()


def _may_be_the_convolutions(args) -> bool:
    on_cpu = args.bf16 and args.device.type == "cpu" and _VARIABLE not in os.environ
    return on_cpu and torch.cpu._is_amx_tile_supported()


def check_finite(model: torch.nn.Module, args, step: int) -> None:
    """Raise Diverged if a weight of the model is not finite."""
    sound = torch.stack([weight.detach().isfinite().all() for weight in model.parameters()]).all()
    if not all_agree(sound, args):
        raise Diverged(f"diverged at step {step}: the weights are no longer finite")


def all_agree(flag: torch.Tensor, args) -> bool:
    """Whether the flag, a bool scalar, is set in all processes."""
    if args.world_size > 1:
        flag = flag.to(args.device, torch.int32)
        distributed.all_reduce(flag, distributed.ReduceOp.MIN)
    return bool(flag)
