"""What a run says while it goes on: lines, and progress bars that are out of the way of an error's line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback


def first_process() -> bool:
    """Whether this is the process, of those that train together, that writes and speaks."""
    return int(os.environ.get("RANK", 0)) == 0


def say(line: str) -> None:
    """Print a line, once however many processes there are."""
    if first_process():
        print(line, flush=True)


@contextmanager
def counting(title: str, unit: str) -> Iterator[Callable[[list], Iterator]]:
    """A function that gives the items of a list one by one, with a bar that is gone afterwards."""
    with tqdm(desc=title, unit=unit, leave=False, disable=not first_process()) as bar:

        def counted(items: list) -> Iterator:
            bar.reset(total=len(items))
            for item in items:
                yield item
                bar.update()

        yield counted


class LossBar(TrainerCallback):
    """One bar over all steps with the running loss beside it."""

    def __init__(self, title: str, losses: list):
        self.title, self.losses, self.bar = title, losses, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.title, unit="step",
                        disable=not state.is_world_process_zero)  # fmt: skip

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.logging_steps == 0 and self.losses:
            recent = self.losses[-int(args.logging_steps) :]
            self.bar.set_postfix(
                loss=f"{sum(float(loss) for loss in recent) / len(recent):.3f}", refresh=False
            )
        self.bar.update(1)

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        """End the bar's line, after an error too."""
        if self.bar is not None:
            self.bar.close()


def show_progress(trainer, title: str) -> LossBar:
    """Replace the Trainer's own output by one bar."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    bar = LossBar(title, trainer.step_losses)
    trainer.add_callback(bar)
    return bar
