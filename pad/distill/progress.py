"""The progress bar of training: one for all steps, with the running loss."""

from __future__ import annotations

from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback


class LossBar(TrainerCallback):
    """A progress bar over all steps that shows the running loss."""

    def __init__(self, title: str, losses: list):
        self.title, self.losses, self.bar = title, losses, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.title, unit="step",
                        disable=not state.is_world_process_zero)  # fmt: skip

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.logging_steps == 0 and self.losses:
            recent = self.losses[-int(args.logging_steps) :]
            self.bar.set_postfix(loss=f"{sum(float(loss) for loss in recent) / len(recent):.3f}", refresh=False)
        self.bar.update(1)

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        """Close the bar, also after an error."""
        if self.bar is not None:
            self.bar.close()


def show_progress(trainer, title: str) -> LossBar:
    """Replace the Trainer's own output with one progress bar."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    bar = LossBar(title, trainer.step_losses)
    trainer.add_callback(bar)
    return bar
