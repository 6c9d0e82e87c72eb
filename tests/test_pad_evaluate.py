# ruff: noqa: F811
"""Runs of `pad evaluate`: their results, what stops them, what resumes them, and the command line."""

import json
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
soundfile = pytest.importorskip("soundfile")

from superb_miniatures import config_of, corpora, models, tiny, write_commands, write_tones  # noqa: E402, F401
from transformers import SEWConfig, SEWModel  # noqa: E402

from pad.errors import UserError  # noqa: E402
from pad.evaluate import run, training  # noqa: E402
from pad.evaluate.run import evaluate, table  # noqa: E402
from pad.evaluate.states import save_state  # noqa: E402
from pad.versions import git_revision  # noqa: E402


def test_baseline_beside_student(models, corpora, tmp_path):
    config = config_of(models, tmp_path / "out", baseline=models["layer"], ic=corpora["ic"], sf=corpora["sf"])
    result = evaluate(config)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == result
    assert set(result["results"]) == {"ic", "sf"} and set(result["versions"]) >= {"torch", "pad-kernels"}
    assert result["settings"]["batch_size"] == 3
    for of_task in result["results"].values():
        assert list(of_task) == ["student", "baseline"]
        assert of_task["student"]["steps"] == 20 and of_task["student"]["learning_rate"] == 1e-2
        assert of_task["student"]["folds"] != of_task["baseline"]["folds"]
        assert len(of_task["baseline"]["folds"][0]["layer_weights"]) == 3
    lines = table(result).splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["model", "student", "baseline"]
    assert lines[-4:-2] == [f"student: {models['group']}", f"baseline: {models['layer']}"]
    assert lines[-2] == "ic: 20 steps of training, not SUPERB's 200000"
    assert "IC accuracy" in lines[0] and "slot-value CER" in lines[0] and "ER" not in lines[0].split("CER")[0]
    accuracy = result["results"]["ic"]["baseline"]["metrics"]["accuracy"]
    assert lines[2].split()[1] == f"{100 * accuracy:.2f}"
    assert (tmp_path / "out" / "results.txt").read_text() == table(result) + "\n"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["config.yaml", "digests.json", "results.json", "results.txt", "trials"]


def test_sweep_takes_the_best_on_dev(models, corpora, tmp_path, monkeypatch):
    scores = {1e-5: (0.2, 0.9), 1e-4: (0.8, 0.5), 1e-3: (0.8, 0.7)}

    def fake(task, schedule, rate, *others):
        dev, test = scores[rate]
        return {"learning_rate": rate, "dev": {"accuracy": dev}, "test": {"accuracy": test}}

    monkeypatch.setattr(run, "train", fake)
    config = config_of(models, tmp_path / "out", er=corpora["er"], lr_sweep=list(scores))
    judged = evaluate(config)["results"]["er"]["student"]
    assert judged["learning_rate"] == 1e-4 and judged["metrics"] == {"accuracy": pytest.approx(0.5)}
    assert [entry["learning_rate"] for entry in judged["sweep"]] == list(scores)
    assert [entry["dev"] for entry in judged["sweep"]] == pytest.approx([0.2, 0.8, 0.8])


def test_sweep_trains_each_rate(models, corpora, tmp_path):
    config = config_of(models, tmp_path / "out", ic=corpora["ic"], lr_sweep=[1e-9, 1e-2], max_steps=40)
    judged = evaluate(config)["results"]["ic"]["student"]
    slow, fast = (entry["dev"] for entry in judged["sweep"])
    assert slow < fast and judged["learning_rate"] == 1e-2


class Stopped(Exception):
    pass


def stop_after(monkeypatch, steps: int) -> None:
    """Raise within the optimizer's step after so many."""
    taken, step = [], torch.optim.Adam.step

    def counted(self, *args, **kwargs):
        if len(taken) == steps:
            raise Stopped
        taken.append(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)


