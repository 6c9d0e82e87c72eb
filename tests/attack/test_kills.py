"""Kills of `pad distill`, at file operations and at any time: the run that resumes ends as one that was never stopped.

PAD_ATTACK_KILLS (30) is their number.
"""

import os
import random
import signal

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

from safetensors.torch import load_file  # noqa: E402
from test_pad_distill import losses  # noqa: E402

from pad.distill.manifest import damage, numbered  # noqa: E402

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("PAD_ATTACK_KILLS", 30))


@pytest.fixture(scope="module")
def whole(forks, command, tmp_path_factory):
    """A run that was not stopped, the number of its file operations, and how long it took."""
    output = tmp_path_factory.mktemp("whole") / "run"
    done = forks.run(*command(output, "--resume"), folder=output)
    assert done.code == 0, done.errors
    return output, int(done.output.splitlines()[-1].split()[-1]), done.seconds


@pytest.mark.parametrize("number", range(KILLS))
def test_a_run_that_is_killed_and_resumed(forks, command, whole, tmp_path, number):
    unharmed, operations, seconds = whole
    output, draw = tmp_path / "run", random.Random(number)
    if number % 3 == 2:
        killed = forks.run(*command(output, "--resume"), after=draw.uniform(0.1, 0.9) * seconds)
        assert killed.code in (-signal.SIGKILL, 0), killed.errors
    else:  # half of them in the last save
        at = draw.randint(1 if number % 3 else operations * 4 // 5, operations)
        killed = forks.run(*command(output, "--resume"), operation=at, folder=output)
        assert killed.code == -signal.SIGKILL, (at, operations, killed.errors)
    done = forks.run(*command(output, "--resume"))
    assert done.code == 0 and "Traceback" not in done.errors, done.errors
    assert losses(output) == losses(unharmed)
    ours, theirs = (load_file(folder / "student" / "model.safetensors") for folder in (output, unharmed))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not list(output.rglob(".*"))
    checkpoints = numbered(output / "checkpoints")
    assert [step for step, _ in checkpoints] == [2, 3] and all(damage(path) is None for _, path in checkpoints)
