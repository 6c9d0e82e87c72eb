"""Training of one head, and the test of the weights that were best on dev."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from pad.errors import Stopped
from pad.evaluate.states import load_state, save_state
from pad.evaluate.tasks import Split, Task
from pad.progress import say
from pad.signals import NotedSignals
from pad.step.collate import LengthBucketSampler


@dataclass(frozen=True)
class Schedule:
    """Sizes and counts of a training run, as in EvaluateConfig."""

    steps: int
    eval_every: int
    save_every: int
    batch_size: int
    max_grad_norm: float
    seed: int
    workers: int = 0


class _Batches:
    """The item numbers of each batch from step `first` on; the order depends on the seed alone."""

    def __init__(self, lengths, schedule: Schedule, first: int):
        self.sampler = LengthBucketSampler(lengths, schedule.batch_size, schedule.seed)
        self.schedule, self.first = schedule, first

    def __iter__(self) -> Iterator[list[int]]:
        size, count = self.schedule.batch_size, len(self.sampler)
        in_epoch = -(-count // size)
        step = self.first
        while step < self.schedule.steps:
            self.sampler.set_epoch(step // in_epoch)
            order = list(self.sampler)
            for place in range(step % in_epoch, in_epoch):
                if step == self.schedule.steps:
                    return
                yield order[place * size : (place + 1) * size]
                step += 1


def _loader(split: Split, batches, workers: int) -> DataLoader:
    return DataLoader(split.items, batch_sampler=batches, num_workers=workers, collate_fn=list)


@torch.no_grad()
def score(task: Task, head: nn.Module, split: Split, schedule: Schedule) -> dict[str, float]:
    """The scores of a head on a split; the head is left in evaluation mode."""
    head.eval()
    order = sorted(range(len(split.lengths)), key=lambda number: split.lengths[number])
    size = schedule.batch_size
    batches = [order[first : first + size] for first in range(0, len(order), size)]
    answers: list = []
    for items in tqdm(_loader(split, batches, schedule.workers), desc="scoring", unit="batch", leave=False):
        answers += task.answers(head, items)
    return task.scores(answers)


def train(task: Task, schedule: Schedule, learning_rate: float, folder: Path, title: str, device: torch.device) -> dict:
    """Train a head with Adam; returns its scores at the step with the best dev score (the first, if tied).

    The state is saved in `folder`, from which a stopped run continues; what follows depends on the seed and the step
    alone. At a signal that asks for an end it is saved after the step, and Stopped is raised. Returns
    {"learning_rate", "steps", "best_step", "dev", "test", "layer_weights", "history"}, with the scores of the task; the
    history has the loss of the last batch and the dev scores of each evaluation. Where the loss is no longer finite,
    training stops, and "diverged" is the step. On a GPU, CTC sums gradients in no fixed order, so the last digits may
    vary.
    """
    trial = load_state(folder / "trial.pt")
    if trial is not None:
        return trial
    torch.manual_seed(schedule.seed)
    head: Any = task.build()
    optimizer = torch.optim.Adam(head.parameters(), lr=learning_rate)
    step, history, diverged = 0, [], None
    best: dict | None = None
    state = load_state(folder / "state.pt", device)
    if state is not None:
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        step, best, history = state["step"], state["best"], state["history"]

    batches = _Batches(task.train.lengths, schedule, step)
    with tqdm(total=schedule.steps, initial=step, desc=title, unit="step") as bar, NotedSignals() as noted:
        for items in _loader(task.train, batches, schedule.workers):
            # Dropout and masks depend on the seed and the step alone.
            torch.manual_seed(schedule.seed * 1_000_003 + step)
            head.train()
            loss = task.loss(head, items)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), schedule.max_grad_norm)
            optimizer.step()
            step += 1
            bar.update(1)
            last = step == schedule.steps
            if (last or step % schedule.eval_every == 0 or step % schedule.save_every == 0) and not loss.isfinite():
                diverged = step
                say(f"{title}: diverged, the loss of step {step} is {loss.item():g}; the best state before it is taken")
                if best is None:
                    best = {"step": step, "dev": score(task, head, task.dev, schedule), "head": head.state_dict()}
                history.append({"step": step, "loss": loss.item(), "dev": best["dev"]})
                break
            if last or step % schedule.eval_every == 0:
                dev = score(task, head, task.dev, schedule)
                if best is None or dev[task.metric] > best["dev"][task.metric]:
                    best = {"step": step, "dev": dev, "head": copy.deepcopy(head.state_dict())}
                history.append({"step": step, "loss": loss.item(), "dev": dev})
                bar.set_postfix(loss=f"{loss.item():.3f}", dev=f"{dev[task.metric]:.3f}")
            if last or step % schedule.save_every == 0 or noted.number:
                state = {"step": step, "head": head.state_dict(), "best": best, "history": history}
                save_state({**state, "optimizer": optimizer.state_dict()}, folder / "state.pt")
            if noted.number:
                break
    if noted.number:
        raise Stopped(step, noted.number)
    assert best is not None  # dev is scored at the last step
    head.load_state_dict(best["head"])
    trial = {
        "learning_rate": learning_rate,
        "steps": schedule.steps,
        "best_step": best["step"],
        "dev": best["dev"],
        "test": score(task, head, task.test, schedule),
        "layer_weights": head.layer_sum.weights.tolist(),
        "history": history,
    }
    if diverged is not None:
        trial["diverged"] = diverged
    save_state(trial, folder / "trial.pt")
    (folder / "state.pt").unlink(missing_ok=True)
    return trial