@pytest.mark.parametrize("task", ["ic", "er", "sf"])
@pytest.mark.parametrize("stop", [11, 27])
def test_resumed_run_gives_the_same_numbers(models, corpora, tmp_path, monkeypatch, task, stop):
    options = {task: corpora[task], "max_steps": 10, "lr_sweep": (1e-3, 1e-2), "spec_augment": True}
    if task != "er":
        options["max_steps"] = 18
    whole = evaluate(config_of(models, tmp_path / "whole", **options))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, stop)
        evaluate(config_of(models, tmp_path / "parts", **options))
    states = list((tmp_path / "parts").rglob("state.pt"))
    assert len(states) == (stop % options["max_steps"] >= 4) and not (tmp_path / "parts/results.json").exists()
    steps = []
    monkeypatch.setattr(
        training, "_Batches", lambda lengths, schedule, first, kind=training._Batches: steps.append(first)
        or kind(lengths, schedule, first),
    )  # fmt: skip
    parts = evaluate(config_of(models, tmp_path / "parts", **options, resume=True))
    assert steps[0] == stop % options["max_steps"] // 4 * 4
    assert parts["results"] == whole["results"]
    again = evaluate(config_of(models, tmp_path / "parts", **options, resume=True))
    assert again["results"] == whole["results"]


