"""Bad samples left out and counted: by their headers before a run, by their samples amid one."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("soundfile")
pytest.importorskip("soxr")

import soundfile  # noqa: E402
from audio_files import write_audio, write_damaged_flac  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from transformers import BertConfig, BertModel, BertTokenizer, Wav2Vec2Config, Wav2Vec2Model  # noqa: E402

from pad.data import Report, load_utterances  # noqa: E402
from pad.distill.trainer import batch_loss  # noqa: E402
from pad.errors import UserError  # noqa: E402
from pad.step.collate import Collator, SpeechTextDataset  # noqa: E402
from pad.step.objective import objective  # noqa: E402
from pad.step.teacher import Teacher  # noqa: E402
from pad.students.waveforms import default_feature_extractor, student_of  # noqa: E402


@pytest.fixture
def mixed(tmp_path):
    """A manifest of good and bad lines."""
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    write_audio(tmp_path / "none.wav", seconds=0)
    write_audio(tmp_path / "short.wav", seconds=0.01)
    write_audio(tmp_path / "long.wav", seconds=3)
    lines = [b"caf\xe9.wav\tgood", b"no tab"]
    for number in range(40):
        write_audio(tmp_path / f"{number:02d}.wav", seconds=0.1 + 0.01 * number)
        lines.append(f"{number:02d}.wav\tgood".encode())
    for name in ("gone", "broken", "none", "short", "long"):
        lines.insert(7, f"{name}.wav\tgood".encode())
    lines.append(b"00.wav\t")
    (tmp_path / "train.tsv").write_bytes(b"\n".join(lines))
    return tmp_path / "train.tsv"


EXPECTED = {
    "unreadable transcript": 1,
    "malformed line": 1,
    "missing file": 1,
    "unreadable audio": 1,
    "empty audio": 1,
    "too short": 1,
    "too long": 1,
    "empty transcript": 1,
}


def test_bad_samples_are_skipped_counted_and_told(mixed):
    report = Report("skip")
    found = load_utterances(mixed, min_samples=400, max_seconds=2, report=report)
    assert [item.audio.name for item in found] == [f"{number:02d}.wav" for number in range(40)]
    assert report.counts == EXPECTED
    assert report.total == 8
    for messages in report.messages.values():
        assert "train.tsv:" in messages[0]
    report.save(mixed.with_name("left_out.json"))
    record = json.loads(mixed.with_name("left_out.json").read_text())
    assert record["left_out"] == EXPECTED
    assert record["messages"] == report.messages


def test_order_and_report_are_the_same_each_time(mixed):
    def outcome():
        report = Report("skip")
        found = load_utterances(mixed, min_samples=400, max_seconds=2, report=report)
        return found, str(report)

    first = outcome()
    assert all(outcome() == first for _ in range(5))


def test_progress_sees_every_entry(mixed):
    seen = []

    def progress(entries):
        for entry in entries:
            seen.append(entry)
            yield entry

    load_utterances(mixed, report=Report("skip"), progress=progress)
    assert len(seen) == 46


def test_first_messages_are_kept(tmp_path):
    lines = [f"{number}.wav\ttext" for number in range(9)]
    write_audio(tmp_path / "8.wav")
    (tmp_path / "transcripts.tsv").write_text("\n".join(lines))
    report = Report("skip", messages_kept=2)
    load_utterances(tmp_path, report=report)
    assert str(report).splitlines() == [
        "left out: 8",
        "  missing file: 8",
        f"    {tmp_path}/transcripts.tsv:1: the audio file {tmp_path}/0.wav does not exist",
        f"    {tmp_path}/transcripts.tsv:2: the audio file {tmp_path}/1.wav does not exist",
        "    and 6 more",
    ]


def test_nothing_left(tmp_path):
    write_audio(tmp_path / "a.wav")
    with pytest.raises(UserError, match=r"(?s)no transcribed audio found in .*missing transcript: 1.*looked for"):
        load_utterances(tmp_path, report=Report("skip"))


def test_unknown_policy():
    with pytest.raises(UserError, match="on_error: expected raise or skip, got 'ignore'"):
        Report("ignore")


@pytest.fixture
def spoken(tmp_path):
    """A folder whose headers are all sound; the samples of two files are not."""
    for name in "abc":
        write_audio(tmp_path / f"{name}.wav")
    write_damaged_flac(tmp_path / "zeroed.flac")
    soundfile.write(tmp_path / "nan.wav", np.full(8000, np.nan), 16000, subtype="FLOAT")
    for path in sorted(tmp_path.iterdir()):
        path.with_suffix(".txt").write_text("good")
    return tmp_path


def models(folder, norm):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    student = Wav2Vec2Model(
        Wav2Vec2Config(
            **sizes, conv_dim=(8, 8), conv_stride=(10, 8), conv_kernel=(20, 16), num_feat_extract_layers=2,
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, feat_extract_norm=norm,
            apply_spec_augment=False, attn_implementation="eager",
        )
    )  # fmt: skip
    (folder / "vocab").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good"]))
    tokenizer = BertTokenizer(str(folder / "vocab"))
    return student, BertModel(BertConfig(vocab_size=6, **sizes, attn_implementation="eager")), tokenizer


def dataset_of(folder, policy="skip"):
    report = Report(policy)
    utterances = load_utterances(folder, report=report)
    return SpeechTextDataset(utterances, 16000, report=report), report


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_cannot_be_read_are_dropped_from_batches(spoken, workers):
    student, _, tokenizer = models(spoken, "layer")
    dataset, report = dataset_of(spoken)
    collator = Collator(student_of(student, default_feature_extractor(student.config), {}).front_end, tokenizer)
    loader = DataLoader(dataset, batch_size=3, collate_fn=collator, num_workers=workers)
    for _ in range(2):
        assert [len(batch["text_ids"]) for batch in loader] == [3, 1]
    assert report.total == 0
    dataset.report_unreadable()
    dataset.report_unreadable()
    assert report.counts == {"NaN or infinite samples": 1, "unreadable audio": 1}

    dataset, _ = dataset_of(spoken, "raise")
    loader = DataLoader(dataset, batch_size=3, collate_fn=collator, num_workers=workers)
    with pytest.raises(UserError, match=r"nan\.wav: the audio holds NaN.* \(listed at .*nan\.txt\)$") as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_no_audio_at_all_that_can_be_read(spoken, workers):
    for name in "abc":
        (spoken / f"{name}.wav").unlink()
    dataset, _ = dataset_of(spoken)
    loader = DataLoader(dataset, batch_size=2, collate_fn=len, num_workers=workers)
    with pytest.raises(UserError, match=r"^data: none of 2 audio files can be read; the last: .*zeroed\.flac: not"):
        list(loader)


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("preset", ["pad-slocal", "pad-tlocal-soft", "pad-glob"])
def test_batch_of_nothing_moves_nothing(tmp_path, preset, norm):
    student, text_encoder, tokenizer = models(tmp_path, norm)
    collator = Collator(student_of(student, default_feature_extractor(student.config), {}).front_end, tokenizer)
    batch = collator([None, None])
    assert batch["frame_mask"].tolist() == [[True]]
    loss, _ = batch_loss(student, batch, Teacher(text_encoder, tokenizer, True), objective(preset))
    loss.backward()
    assert loss.item() == 0
    gradients = [value.grad for value in student.parameters() if value.grad is not None]
    assert gradients and all((gradient == 0).all() for gradient in gradients)
