# ruff: noqa: F811
"""Kills at file operations of `pad distill`: the run that resumes ends as one that was never stopped."""

import os
import random
import signal
import subprocess
import sys

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

from safetensors.torch import load_file  # noqa: E402
from test_pad_distill import losses, models, run, speech  # noqa: E402, F401

from pad.distill.manifest import damage, numbered  # noqa: E402

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("PAD_ATTACK_KILLS", 12))
OPTIONS = ["--log-every", "1", "--save-every", "1", "--max-steps", "4", "--keep-checkpoints", "2"]
# Kills itself at the n-th operation on a file below the output folder.
COMMAND = """
import os, signal, sys
left, folder = int(sys.argv.pop(1)), sys.argv.pop(1)
def watch(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod") and folder in str(arguments[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
from pad.cli import main
sys.addaudithook(watch)
code = main(sys.argv[1:])
print("operations:", -left)
sys.exit(code)
"""


def child(models, data, output, at: int) -> subprocess.CompletedProcess:
    arguments = ["distill", "--student", models["student"], "--teacher", models["teacher"], "--data", str(data),
                 "--output", str(output), "--batch-size", "2", "--device", "cpu", "--resume", *OPTIONS]  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", COMMAND, str(at), str(output), *arguments], capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def whole(models, speech, tmp_path_factory):
    """A run that was not stopped, and the number of its file operations."""
    output = tmp_path_factory.mktemp("whole") / "run"
    done = child(models, speech, output, 0)
    assert done.returncode == 0, done.stderr
    return output, int(done.stdout.splitlines()[-1].split()[-1])


@pytest.mark.parametrize("number", range(KILLS))
def test_a_run_killed_at_a_file_operation(models, speech, whole, tmp_path, number):
    unharmed, operations = whole
    # Half of the kills are spread over the run, the others over its last save.
    first = 1 if number % 2 else operations * 4 // 5
    at = random.Random(number).randint(first, operations)
    done = child(models, speech, tmp_path / "run", at)
    assert done.returncode == -signal.SIGKILL, (at, operations, done.stderr)
    assert run(models, speech, tmp_path / "run", *OPTIONS, "--resume") == 0
    assert losses(tmp_path / "run") == losses(unharmed)
    ours, theirs = (load_file(folder / "student" / "model.safetensors") for folder in (tmp_path / "run", unharmed))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not list((tmp_path / "run").rglob(".*"))
    checkpoints = numbered(tmp_path / "run" / "checkpoints")
    assert [step for step, _ in checkpoints] == [3, 4] and all(damage(path) is None for _, path in checkpoints)
