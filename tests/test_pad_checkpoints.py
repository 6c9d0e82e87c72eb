# ruff: noqa: F811
"""Checkpoints that are damaged, saves that fail or are killed, and runs that diverge."""

import json
import math
import resource
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

from safetensors.torch import load_file  # noqa: E402
from test_pad_distill import losses, models, run, speech  # noqa: E402, F401

from pad.distill.divergence import StopWhenDiverged  # noqa: E402
from pad.distill.manifest import MANIFEST, damage, numbered, rotate, seal  # noqa: E402
from pad.errors import Diverged  # noqa: E402

STEPS = ["--log-every", "1", "--save-every", "1", "--max-steps", "4", "--keep-checkpoints", "3"]


@pytest.fixture(scope="module")
def finished(models, speech, tmp_path_factory) -> Path:
    """A run of four steps, with its last three checkpoints."""
    output = tmp_path_factory.mktemp("finished") / "run"
    assert run(models, speech, output, *STEPS) == 0
    assert steps(output) == [2, 3, 4]
    return output


def steps(output: Path) -> list[int]:
    return [number for number, _ in numbered(output / "checkpoints")]


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "a byte": flip,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_to_any_file_shows(finished, tmp_path, kind):
    names = sorted(path.name for path in (finished / "checkpoints" / "checkpoint-4").iterdir())
    assert {MANIFEST, "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} < {*names}
    for name in names:
        copy = shutil.copytree(finished / "checkpoints" / "checkpoint-4", tmp_path / name)
        assert damage(copy) is None
        DAMAGES[kind](copy / name)
        assert name in damage(copy) or name == MANIFEST and damage(copy) is not None


@pytest.mark.parametrize("name, kind", [("optimizer.pt", "missing"), ("model.safetensors", "a byte")])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    models, speech, finished, copied, capsys, name, kind
):
    checkpoints = copied / "checkpoints"
    shutil.rmtree(copied / "student")  # with it the run would be finished
    DAMAGES[kind](checkpoints / "checkpoint-4" / name)
    (checkpoints / "checkpoint-3" / MANIFEST).unlink()  # as a kill during its save leaves it
    assert run(models, speech, copied, *STEPS, "--resume") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("resume:")]
    assert [str(checkpoints / f"checkpoint-{step}") in line for step, line in zip((4, 3), told)] == [True, True]
    assert name in told[0]
    assert losses(copied) == losses(finished)
    ours, theirs = (load_file(folder / "student" / "model.safetensors") for folder in (copied, finished))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert steps(copied) == [2, 3, 4] and all(damage(path) is None for _, path in numbered(checkpoints))


def test_more_checkpoints_than_asked_for_do_not_stay(tmp_path):
    def made(step: int, whole: bool = True) -> Path:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_text("")
        if whole:
            seal(folder)
        return folder

    for step in (2, 4, 6, 8, 10):
        made(step, whole=step != 6)
    made(12, whole=False)
    rotate(tmp_path, 2, 8, remove_later=False)
    assert [step for step, _ in numbered(tmp_path)] == [4, 8, 10]
    rotate(tmp_path, 2, 8, remove_later=True)
    assert [step for step, _ in numbered(tmp_path)] == [4, 8]


@pytest.fixture
def file_size_limit():
    """A function that limits the size of files that this process writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.1, 1.2])
def test_a_limit_on_file_sizes(models, speech, copied, file_size_limit, capsys, share):
    """Smaller than the weights, and between the weights and the optimizer's state."""
    shutil.rmtree(copied / "checkpoints" / "checkpoint-4")
    limit = int(share * (copied / "student" / "model.safetensors").stat().st_size)
    shutil.rmtree(copied / "student")
    file_size_limit(limit)
    assert run(models, speech, copied, *STEPS, "--resume") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"pad distill: error: output: cannot write to {copied}") and f"of {limit} bytes" in last
    assert steps(copied) == [2, 3] and all(damage(path) is None for _, path in numbered(copied / "checkpoints"))
    assert not list(copied.rglob(".*"))


