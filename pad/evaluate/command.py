"""`pad evaluate` as a command, and its tasks as sub-commands: `pad evaluate ic --data FOLDER`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from pad.errors import UserError, shown
from pad.evaluate.config import TASKS, EvaluateConfig
from pad.settings import Command, Options


@dataclass
class IC:
    """Intent classification on Fluent Speech Commands: pad evaluate ic --data FOLDER."""


@dataclass
class ER:
    """Emotion recognition on IEMOCAP: pad evaluate er --data FOLDER."""


@dataclass
class SF:
    """Slot filling on Audio SNIPS: pad evaluate sf --data FOLDER."""


@dataclass
class All:
    """Every task whose corpus is given: pad evaluate --ic FOLDER --er FOLDER --sf FOLDER."""


@dataclass
class EvaluateOptions(EvaluateConfig, Options):
    """Evaluate a frozen speech encoder as SUPERB does: intent classification, emotion recognition, slot filling.

    One task: pad evaluate ic --data FOLDER. Several in one run: pad evaluate --ic FOLDER --er FOLDER --sf FOLDER.
    """

    data: str | None = None
    """with a task (ic, er or sf): folder of its corpus"""
    task: IC | ER | SF | All = field(default_factory=All)

    @property
    def named(self) -> str | None:
        """The task that is named, None where the corpora say which are meant."""
        name = type(self.task).__name__.lower()
        return name if name in TASKS else None

    def settings(self) -> EvaluateConfig:
        """The same with the folder as that of the task."""
        values = {each.name: getattr(self, each.name) for each in fields(EvaluateConfig)}
        if self.named is not None and self.data is not None:
            values[self.named] = self.data
        return EvaluateConfig(**values)

    def check_words(self, unknown: list[str], saved: dict[str, Any]) -> None:
        """Raise UserError for a task without its folder, or with two, or a folder without its task."""
        expected = f"expected `pad evaluate TASK --data FOLDER` with one of {', '.join(TASKS)}"
        if self.data is not None and self.named is None:
            word = next((repr(word) for word in unknown if not word.startswith("-")), "none")
            raise UserError(f"task: got {word}; {expected}")
        if self.named is not None and self.data is None and getattr(self, self.named) is None:
            raise UserError(f"data: --data is missing; {expected}")
        if self.named is not None and self.data is not None:
            folder = getattr(self, self.named)
            if folder not in (None, self.data, saved.get(self.named)):  # --data replaces what --config FILE says
                raise UserError(
                    f"data: got {shown(self.data)}, and {shown(folder)} as --{self.named}; expected one folder"
                )


def _run(config: EvaluateConfig) -> None:
    from pad.evaluate.run import evaluate, table

    print(table(evaluate(config)))


EVALUATE = Command("evaluate", EvaluateConfig, "train", _run, EvaluateOptions)