def test_workers_and_earlier_randomness_change_nothing(models, corpora, tmp_path):
    options = {"sf": corpora["sf"], "max_steps": 4, "spec_augment": True}
    first = evaluate(config_of(models, tmp_path / "a", **options))
    torch.randn(7)
    second = evaluate(config_of(models, tmp_path / "b", **options, workers=1))
    other = evaluate(config_of(models, tmp_path / "c", **options, seed=1))
    assert first["results"] == second["results"] != other["results"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "ic, er, sf: none is given"),
        ({"ic": "x", "lr_sweep": ()}, "lr_sweep: expected distinct positive numbers"),
        ({"ic": "x", "lr_sweep": (1e-4, 1e-4)}, "lr_sweep: expected distinct"),
        ({"ic": "x", "lr_sweep": (0.0,)}, "lr_sweep: expected distinct positive"),
        ({"ic": "x", "batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"ic": "x", "max_steps": -1}, "max_steps: expected 0 or more"),
        ({"ic": "x", "device": "tpu"}, "device: expected auto or cpu, got 'tpu'"),
        ({"er": "nowhere"}, "er: nowhere is not a folder"),
        ({"ic": "x", "baseline": "no/such/model"}, "^baseline: cannot load 'no/such/model'"),
    ],
)
def test_mistakes_leave_no_output(models, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        evaluate(config_of(models, tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_audio_too_short_for_a_frame(models, corpora, tmp_path):
    folder = write_commands(tmp_path / "fluent")
    write_tones(folder / "wavs/speakers/test/2.wav", 0, seconds=0.01)
    with pytest.raises(UserError, match=r"test_data.csv:4: .*2.wav lasts 0.010 s; expected 0.\d+ s or more"):
        evaluate(config_of(models, tmp_path / "out", ic=str(folder)))


def test_audio_that_is_not_finite(models, tmp_path):
    folder = write_commands(tmp_path / "fluent")
    path = folder / "wavs/speakers/valid/1.wav"
    soundfile.write(path, np.full(8000, np.nan), 16000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"valid_data.csv:3: .*1.wav: the audio holds NaN"):
        evaluate(config_of(models, tmp_path / "out", ic=str(folder)))
    assert not (tmp_path / "out").exists()


def test_encoder_with_states_of_several_lengths(corpora, tmp_path):
    SEWModel(tiny(SEWConfig)).save_pretrained(tmp_path / "sew")
    config = config_of({"group": str(tmp_path / "sew")}, tmp_path / "out", sf=corpora["sf"])
    with pytest.raises(UserError, match="^student: .*sew gives hidden states of 4 and 8 frames"):
        evaluate(config)
    assert not (tmp_path / "out").exists()


def test_full_disk_is_an_error_of_the_system(tmp_path):
    (tmp_path / ".state.pt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"cannot write .*state.pt: .*No space left on device"):
        save_state({"weight": torch.zeros(1000)}, tmp_path / "state.pt")
    assert not list(tmp_path.iterdir())


def test_revision_is_that_of_the_build_or_the_checkout(tmp_path):
    package = tmp_path / "site-packages" / "pad"
    package.mkdir(parents=True)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)  # the user's own, around the environment
    assert git_revision(package) == "not a git checkout"
    (package / "_revision.txt").write_text("0123abc-dirty\n")
    assert git_revision(package) == "0123abc-dirty"


def test_output_of_another_run(models, corpora, tmp_path, capsys, monkeypatch):
    options = {"ic": corpora["ic"], "max_steps": 2}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("mine")
    with pytest.raises(UserError, match="resume: .*other holds no config.yaml; expected a run's folder, or a new one"):
        evaluate(config_of(models, tmp_path / "other", **options, resume=True))
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["precious"]
    evaluate(config_of(models, tmp_path / "out", **options, resume=True))
    assert f"resume: no run in {tmp_path / 'out'} yet; starting one" in capsys.readouterr().out
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2")):  # as a launcher has left them
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="not empty; choose another, or --resume"):
        evaluate(config_of(models, tmp_path / "out", **options))
    with pytest.raises(
        UserError, match="resume: the settings differ from those of the run in .*: batch_size was 3, now 2"
    ):
        evaluate(config_of(models, tmp_path / "out", **options, batch_size=2, resume=True))


def test_an_output_folder_that_was_moved_is_resumed(models, corpora, tmp_path, monkeypatch):
    options = {"ic": corpora["ic"], "max_steps": 10}
    whole = evaluate(config_of(models, tmp_path / "whole", **options))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 6)
        evaluate(config_of(models, tmp_path / "before", **options))
    (tmp_path / "before").rename(tmp_path / "after")
    monkeypatch.chdir(tmp_path)
    moved = evaluate(config_of(models, "after", **options, resume=True))  # relative, and another name
    assert moved["results"] == whole["results"] and moved["settings"]["output"] == "after"


def test_command_line(models, corpora, tmp_path, capsys):
    pytest.importorskip("tyro")
    from pad.cli import main

    arguments = [
        "evaluate",
        "--student",
        models["group"],
        "--output",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert main(arguments) == 2
    assert "ic, er, sf: none is given" in capsys.readouterr().err
    arguments += ["--ic", corpora["ic"], "--lr-sweep", "1e-3", "1e-2", "--max-steps", "2"]
    assert main(arguments) == 0
    assert "IC accuracy" in capsys.readouterr().out
    assert main([*arguments, "--resume"]) == 0


def test_one_task_by_its_name():
    """`pad evaluate ic --data FOLDER` says the same as `pad evaluate --ic FOLDER`."""
    from pad import cli

    common = ["--student", "s", "--output", "o"]
    wanted = cli._parse(["evaluate", "--ic", "corpus", *common])
    assert cli._parse(["evaluate", "ic", "--data", "corpus", *common]) == wanted
    assert cli._parse(["evaluate", "ic", "--data=corpus", *common]) == wanted
    assert cli._parse(["evaluate", *common, "--no-resume", "ic", "--data", "corpus"]) == wanted


def test_a_task_with_settings_from_a_file(tmp_path):
    from pad import cli

    (tmp_path / "run.yaml").write_text("student: s\nic: corpus\nlr_sweep: [1e-3]\n")
    common = ["--config", str(tmp_path / "run.yaml"), "--output", "o"]
    _, wanted = cli._parse(["evaluate", *common])
    assert (wanted.student, wanted.output, wanted.tasks, wanted.lr_sweep) == ("s", "o", ["ic"], (1e-3,))
    assert cli._parse(["evaluate", "ic", *common])[1] == wanted
    assert cli._parse(["evaluate", "ic", *common, "--data", "other"])[1] == replace(wanted, ic="other")
    assert cli._parse(["evaluate", "er", *common, "--data", "other"])[1] == replace(wanted, er="other")
    with pytest.raises(UserError, match="data: got 'other', and 'third' as --ic; expected one folder"):
        cli._parse(["evaluate", "ic", *common, "--ic", "third", "--data", "other"])
