"""`pad distill` end to end on five real recordings with tiny models, and what it says of mistakes."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

from audio_files import write_damaged_flac  # noqa: E402
from transformers import (  # noqa: E402
    AutoFeatureExtractor,
    AutoModel,
    BertConfig,
    BertModel,
    BertTokenizer,
    DebertaV2Config,
    FNetConfig,
    GPT2Config,
    RobertaConfig,
    SEWConfig,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from pad import files  # noqa: E402
from pad.cli import main  # noqa: E402
from pad.demo import librivox  # noqa: E402
from pad.distill.config import DistillConfig  # noqa: E402
from pad.distill.trainer import training_arguments  # noqa: E402
from pad.errors import UserError  # noqa: E402
from pad.models import load_teacher  # noqa: E402
from pad.processes import first_process  # noqa: E402
from pad.step.teacher import Teacher  # noqa: E402
from pad.tokenization import tokenize  # noqa: E402

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
STUDENT = {
    **SIZES, "conv_dim": (32, 32, 32), "conv_stride": (10, 8, 4), "conv_kernel": (20, 16, 8),
    "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
CACHE = Path(os.environ.get("PAD_TEST_DATA", Path(__file__).parent / ".cache"))


@pytest.fixture(scope="session")
def speech() -> Path:
    """The folder of the recordings, fetched once."""
    try:
        return librivox.fetch(CACHE / "librivox")
    except UserError as failure:
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
    words = " ".join(item.transcript for item in librivox.load(speech)).split() + ["good", "morning", "night"]
    Wav2Vec2Model(Wav2Vec2Config(**STUDENT)).save_pretrained(folder / "student")
    return {
        "student": str(folder / "student"),
        "teacher": str(save_teacher(folder / "teacher", words, 64)),
        "wide teacher": str(save_teacher(folder / "wide", words, 96)),
    }


def command(models, data, output, *options: str) -> list[str]:
    return [
        "distill", "--student", models["student"], "--teacher", models["teacher"], "--data", str(data),
        "--output", str(output), "--batch-size", "2", "--device", "cpu", "--preset", "pad-slocal", *options,
    ]  # fmt: skip


def run(models, data, output, *options: str) -> int:
    return main(command(models, data, output, *options))


@pytest.mark.parametrize("rank, processes, first", [
    ("0", "1", True), ("1", "1", True), ("1", None, True), ("1", "2", False), ("0", "2", True), ("", "", True),
    (None, None, True), (None, "2", True),
])  # fmt: skip
def test_a_process_alone_is_the_first(monkeypatch, rank, processes, first):
    for name, value in (("RANK", rank), ("WORLD_SIZE", processes)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert first_process() == first


def test_a_rank_that_the_environment_has_left(models, speech, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert run(models, speech, tmp_path / "run", "--max-steps", "1") == 0
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert run(models, speech, tmp_path / "other", "--max-steps", "1") == 2
    assert "WORLD_SIZE: expected a whole number in the environment, got 'two'" in capsys.readouterr().err
    # In a process of its own: accelerate remembers what it was refused.
    environment = {name: value for name, value in os.environ.items() if name != "MASTER_ADDR"} | {"WORLD_SIZE": "2"}
    arguments = command(models, speech, tmp_path / "other")
    done = subprocess.run(
        [sys.executable, "-m", "pad.cli", *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "error: WORLD_SIZE: the environment asks for 2 processes" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "other").exists()


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
    for name in (str(tmp_path / "no-model"), "m/nowhere"):
        started = time.monotonic()
        code = run({**models, "teacher": name}, speech, tmp_path / "run")
        assert f"teacher: cannot load {name!r}: no such folder here" in refused(capsys, tmp_path / "run", code)
        assert time.monotonic() - started < 12


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


def test_output_that_another_run_is_writing_to(models, speech, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(files, "_LONGEST_LEFT_OVER", 0.1)
    with files.only_run(tmp_path / "run"):
        for _ in range(2):
            assert run(models, speech, tmp_path / "run") == 2
            assert "output: another run is writing to" in capsys.readouterr().err
        assert not files.holds_output(tmp_path / "run")
    assert run(models, speech, tmp_path / "run") == 0


def test_recordings_have_word_times(speech):
    spoken = librivox.load(speech)
    assert len(spoken) == 5
    for item in spoken:
        times = [(word.start, word.end) for word in item.words]
        assert all(start < end <= item.duration + 0.05 for start, end in times)
        assert times == sorted(times)


def saved(folder: Path, config, tokenizer: str | None = None) -> str:
    """A model with random weights, with the tokenizer of another folder if one is named."""
    AutoModel.from_config(config).save_pretrained(folder)
    for path in Path(tokenizer).glob("*token*") if tokenizer else ():
        shutil.copy(path, folder)
    return str(folder)


@pytest.mark.parametrize(
    "config, message",
    [
        (FNetConfig(vocab_size=99, **SIZES), "neither attends through transformers' attention interface nor"),
        (GPT2Config(vocab_size=99, n_embd=64, n_layer=2, n_head=4), "causal, sliding or chunked attention"),
        (BertConfig(vocab_size=20, **SIZES), "its model embeds 20; expected no more than that"),
    ],
)
def test_teachers_that_do_not_fit(models, speech, tmp_path, capsys, config, message):
    teacher = saved(tmp_path / "teacher", config, models["teacher"])
    found = refused(capsys, tmp_path / "run", run({**models, "teacher": teacher}, speech, tmp_path / "run"))
    assert "error: teacher: " in found and message in found


@pytest.mark.parametrize("kind", [BertConfig, RobertaConfig, DebertaV2Config])
def test_teacher_without_a_tokenizer(models, speech, tmp_path, capsys, kind):
    teacher = saved(tmp_path / "teacher", kind(vocab_size=99, **SIZES))
    found = refused(capsys, tmp_path / "run", run({**models, "teacher": teacher}, speech, tmp_path / "run"))
    assert f"teacher: no tokenizer in {teacher!r}" in found


def test_transcripts_that_the_tokenizer_does_not_know(models, speech, tmp_path, capsys):
    (tmp_path / "list.tsv").write_text(f"{next(speech.glob('*.wav'))}\txylophones quack")
    code = run(models, tmp_path / "list.tsv", tmp_path / "run")
    assert "tokenizer knows no token of 'xylophones quack'; expected" in refused(capsys, tmp_path / "run", code)
    audio = next(speech.glob("*.wav"))
    lines = [f"{audio}\tgood", *[f"{audio}\t{'xylophones ' * 30} good"] * 300]
    (tmp_path / "list.tsv").write_text("\n".join(lines))
    code = run(models, tmp_path / "list.tsv", tmp_path / "run")
    assert "its tokenizer knows 151 of 4651 tokens" in refused(capsys, tmp_path / "run", code)


def test_students_that_do_not_fit(models, speech, tmp_path, capsys):
    student = saved(tmp_path / "student", SEWConfig(**STUDENT))
    found = refused(capsys, tmp_path / "run", run({**models, "student": student}, speech, tmp_path / "run"))
    assert "error: student: does not fit this objective" in found and "expected one such as wav2vec 2.0" in found


@pytest.mark.parametrize(
    "config, usable",
    [
        (BertConfig(vocab_size=99, max_position_embeddings=7, **SIZES), 7),
        (RobertaConfig(vocab_size=99, max_position_embeddings=9, pad_token_id=1, **SIZES), 7),
    ],
)
def test_texts_are_cut_to_the_teachers_positions(models, tmp_path, config, usable):
    model, tokenizer = load_teacher(saved(tmp_path / "teacher", config, models["teacher"]))
    text, mask = tokenize(tokenizer, ["good morning " * 9])
    assert mask.shape == (1, usable)
    teacher = Teacher(model, tokenizer, True)
    teacher.center(["good morning " * 9], "cpu")
    assert teacher(text["input_ids"], text["attention_mask"], mask)[0].shape == (1, usable, 64)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--precision", "float16"], "precision: float16 needs a GPU"),
        (["--report-to", "nonsense"], "report_to: expected none, all or what is installed"),
        (["--teacher-layer", "3"], "teacher_layer: expected a hidden state of the teacher, from -3 to 2, got 3"),
        (["--temperature", "1e-300"], "temperature: expected 0, or a finite number from 1e-38 on, got 1e-300"),
        (["--epochs", "nan"], "epochs: expected a positive number, at most 2147483647, got nan"),
        (["--epochs", "1e20"], "epochs: expected a positive number, at most 2147483647, got 1e+20"),
        (["--data", ""], "data: expected a path or a name, got ''"),
        (["--output", ""], "output: expected a path or a name, got ''"),
    ],
)
def test_settings_that_cannot_be(models, speech, tmp_path, capsys, options, message):
    assert message in refused(capsys, tmp_path / "run", run(models, speech, tmp_path / "run", *options))


def test_pictures_need_a_package_of_another_extra(models, speech, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pad.distill.config.find_spec", {"matplotlib": None}.get)
    code = run(models, speech, tmp_path / "run", "--pictures-every", "1")
    found = refused(capsys, tmp_path / "run", code)
    assert "pictures_every: expected 0 without the Python package 'matplotlib'; install it with: pip install " in found
    assert "'.[demo]'" in found


@pytest.mark.parametrize("output", ["/proc/pad/run", "{}/file/run"])
def test_output_that_cannot_be_made(tmp_path, capsys, output):
    (tmp_path / "file").write_text("")
    nothing = {"student": "none", "teacher": "none"}
    output = Path(output.format(tmp_path))
    assert run(nothing, tmp_path, output) == 2
    assert f"error: output: cannot write to {output}" in capsys.readouterr().err


@pytest.mark.skipif(torch.accelerator.is_available(), reason="what auto means without a GPU")
def test_bfloat16_where_there_is_no_gpu(models, speech, tmp_path):
    assert run(models, speech, tmp_path / "run", "--precision", "bfloat16", "--device", "auto", "--max-steps", "1") == 0


def test_warm_up_is_a_share_of_the_steps_or_a_number(tmp_path):
    def steps(**settings):
        config = DistillConfig("", "", "", "", device="cpu", **settings)
        return training_arguments(config, str(tmp_path)).get_warmup_steps(50)

    assert [steps(), steps(warmup_steps=0), steps(warmup_steps=500)] == [5, 0, 500]


def test_what_is_saved_is_readable_by_others_and_complete(models, speech, tmp_path, capsys):
    before = os.umask(0o027)
    try:
        options = ["--max-steps", "1", "--teacher-cache", str(tmp_path / "cache")]
        assert run(models, speech, tmp_path / "run", *options) == 0
    finally:
        os.umask(before)
    for name in ("run/student", "run/checkpoints/checkpoint-1", "cache"):
        for path in (tmp_path / name, *(tmp_path / name).rglob("*")):
            assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path
    names = {path.name for path in (tmp_path / "run" / "checkpoints" / "checkpoint-1").iterdir()}
    assert "preprocessor_config.json" in names and not any("tokenizer" in name or "vocab" in name for name in names)
    line = f"{models['student']}: no feature extractor there; assumed: 16000 Hz, normalized, without a mask"
    assert line in capsys.readouterr().out.splitlines()


def test_bad_samples_met_in_training_end_with_a_line_of_their_own(models, tmp_path, capsys):
    write_damaged_flac(tmp_path / "a.flac")
    (tmp_path / "list.tsv").write_text("a.flac\tgood morning")
    code = run(models, tmp_path / "list.tsv", tmp_path / "run")
    last = refused(capsys, tmp_path / "run", code).splitlines()[-1]
    assert last.startswith("pad distill: error: ") and last.endswith(f"(listed at {tmp_path / 'list.tsv'}:1)")
    code = run(models, tmp_path / "list.tsv", tmp_path / "run", "--on-error", "skip")
    assert "data: none of 1 audio files can be read" in refused(capsys, tmp_path / "run", code)
