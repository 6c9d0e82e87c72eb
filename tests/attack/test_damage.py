"""Damage to every file of a checkpoint: it is named and the one before is taken, or the run ends with a line."""

import shutil

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

from safetensors.torch import load_file  # noqa: E402
from test_pad_checkpoints import DAMAGES  # noqa: E402
from test_pad_distill import losses  # noqa: E402

from pad.distill.manifest import damage, numbered  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(forks, command, tmp_path_factory):
    """A run of three steps with its last two checkpoints, the names of a checkpoint's files, and its weights."""
    output = tmp_path_factory.mktemp("finished") / "run"
    done = forks.run(*command(output))
    assert done.code == 0, done.errors
    last = output / "checkpoints" / "checkpoint-3"
    return output, sorted(path.relative_to(last).as_posix() for path in last.rglob("*") if path.is_file())


@pytest.mark.parametrize("both", [False, True], ids=["the last", "both"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_every_file(forks, command, finished, tmp_path, kind, both):
    """Of the last checkpoint: the run goes on from the one before. Of both: it is refused, and nothing is removed."""
    unharmed, names = finished
    assert len(names) >= 7
    for number, name in enumerate(names):
        output = shutil.copytree(unharmed, tmp_path / str(number))
        for step in (2, 3) if both else (3,):
            DAMAGES[kind](output / "checkpoints" / f"checkpoint-{step}" / name)
        shutil.rmtree(output / "student")  # with it the run would be finished
        done = forks.run(*command(output, "--resume"))
        never_whole = kind == "missing" and name == "manifest.json"
        if both and not never_whole:
            assert done.code == 2 and "checkpoint-2, checkpoint-3 away" in done.errors, (name, done.errors)
            assert [step for step, _ in numbered(output / "checkpoints")] == [2, 3]
            shutil.rmtree(output)
            continue
        assert done.code == 0 and "Traceback" not in done.errors, (name, done.errors)
        told = [line for line in done.output.splitlines() if line.startswith("resume:")]
        assert "checkpoint-3" in told[0] and (name in told[0] or name == "manifest.json"), (name, told)
        assert len(told) == (3 if both else 1) and ("starting from step 0" in told[-1]) == both, (name, told)
        assert losses(output) == losses(unharmed), name
        ours, theirs = (load_file(folder / "student" / "model.safetensors") for folder in (output, unharmed))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
        checkpoints = numbered(output / "checkpoints")
        assert [step for step, _ in checkpoints] == [2, 3] and all(damage(path) is None for _, path in checkpoints)
        shutil.rmtree(output)


RUN_FILES = ("config.yaml", "versions.json", "log.json", "left_out.json")


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", RUN_FILES)
def test_files_of_the_run(forks, command, finished, tmp_path, name, kind):
    """Its settings are needed to resume; the others are written anew."""
    unharmed, _ = finished
    output = shutil.copytree(unharmed, tmp_path / "run")
    DAMAGES[kind](output / name)
    done = forks.run(*command(output, "--resume"))
    assert "Traceback" not in done.errors
    if name != "config.yaml":
        assert done.code == 0, done.errors
        return
    if done.code == 0:  # a byte that means the same
        assert kind == "a byte" and losses(output) == losses(unharmed)
    else:
        (line,) = done.errors.splitlines()
        assert done.code == 2 and ("config" in line or "resume" in line), line
    assert (output / "student" / "model.safetensors").is_file() and len(numbered(output / "checkpoints")) == 2


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_files_of_the_models(forks, command, world, finished, tmp_path, role, kind):
    """Exit 2 and one line, and nothing is left; a byte of the weights, or of what nobody reads, may go unseen."""
    for number, name in enumerate(("config.json", "model.safetensors", "vocab.txt")):
        folder = shutil.copytree(world[role], tmp_path / f"{role}{number}")
        if not (folder / name).is_file():
            continue
        DAMAGES[kind](folder / name)
        output = tmp_path / f"run{number}"
        arguments = [str(folder) if each == world[role] else each for each in command(output)]
        done = forks.run(*arguments)
        assert "Traceback" not in done.errors, (name, done.errors)
        assert done.code == 2 or kind == "a byte" or name == "vocab.txt", (name, done.output)
        if done.code:
            errors = [line for line in done.errors.splitlines() if line.startswith("pad distill:")]
            assert len(errors) == 1 and not output.exists(), (name, done.errors)
