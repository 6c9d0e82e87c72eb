"""`pad distill` end to end on five real recordings with tiny models, and what it says of mistakes."""

import json
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

from transformers import (  # noqa: E402
    AutoFeatureExtractor,
    AutoModel,
    BertConfig,
    BertModel,
    BertTokenizer,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from pad.cli import main  # noqa: E402
from pad.demo import recordings  # noqa: E402

CACHE = Path(os.environ.get("PAD_TEST_DATA", Path(__file__).parent / ".cache"))


@pytest.fixture(scope="session")
def speech() -> Path:
    """The folder of the recordings, fetched once."""
    try:
        return recordings.fetch(CACHE / "librivox")
    except RuntimeError as failure:
        pytest.skip(str(failure))


def save_teacher(folder: Path, words: list[str], width: int) -> Path:
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(words))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=width, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=2 * width,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory, speech) -> dict[str, str]:
    """Checkpoints with random weights: a student, a teacher of its width, and one of another width."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    words = " ".join(item.transcript for item in recordings.load(speech)).split() + ["good", "morning", "night"]
    config = Wav2Vec2Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=(32, 32, 32),
        conv_stride=(10, 8, 4),
        conv_kernel=(20, 16, 8),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    Wav2Vec2Model(config).save_pretrained(folder / "student")
    return {
        "student": str(folder / "student"),
        "teacher": str(save_teacher(folder / "teacher", words, 64)),
        "wide teacher": str(save_teacher(folder / "wide", words, 96)),
    }


def run(models, data, output, *options: str) -> int:
    return main(
        ["distill", "--student", models["student"], "--teacher", models["teacher"], "--data", str(data),
         "--output", str(output), "--batch-size", "2", "--device", "cpu", *options]
    )  # fmt: skip


def losses(output: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((output / "log.json").read_text()) if "loss" in entry]


@pytest.mark.parametrize("preset", ["pad-slocal", "pad-tlocal", "pad-glob", "slocal-soft"])
def test_distills_real_speech_and_saves_a_plain_checkpoint(models, speech, tmp_path, preset):
    options = ["--max-steps", "2", "--log-every", "1", "--preset", preset]
    assert run(models, speech, tmp_path / "run", *options) == 0
    values = losses(tmp_path / "run")
    assert len(values) == 2 and all(value > 0 for value in values)
    student = AutoModel.from_pretrained(tmp_path / "run" / "student")
    before = AutoModel.from_pretrained(models["student"])
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), before.parameters(), strict=True))
    assert student.config.apply_spec_augment == before.config.apply_spec_augment
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "run" / "student").do_normalize is True
    assert not list((tmp_path / "run" / "student").glob("*.bin"))


def test_resumed_run_gives_the_losses_of_one_that_was_not_stopped(models, speech, tmp_path):
    options = ["--log-every", "1", "--save-every", "2", "--learning-rate", "1e-3", "--warmup-steps", "0"]
    assert run(models, speech, tmp_path / "whole", *options, "--max-steps", "4") == 0
    assert run(models, speech, tmp_path / "parts", *options, "--max-steps", "4") == 0
    last = tmp_path / "parts" / "checkpoints" / "checkpoint-4"
    for path in sorted(last.rglob("*"), reverse=True):
        path.unlink()
    last.rmdir()
    assert run(models, speech, tmp_path / "parts", *options, "--max-steps", "4", "--resume") == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = (AutoModel.from_pretrained(tmp_path / name / "student") for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def refused(capsys, output: Path, code: int) -> str:
    """The message of a run that must have left nothing behind."""
    assert code == 2 and not output.exists()
    message = capsys.readouterr().err
    assert "error:" in message and "Traceback" not in message
    return message


def test_missing_folder(models, tmp_path, capsys):
    code = run(models, tmp_path / "nowhere", tmp_path / "run")
    assert "nowhere is not a folder" in refused(capsys, tmp_path / "run", code)


@pytest.mark.parametrize("content", [b"", b"this is no audio" * 20])
def test_unreadable_audio(models, tmp_path, capsys, content):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.wav").write_bytes(content)
    (tmp_path / "data" / "a.txt").write_text("good morning")
    code = run(models, tmp_path / "data", tmp_path / "run")
    assert "a.wav: not a readable audio file" in refused(capsys, tmp_path / "run", code)


def test_empty_transcript(models, speech, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.wav").write_bytes(next(speech.glob("*.wav")).read_bytes())
    (tmp_path / "data" / "transcripts.tsv").write_text("a.wav\t\n")
    code = run(models, tmp_path / "data", tmp_path / "run")
    assert "transcripts.tsv:1: empty transcript" in refused(capsys, tmp_path / "run", code)


def test_unknown_model(models, speech, tmp_path, capsys):
    code = run({**models, "teacher": str(tmp_path / "no-model")}, speech, tmp_path / "run")
    assert "teacher: cannot load" in refused(capsys, tmp_path / "run", code)


def test_widths_that_differ(models, speech, tmp_path, capsys):
    code = run({**models, "teacher": models["wide teacher"]}, speech, tmp_path / "run")
    message = refused(capsys, tmp_path / "run", code)
    assert "64 and 96" in message


def test_output_that_holds_something_is_kept(models, speech, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("mine")
    assert run(models, speech, tmp_path / "run") == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious"]


def test_recordings_have_word_times(speech):
    spoken = recordings.load(speech)
    assert len(spoken) == 5
    for item in spoken:
        times = [(word.start, word.end) for word in item.words]
        assert all(start < end <= item.duration + 0.05 for start, end in times)
        assert times == sorted(times)
