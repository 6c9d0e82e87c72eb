"""What a resumed run finds: the data of before, what could not be read, and an output folder that others use."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

import soundfile  # noqa: E402
from audio_files import write_audio  # noqa: E402
from test_pad_distill import command, losses, models, speech  # noqa: E402, F401
from test_pad_trainer import OPTIONS, assert_same_run, whole  # noqa: E402, F401

from pad import files  # noqa: E402
from pad.cli import main  # noqa: E402


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Nine utterances, three of which hold NaN."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(9):
        if number % 3 == 1:
            soundfile.write(folder / f"{number}.wav", np.full(8000, np.nan), 16000, subtype="FLOAT")
        else:
            write_audio(folder / f"{number}.wav", seconds=0.3 + 0.05 * number)
        (folder / f"{number}.txt").write_text("good morning")
    return folder


def left_out(output: Path) -> dict:
    return json.loads((output / "left_out.json").read_text())["left_out"]


SKIP = ["--on-error", "skip", "--epochs", "1", "--log-every", "1", "--save-every", "2"]


def test_what_could_not_be_read_before_a_stop_is_told_after_it(models, corpus, tmp_path):  # noqa: F811
    whole, output = tmp_path / "whole", tmp_path / "run"  # noqa: F811
    assert main([*command(models, corpus, whole, *SKIP), "--keep-checkpoints", "9"]) == 0
    assert left_out(whole) == {"NaN or infinite samples": 3}
    for step in sorted(int(path.name.rpartition("-")[2]) for path in (whole / "checkpoints").iterdir()):
        shutil.rmtree(output, ignore_errors=True)
        (output / "checkpoints").mkdir(parents=True)
        shutil.copy(whole / "config.yaml", output)
        shutil.copytree(whole / "checkpoints" / f"checkpoint-{step}", output / "checkpoints" / f"checkpoint-{step}")
        assert main([*command(models, corpus, output, *SKIP), "--keep-checkpoints", "9", "--resume"]) == 0
        assert left_out(output) == left_out(whole), step
    log = (whole / "log.json").read_bytes()
    assert main([*command(models, corpus, whole, *SKIP), "--keep-checkpoints", "9", "--resume"]) == 0
    assert left_out(whole) == {"NaN or infinite samples": 3}
    assert (whole / "log.json").read_bytes() == log  # a run that takes no step has nothing to log


@pytest.mark.slow
def test_what_each_process_could_not_read_is_told(models, corpus, tmp_path):  # noqa: F811
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    arguments = command(models, corpus, tmp_path / "run", *SKIP)
    subprocess.run([*launch, "-m", "pad.cli", *arguments], env=environment, check=True, timeout=300)
    assert left_out(tmp_path / "run") == {"NaN or infinite samples": 3}


@pytest.mark.parametrize("change", ["an utterance less", "another transcript", "another recording", "other processes"])
def test_a_run_of_other_data_is_not_resumed(models, corpus, tmp_path, capsys, change):  # noqa: F811
    arguments = command(models, corpus, tmp_path / "run", *SKIP)
    assert main(arguments) == 0
    shutil.rmtree(tmp_path / "run" / "student")
    if change == "an utterance less":
        (corpus / "0.wav").unlink()
        (corpus / "0.txt").unlink()
        expected = "the data that the run began with, 9 utterances, got 8"
    elif change.startswith("another"):
        expected = "the data that the run began with, 9 utterances, got 9 of other transcripts, durations, file sizes"
        if change == "another transcript":
            (corpus / "0.txt").write_text("good night")
        else:  # as long as the one before
            length = soundfile.info(corpus / "0.wav").frames
            soundfile.write(corpus / "0.wav", np.full(length, 0.1), 16000, subtype="PCM_24")
    else:
        from pad.distill import manifest

        (checkpoint,) = [path for _, path in manifest.numbered(tmp_path / "run" / "checkpoints")][-1:]
        state = json.loads((checkpoint / "data.json").read_text())
        (checkpoint / "data.json").write_text(json.dumps({**state, "processes": 4}))
        manifest.seal(checkpoint)
        expected = "as many processes as the run had, 4, got 1"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert main([*arguments, "--resume"]) == 2
    assert f"resume: expected {expected}" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.fixture
def while_waiting(monkeypatch):
    """A function to call while a run waits for the lock of its output folder."""
    happening = []

    @contextmanager
    def only_run(folder):
        with files.only_run(folder):
            for happens in happening:
                happens()
            yield

    for module in ("pad.distill.run", "pad.evaluate.run"):
        monkeypatch.setattr(f"{module}.only_run", only_run)
    return happening.append


def test_a_folder_that_another_run_has_used_meanwhile(models, speech, whole, tmp_path, capsys, while_waiting):  # noqa: F811
    output = tmp_path / "run"
    while_waiting(lambda: shutil.copytree(whole, output, dirs_exist_ok=True))
    arguments = command(models, speech, output, *OPTIONS)
    assert main(arguments) == 2
    assert f"output: the folder {output} is not empty" in capsys.readouterr().err
    assert_same_run(output, whole)
    shutil.rmtree(output)
    assert main([*arguments, "--seed", "1", "--resume"]) == 2
    assert "seed was 0, now 1" in capsys.readouterr().err
    shutil.rmtree(output)
    assert main([*arguments, "--resume"]) == 0  # a job that was queued again before its first run had ended
    assert "is finished; its student stays as it is" in capsys.readouterr().out
    assert_same_run(output, whole)


def test_file_names_that_are_no_utf8(models, corpus, tmp_path):  # noqa: F811
    """Bytes of such names reach the report as Python and JSON write them."""
    for name in (b"caf\xe9.wav", b"caf\xe9.txt", b"alone\xff.txt"):
        (corpus / name.decode(errors="surrogateescape")).write_bytes(b"good morning")
    assert main(command(models, corpus, tmp_path / "run", *SKIP)) == 0
    content = (tmp_path / "run" / "left_out.json").read_text(encoding="utf-8")
    assert "caf\\udce9.wav" in content and "alone\\udcff.txt" in content
    messages = [message for some in json.loads(content)["messages"].values() for message in some]
    assert any("caf\udce9.wav" in message for message in messages)
    assert len(losses(tmp_path / "run")) == 5
