"""What a run writes to its output folder, and what it leaves there that is not its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transformers import TrainerCallback

from pad.digests import DIGESTS_FILE
from pad.distill.manifest import sealed
from pad.errors import UserError
from pad.files import LOCK_FILE, PARTIAL, holds_output, write_json
from pad.processes import first_process
from pad.progress import say
from pad.settings import SETTINGS_FILE
from pad.versions import versions

STUDENT, CHECKPOINTS, PICTURES = "student", "checkpoints", "pictures"
VERSIONS_FILE, TEACHER_MEAN = "versions.json", "teacher_mean.safetensors"
_RESUMED = "resumed"  # in the file of versions: a list of those of later starts
# By pattern, what a run may have written before its first checkpoint; trackers write to `runs`.
_BEFORE_A_CHECKPOINT = (
    SETTINGS_FILE, VERSIONS_FILE, DIGESTS_FILE, TEACHER_MEAN, LOCK_FILE, PARTIAL, f"{PICTURES}/step-[0-9]*",
    f"{CHECKPOINTS}/checkpoint-[0-9]*", f"{CHECKPOINTS}/runs",
)  # fmt: skip


def has_student(output: Path) -> bool:
    """Whether a run has saved its student, which it does last; raises UserError for anything else of that name."""
    folder = output / STUDENT
    if not (folder.exists() or folder.is_symlink()):
        return False
    if (folder / "config.json").is_file() and any(folder.glob("model*.safetensors")):
        return True
    raise UserError(f"output: {folder} is not a student that a run has saved; move it away, its name is needed")


class Record(TrainerCallback):
    """The files that say how a run began, by name; at each save those are written again that somebody has removed."""

    def __init__(self, output: Path):
        self.output = output
        self._writers: dict[str, Callable[[Path], None]] = {}

    def keep(self, name: str, write: Callable[[Path], None]) -> None:
        """Write a file now, and whenever it is missing."""
        write(self.output / name)
        self._writers[name] = write

    def on_save(self, args, state, control, **kwargs):
        self.complete()

    def complete(self) -> None:
        """Write what is missing: without it no run can be resumed."""
        for name, write in self._writers.items():
            if not (self.output / name).exists():
                write(self.output / name)


def record_versions(path: Path) -> None:
    """Write the versions of a run's start to a file, or say and add how those of a later start differ."""
    found = versions()
    if not path.exists():
        write_json(path, found)
        return
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        last = [record, *record.get(_RESUMED, [])][-1]
        changes = [f"{name} was {last.get(name)}, now {now}" for name, now in found.items() if last.get(name) != now]
    except (ValueError, TypeError, AttributeError):
        say(f"resume: {path} is damaged; it is written anew")
        write_json(path, found)
        return
    if changes:
        say(f"resume: other versions than before: {'; '.join(changes)}")
        write_json(path, record | {_RESUMED: [*record.get(_RESUMED, []), found]})


@contextmanager
def left_as_found(output: Path) -> Iterator[None]:
    """Remove what a new run has written if a UserError ends it before its first checkpoint, and nothing else.

    An example is an audio file whose header can be read and whose samples cannot.
    """
    new = not holds_output(output)
    try:
        yield
    except UserError:
        if new and first_process() and not sealed(output / CHECKPOINTS):
            _remove_written(output)
        raise


def _remove_written(output: Path) -> None:
    for path in [path for pattern in _BEFORE_A_CHECKPOINT for path in output.glob(pattern)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    for folder in (output / CHECKPOINTS, output / PICTURES, output):
        with suppress(OSError):  # it is not there, a link, or holds something else
            folder.rmdir()
