# ruff: noqa: F811
"""What `pad evaluate --resume` finds: files that are damaged, and what a signal has left."""

import json
import os
import signal

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

from superb_miniatures import config_of, corpora, models  # noqa: E402, F401

from pad.errors import Stopped, UserError  # noqa: E402
from pad.evaluate.run import evaluate  # noqa: E402
from pad.evaluate.states import load_state, save_state  # noqa: E402


def at_step(monkeypatch, step: int, act) -> None:
    """Call `act` within the optimizer's step of this number, counted from 1."""
    taken, original = [], torch.optim.Adam.step

    def counted(self, *args, **kwargs):
        taken.append(1)
        if len(taken) == step:
            act()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)


def flip(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(byte ^ 255 for byte in content[middle : middle + 64])
    path.write_bytes(content)


DAMAGE = {
    "flipped bytes": flip,
    "half of it": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "nothing": lambda path: path.write_bytes(b""),
    "another kind": lambda path: path.write_text("{}"),
    "another state": lambda path: torch.save([1, 2], path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_said_and_computed_again(tmp_path, capsys, damage):
    path = tmp_path / "state.pt"
    save_state({"step": 3, "weight": torch.arange(1000)}, path)
    assert load_state(path)["step"] == 3 and load_state(tmp_path / "other.pt") is None
    assert capsys.readouterr().out == ""
    DAMAGE[damage](path)
    assert load_state(path) is None
    assert capsys.readouterr().out == f"resume: {path} is not as it was saved; what it held is computed again\n"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"^output: .*state.pt is a folder; expected a file that `pad evaluate` wrote"):
        load_state(path)


def test_a_run_with_damaged_files_gives_the_same_numbers(models, corpora, tmp_path, capsys, monkeypatch):
    options = {"ic": corpora["ic"], "max_steps": 10, "lr_sweep": (1e-3, 1e-2)}
    whole = evaluate(config_of(models, tmp_path / "whole", **options))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        at_step(patch, 16, lambda: os.kill(os.getpid(), signal.SIGTERM))
        evaluate(config_of(models, tmp_path / "parts", **options))
    files = sorted((tmp_path / "parts").rglob("*.pt"))
    assert [path.name for path in files] == ["part-00000.pt", "trial.pt", "state.pt"]
    for path in files:
        flip(path)
    capsys.readouterr()
    parts = evaluate(config_of(models, tmp_path / "parts", **options, resume=True))
    said = capsys.readouterr().out
    assert parts["results"] == whole["results"] and all(f"resume: {path} is not as" in said for path in files)
    (judged,) = (tmp_path / "parts").rglob("judged.pt")
    judged.write_text(json.dumps(None))
    assert evaluate(config_of(models, tmp_path / "parts", **options, resume=True))["results"] == whole["results"]
    assert str(judged) in capsys.readouterr().out


@pytest.mark.parametrize("step", [7, 10])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_the_step(models, corpora, tmp_path, monkeypatch, number, step):
    options = {"ic": corpora["ic"], "max_steps": 10, "save_every": 500}
    before = signal.getsignal(number)
    with monkeypatch.context() as patch, pytest.raises(Stopped, match=f"at step {step} by {number.name}") as stopped:
        at_step(patch, step, lambda: os.kill(os.getpid(), number))
        evaluate(config_of(models, tmp_path / "run", **options))
    assert stopped.value.number == number and signal.getsignal(number) == before
    (path,) = (tmp_path / "run").rglob("state.pt")
    assert load_state(path)["step"] == step
    with monkeypatch.context() as patch:
        at_step(patch, 10 - step + 1, lambda: pytest.fail("a step was taken twice"))
        found = evaluate(config_of(models, tmp_path / "run", **options, resume=True))
    assert found["results"] == evaluate(config_of(models, tmp_path / "whole", **options))["results"]


def test_a_signal_that_is_ignored_stays_ignored(models, corpora, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGHUP))
        evaluate(config_of(models, tmp_path / "run", ic=corpora["ic"], max_steps=5))
    finally:
        signal.signal(signal.SIGHUP, before)
