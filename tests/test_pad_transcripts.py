"""Transcripts that the teacher cannot read whole are bad samples: without a token, or with more than it takes."""

import json

import pytest

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

from student_models import new_extractor, new_model, save_speech, save_teacher, waves  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from pad.align.config import AlignConfig  # noqa: E402
from pad.align.run import align_one  # noqa: E402
from pad.distill.config import DistillConfig  # noqa: E402
from pad.distill.run import distill  # noqa: E402
from pad.errors import UserError  # noqa: E402
from pad.tokenization import fault_of_text, tokenize  # noqa: E402

EMPTY = ("\u200b", "\u0301", "\0", "\ufeff")


@pytest.fixture
def settings(tmp_path) -> dict:
    model = new_model("wav2vec2-bert")
    model.save_pretrained(tmp_path / "student")
    new_extractor("wav2vec2-bert", model).save_pretrained(tmp_path / "student")
    return dict(student=str(tmp_path / "student"), teacher=save_teacher(tmp_path / "teacher"),
                preset="slocal-soft")  # fmt: skip


def test_faults(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(save_teacher(tmp_path / "teacher"))
    texts = ["good night", *EMPTY, "good " * 510, "good " * 511]
    faults = list(fault_of_text(tokenizer, texts))
    assert [fault and fault.reason for fault in faults] == [
        None, *["no token in transcript"] * 4, None, "transcript too long"
    ]  # fmt: skip
    (unknown,) = fault_of_text(tokenizer, ["\u043c\u0438\u0440"])
    assert unknown.reason == "no known token in transcript" and ascii("\u043c\u0438\u0440") in unknown.message
    assert list(fault_of_text(tokenizer, ["good \u043c\u0438\u0440"])) == [None]
    assert faults[-1].message.startswith("513 tokens in 'good good ") and "reads 512" in faults[-1].message
    tokenizer.model_max_length = 4
    assert [fault and fault.reason for fault in fault_of_text(tokenizer, ["good night", "good night well"])] == [
        None, "transcript too long"
    ]  # fmt: skip


def test_distillation_leaves_them_out(settings, tmp_path):
    data = save_speech(tmp_path / "data", lengths=(16000, 9000, 8000, 12000))
    (tmp_path / "data" / "1.txt").write_text("\u200b", encoding="utf-8")
    (tmp_path / "data" / "2.txt").write_text("good " * 600)
    options = dict(data=data, output=str(tmp_path / "run"), max_steps=1, batch_size=2, device="cpu")
    with pytest.raises(UserError, match=r"1\.\w+.*: the teacher's tokenizer finds no token in '\\u200b'; expected"):
        distill(DistillConfig(**settings, **options))
    distill(DistillConfig(**settings, **options, on_error="skip"))
    found = json.loads((tmp_path / "run" / "left_out.json").read_text())
    assert found["left_out"] == {"no token in transcript": 1, "transcript too long": 1}
    assert "602 tokens" in found["messages"]["transcript too long"][0]
    for number in range(4):
        (tmp_path / "data" / f"{number}.txt").write_text("\u200b", encoding="utf-8")
    with pytest.raises(UserError, match="^data: no transcript that the teacher can read; left out: 4"):
        distill(DistillConfig(**settings, **options | {"output": str(tmp_path / "other")}, on_error="skip"))


def test_alignment_refuses_a_long_one(settings, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.wav", waves(8000)[0], 16000)
    options = dict(audio=str(tmp_path / "a.wav"), transcript="good " * 600, output=str(tmp_path / "x"))
    with pytest.raises(UserError, match="^transcript: 602 tokens in 'good .* the teacher reads 512"):
        align_one(AlignConfig(**settings, **options))


def test_names_of_special_tokens_are_text(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(save_teacher(tmp_path / "teacher"))
    for text in ("[PAD]", "[SEP] [SEP]", "[MASK]"):
        (fault,) = fault_of_text(tokenizer, [text])
        assert fault.reason == "no known token in transcript"  # nor does this vocabulary have brackets
    texts, mask = tokenize(tokenizer, ["good [SEP] night", "good night"])
    spelled, plain = (tokenizer.convert_ids_to_tokens(row) for row in texts["input_ids"].tolist())
    assert spelled == ["[CLS]", "good", "[UNK]", "[UNK]", "[UNK]", "night", "[SEP]"]
    assert plain[:4] == ["[CLS]", "good", "night", "[SEP]"] and mask.sum(1).tolist() == [5, 2]