def test_a_disk_that_is_too_small(models, speech, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        assert run(models, speech, disk / "run", *STEPS) == 1
        assert "no space is left on its disk" in capsys.readouterr().err.splitlines()[-1]
        assert not list((disk / "run" / "checkpoints").glob("*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_a_kill_left_of_the_last_save(models, speech, finished, copied):
    (copied / "checkpoints" / "checkpoint-4" / MANIFEST).unlink()
    (copied / "student").rename(copied / ".student.before")
    shutil.copytree(copied / ".student.before", copied / ".student.partial")
    (copied / ".student.partial" / "config.json").write_text("{")
    (copied / ".log.json.partial").write_text("[")
    assert run(models, speech, copied, *STEPS, "--resume") == 0
    assert not list(copied.rglob(".*"))
    assert steps(copied) == [2, 3, 4] and losses(copied) == losses(finished)
    assert load_file(copied / "student" / "model.safetensors").keys()


@pytest.mark.parametrize("save_every, left", [("1", r"checkpoint-"), ("9", "no checkpoint was saved before")])
def test_a_run_that_diverges(models, speech, tmp_path, capsys, save_every, left):
    options = ["--learning-rate", "1e30", "--warmup-steps", "0", "--preset", "tlocal", "--max-steps", "8"]
    code = run(models, speech, tmp_path / "run", *options, "--save-every", save_every, "--log-every", "3")
    last = capsys.readouterr().err.splitlines()[-1]
    assert code == 1 and "error: diverged at step" in last and left in last
    assert not (tmp_path / "run" / "student").exists()
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    values = [entry["loss"] for entry in log]
    assert [entry["step"] for entry in log] == list(range(1, len(log) + 1))
    assert all(map(math.isfinite, values[:-1])) and 0.0 not in values
    assert not (math.isfinite(values[-1]) and math.isfinite(log[-1]["grad_norm"]))
    for step, path in numbered(tmp_path / "run" / "checkpoints"):
        assert damage(path) is None and step < len(log)
        assert all(weights.isfinite().all() for weights in load_file(path / "model.safetensors").values())


class Stub:
    """What StopWhenDiverged needs of a Trainer."""

    def __init__(self, norms):
        self.step_losses, self.norms, self.accelerator = [], iter(norms), self

    def clip_grad_norm_(self, parameters, limit):
        return torch.tensor(next(self.norms))


@pytest.mark.parametrize("fp16, norms, stops", [
    (False, [1.0, 1.0, math.inf], 3),
    (True, [math.inf] * 15 + [1.0] + [math.inf] * 15 + [1.0] * 5, None),
    (True, [1.0, *[math.nan] * 30], 22),
])  # fmt: skip
def test_steps_that_float16_may_skip(fp16, norms, stops):
    trainer = Stub(norms)
    guard = StopWhenDiverged(trainer)
    arguments = SimpleNamespace(fp16=fp16, bf16=False, world_size=1)
    state = type("State", (), {"global_step": 0, "log_history": []})
    try:
        for step in range(len(norms)):
            state.global_step = step
            trainer.step_losses += [torch.tensor(0.5), torch.tensor(0.7)]
            trainer.accelerator.clip_grad_norm_([], 1.0)
            guard.on_pre_optimizer_step(arguments, state, None)
    except Diverged as error:
        assert stops is not None and f"diverged at step {stops}: loss 0.6, gradient norm" in str(error)
        assert len(state.log_history) == stops
    else:
        assert stops is None


@pytest.mark.parametrize("bf16, amx, loss, told", [
    (True, True, 0.5, True), (True, True, math.nan, False), (True, False, 0.5, False), (False, True, 0.5, False),
])  # fmt: skip
def test_gradients_that_the_processor_may_have_spoiled(monkeypatch, bf16, amx, loss, told):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    trainer = Stub([math.nan])
    guard = StopWhenDiverged(trainer)
    trainer.step_losses.append(torch.tensor(loss))
    trainer.accelerator.clip_grad_norm_([], 1.0)
    arguments = SimpleNamespace(fp16=False, bf16=bf16, world_size=1, device=torch.device("cpu"))
    with pytest.raises(Diverged) as caught:
        guard.on_pre_optimizer_step(arguments, SimpleNamespace(global_step=0, log_history=[]), None)
    assert ("ONEDNN_MAX_CPU_ISA=AVX512_CORE_FP16" in str(caught.value)) is told
