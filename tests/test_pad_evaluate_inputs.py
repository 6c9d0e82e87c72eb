"""Corpora as other systems write them, and heads whose training diverges."""

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

from audio_files import write_audio, write_noise  # noqa: E402

from pad.errors import UserError  # noqa: E402
from pad.evaluate import training  # noqa: E402
from pad.evaluate.corpora import Example, durations, fluent_speech_commands, iemocap  # noqa: E402
from pad.evaluate.slots import slots_of  # noqa: E402
from pad.evaluate.snips import SPEAKERS, snips  # noqa: E402
from pad.evaluate.tasks import Split, Task  # noqa: E402
from pad.evaluate.training import Schedule  # noqa: E402

MARK = "\ufeff"  # of the order of bytes, as some editors and spreadsheets write it


def test_a_mark_at_the_start_of_a_file(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train", "valid", "test"):
        rows = f"{MARK}path,action,object,location\r\na.wav,on,lamp,none\r\n"
        (tmp_path / "data" / f"{name}_data.csv").write_text(rows, encoding="utf-8", newline="")
    splits, _ = fluent_speech_commands(tmp_path)
    assert splits.train[0].audio == tmp_path / "a.wav"
    for session in range(1, 6):
        folder = tmp_path / f"Session{session}" / "dialog" / "EmoEvaluation"
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(f"{MARK}[1.0 - 2.0]\ta_1\tneu\t[2.5, 2.5, 2.5]\n", encoding="utf-8")
    assert [len(session) for session in iemocap(tmp_path)] == [1] * 5


def test_snips_from_other_systems(tmp_path):
    lines = []
    for split, speakers in SPEAKERS.items():
        name = f"{speakers[0]}-snips-{split}-1"
        (tmp_path / split).mkdir()
        (tmp_path / split / f"{name}.WAV").write_bytes(b"")
        (tmp_path / split / f"._{name}.WAV").write_bytes(b"")
        lines.append(f"{name} BOS play jazz EOS\tO O B-genre PlayMusic")
    (tmp_path / "all.iob.snips.txt").write_text(MARK + "\n".join(lines), encoding="utf-8")
    splits, _ = snips(tmp_path)
    assert [item.audio.suffix for item in (*splits.train, *splits.dev, *splits.test)] == [".WAV"] * 3


@pytest.mark.parametrize("word, is_lost", [("jazz", False), ("мир", True), ("5", True), ("don't", False)])
def test_values_of_which_nothing_is_decoded_are_said(tmp_path, capsys, word, is_lost):
    lines = []
    for split, speakers in SPEAKERS.items():
        name = f"{speakers[0]}-snips-{split}-1"
        (tmp_path / split).mkdir()
        (tmp_path / split / f"{name}.wav").write_bytes(b"")
        lines.append(f"{name} BOS play {word} by night EOS\tO O B-genre O B-time PlayMusic")
    (tmp_path / "all.iob.snips.txt").write_text("\n".join(lines), encoding="utf-8")
    splits, _ = snips(tmp_path)
    assert len(slots_of(splits.test[0].label)) == (1 if is_lost else 2)
    said = capsys.readouterr().out
    expected = f"sf: 3 sentences, the first of {tmp_path / 'all.iob.snips.txt'}:1, have slots whose value"
    assert said.startswith(expected) if is_lost else not said


@pytest.mark.parametrize("ending", ["mp3", "aiff", "au", "flac", "ogg"])
def test_audio_that_ends_too_early_is_named_with_its_line(tmp_path, ending):
    whole = write_audio(tmp_path / "whole.wav")
    cut = write_noise(tmp_path / f"cut.{ending}")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    examples = [Example(whole, (0,), "list.csv:2"), Example(cut, (0,), "list.csv:3")]
    with pytest.raises(UserError, match=rf"^list\.csv:3: .*cut\.{ending}: "):
        durations(examples, 0.025)


def task() -> Task:
    """One whose loss overflows float32 at the first step."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.ones(()))
            self.layer_sum = type("Sum", (), {"weights": torch.ones(1)})

    items = [torch.tensor(1.0)] * 4
    split = Split(items, [1.0] * 4)
    return Task(
        "score", split, split, split, build=Head, loss=lambda head, items: (head.value * 1e20) ** 2,
        answers=lambda head, items: [float(head.value.isfinite())] * len(items),
        scores=lambda answers: {"score": sum(answers) / len(answers)},
    )  # fmt: skip


def test_a_head_that_diverges_is_said_to(tmp_path, capsys):
    schedule = Schedule(steps=8, eval_every=2, save_every=100, batch_size=2, max_grad_norm=1.0, seed=0)
    trial = training.train(task(), schedule, 1e-3, tmp_path / "trial", "ic student lr 0.001", torch.device("cpu"))
    assert trial["diverged"] == 2
    assert "ic student lr 0.001: diverged, the loss of step 2 is nan" in capsys.readouterr().out
    assert training.train(task(), schedule, 1e-3, tmp_path / "trial", "again", torch.device("cpu"))["diverged"] == 2
