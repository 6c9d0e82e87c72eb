"""Checkpoints that are not whole or not where they seem, the teachers people have, and their tokenizers."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

import soundfile  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors  # noqa: E402
from transformers import (  # noqa: E402
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2Model,
    HubertConfig,
    HubertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    Wav2Vec2Processor,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from pad.cli import main  # noqa: E402
from pad.distill import run as distill_run  # noqa: E402
from pad.errors import UserError  # noqa: E402
from pad.models import load_teacher, width  # noqa: E402
from pad.step.teacher import Teacher  # noqa: E402
from pad.students import load_student  # noqa: E402
from pad.tokenization import lower_case, tokenize, warn_of_case  # noqa: E402

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
SPEECH = {**SIZES, "conv_dim": (32, 32, 32), "conv_stride": (10, 8, 4), "conv_kernel": (20, 16, 8),
          "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}  # fmt: skip
WORDS = ["good", "morning", "night", "we", "##ll", "spoken"]
TEXTS = ["good morning", "good night well spoken we well night", "night"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_vocabulary(folder: Path, words=WORDS, **options) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *words]))
    BertTokenizer(str(folder / "vocab.txt"), **options).save_pretrained(folder)
    return folder


def save_teacher(folder: Path, kind=BertModel, config=BertConfig, words=WORDS, tokenizer=None, **options) -> Path:
    torch.manual_seed(0)
    kind(config(vocab_size=40, **SIZES, **options)).save_pretrained(folder)
    return save_vocabulary(folder, words, **tokenizer or {})


def save_student(folder: Path, kind=Wav2Vec2Model, config=Wav2Vec2Config, **options) -> Path:
    torch.manual_seed(0)
    kind(config(**SPEECH, **options)).save_pretrained(folder)
    return folder


def change_weights(folder: Path, change) -> None:
    """Save the weights of a checkpoint anew: {name: tensor}, as `change` makes them of the old ones."""
    path = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(weights), path, {"format": "pt"})


def prefixed(weights):
    return {f"module.{name}": tensor for name, tensor in weights.items()}


def without(part):
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


@pytest.fixture
def recording(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    samples = torch.randn(16000, generator=torch.Generator().manual_seed(0)).numpy() * 0.1
    soundfile.write(folder / "a.wav", samples, 16000)
    (folder / "a.txt").write_text("good morning")
    return folder


@pytest.mark.parametrize("role, change, named", [
    ("student", prefixed, r"\d+ weights of Wav2Vec2Model: encoder.* and \d+ more; it has module\..* not of the model"),
    ("student", without("layers.1."), r"17 weights of Wav2Vec2Model: encoder\.layers\.1\.attention\.k_proj\.bias"),
    ("student", without("feature_projection.projection.bias"), r"1 weights of Wav2Vec2Model: feature_projection\.proj"),
    ("teacher", prefixed, r"\d+ weights of BertModel: embeddings.* and \d+ more; it has module\..* not of the model"),
    ("teacher", without("layer.1."), r"16 weights of BertModel: encoder\.layer\.1\.attention\.output"),
    ("teacher", without("embeddings.LayerNorm"), r"2 weights of BertModel: embeddings\.LayerNorm\.bias, emb"),
])  # fmt: skip
def test_missing_weights_are_named(tmp_path, role, change, named):
    loaded = {"student": load_student, "teacher": load_teacher}[role]
    folder = {"student": save_student, "teacher": save_teacher}[role](tmp_path / role)
    loaded(str(folder))
    change_weights(folder, change)
    with pytest.raises(UserError, match=f"^{role}: cannot load .*the checkpoint lacks {named}"):
        loaded(str(folder))


@pytest.mark.parametrize("command", ["distill", "align", "evaluate"])
def test_commands_end_with_one_line_where_weights_are_missing(tmp_path, recording, capsys, command):
    if command == "align":
        pytest.importorskip("matplotlib")
    teacher, student = save_teacher(tmp_path / "teacher"), save_student(tmp_path / "student")
    change_weights(student, without("layers.1."))
    output = tmp_path / "out"
    arguments = {
        "distill": ["--teacher", str(teacher), "--data", str(recording)],
        "align": ["--teacher", str(teacher), "--audio", str(recording / "a.wav")],
        "evaluate": ["ic", "--data", str(recording)],
    }[command]
    assert main([command, *arguments, "--student", str(student), "--output", str(output)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"pad {command}: error: student: cannot load") and "encoder.layers.1.attention" in last
    assert not output.exists()


def test_what_is_not_used_may_be_missing(tmp_path):
    student = save_student(tmp_path / "student")
    change_weights(student, without("masked_spec_embed"))
    load_student(str(student))
    teacher = save_teacher(tmp_path / "teacher")
    change_weights(teacher, without("pooler."))
    load_teacher(str(teacher))


@pytest.mark.parametrize("kind", [Wav2Vec2ForCTC, BertForMaskedLM])
def test_heads_are_left_aside(tmp_path, kind):
    if kind is BertForMaskedLM:
        model, _ = load_teacher(str(save_teacher(tmp_path / "model", kind)))
        assert type(model) is BertModel
    else:
        assert type(load_student(str(save_student(tmp_path / "model", kind, vocab_size=40))).encoder) is Wav2Vec2Model


def save_processor(folder: Path, **options) -> None:
    (folder / "vocab.json").write_text(json.dumps({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5}))
    extractor = Wav2Vec2FeatureExtractor(feature_size=1, padding_value=0.0, **options)
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))).save_pretrained(folder)


def test_an_extractor_saved_in_a_processor_is_found(tmp_path, capsys):
    """transformers 5 saves it in processor_config.json alone."""
    student = save_student(tmp_path / "student")
    save_processor(student, sampling_rate=8000, do_normalize=False, return_attention_mask=True)
    (student / "preprocessor_config.json").unlink(missing_ok=True)
    extractor = load_student(str(student)).front_end.extractor
    assert (extractor.sampling_rate, extractor.do_normalize, extractor.return_attention_mask) == (8000, False, True)
    assert "assumed" not in capsys.readouterr().out


def test_a_processor_of_earlier_versions_holds_no_extractor(tmp_path, capsys):
    student = save_student(tmp_path / "student")
    (student / "processor_config.json").write_text(json.dumps({"processor_class": "Wav2Vec2Processor"}))
    extractor = load_student(str(student)).front_end.extractor
    assert extractor.sampling_rate == 16000 and "no feature extractor there; assumed" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_an_extractor_that_cannot_be_read_is_not_replaced(tmp_path, file):
    student = save_student(tmp_path / "student", HubertModel, HubertConfig)
    (student / file).write_text('{"feature_extractor": ')
    with pytest.raises(UserError, match="student: cannot load"):
        load_student(str(student))


def byte_pieces(folder: Path, start: str, end: str, padding: str) -> Path:
    """A tokenizer that cuts text into bytes, cased, with special tokens of these names."""
    names = [start, padding, end, "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:280]
    backend = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate([*names, *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}",
                                                           special_tokens=[(start, 0), (end, 2)])  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=start, eos_token=end, cls_token=start,
                                        sep_token=end, pad_token=padding, unk_token="<unk>")  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder


def mpnet(folder: Path) -> Path:
    """As sentence-transformers/all-mpnet-base-v2."""
    MPNetModel(MPNetConfig(vocab_size=300, **SIZES, max_position_embeddings=34)).save_pretrained(folder)
    return byte_pieces(folder, "<s>", "</s>", "<pad>")


def multilingual_e5(folder: Path) -> Path:
    config = XLMRobertaConfig(vocab_size=300, **SIZES, max_position_embeddings=34, pad_token_id=1)
    XLMRobertaModel(config).save_pretrained(folder)
    return byte_pieces(folder, "<s>", "</s>", "<pad>")


def bge(folder: Path) -> Path:
    return save_teacher(folder)


def deberta(folder: Path) -> Path:
    config = DebertaV2Config(vocab_size=300, **SIZES, relative_attention=True, pos_att_type=["c2p", "p2c"],
                             position_buckets=8, position_biased_input=False)  # fmt: skip
    DebertaV2Model(config).save_pretrained(folder)
    return byte_pieces(folder, "[CLS]", "[SEP]", "[PAD]")


def t5(folder: Path) -> Path:
    """The encoder alone is used, as sentence-transformers does."""
    config = T5Config(vocab_size=300, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return byte_pieces(folder, "<s>", "</s>", "<pad>")


def t5_encoder(folder: Path) -> Path:
    """Saved alone, it says that it is no encoder-decoder."""
    config = T5Config(vocab_size=300, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4)
    T5EncoderModel(config).save_pretrained(folder)
    return byte_pieces(folder, "<s>", "</s>", "<pad>")


@pytest.mark.parametrize("make", [mpnet, multilingual_e5, bge, deberta, t5, t5_encoder])
@pytest.mark.parametrize("side, where", [("left", "memory"), ("right", "folder")])
def test_the_cache_gives_what_the_teacher_gives(tmp_path, make, side, where):
    """Batches in other orders, so that padding differs; whatever side the tokenizer pads on."""
    torch.manual_seed(0)
    folder = make(tmp_path / "teacher")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": side}))
    model, tokenizer = load_teacher(str(folder))
    assert width(model) == 64
    tokenizer.padding_side = side
    cached = Teacher(model, tokenizer, True, cache=where if where == "memory" else str(tmp_path / "cache"))
    plain = Teacher(model, tokenizer, True)
    for texts in (TEXTS, TEXTS[::-1], TEXTS[:1], TEXTS):
        text, mask = tokenize(tokenizer, texts)
        assert text["attention_mask"][:, 0].all() and mask.any(1).all()
        inputs = (text["input_ids"], text["attention_mask"], mask)
        (one, prior), (other, expected) = cached(*inputs), plain(*inputs)
        assert torch.allclose(one[mask], other[mask], atol=1e-5) and torch.allclose(prior, expected, atol=1e-5)
        # What other code may give: padding on the left.
        left = [torch.stack([torch.cat([row[~real.bool()], row[real.bool()]]) for row, real in zip(x, inputs[1])])
                for x in inputs]  # fmt: skip
        for teacher in (cached, plain):
            embeddings, prior = teacher(*left)
            assert torch.allclose(embeddings[left[2]], other[mask], atol=1e-5)
            assert torch.allclose(prior[left[2]], expected[mask], atol=1e-5)


def test_a_folder_of_sentence_transformers(tmp_path):
    """The transformer in a folder of its own, lower case, and 7 tokens at most; beside it other modules."""
    folder = tmp_path / "sentences"
    save_teacher(folder / "0_Transformer", tokenizer={"do_lower_case": False})
    (folder / "0_Transformer" / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 7, "do_lower_case": True})
    )
    kinds = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    modules = [{"idx": number, "name": str(number), "path": path, "type": kind}
               for number, (kind, path) in enumerate(zip(kinds, ["0_Transformer", "1_Pooling"]))]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    model, tokenizer = load_teacher(str(folder))
    expected = AutoModel.from_pretrained(folder / "0_Transformer")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters()))
    text, mask = tokenize(tokenizer, ["GOOD Morning", "good night we well spoken good night"])
    assert text["input_ids"].shape == (2, 7)
    assert text["input_ids"][0, 1:3].tolist() == [len(SPECIAL) + WORDS.index(word) for word in ("good", "morning")]
    modules[0]["type"] = "sentence_transformers.models.BoW"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match="teacher: cannot load .*BoW.*expected a Transformer of sentence-transformers"):
        load_teacher(str(folder))


def test_sentence_transformers_with_the_model_at_the_top(tmp_path):
    folder = mpnet(tmp_path / "all-mpnet")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9, "do_lower_case": False}))
    (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}])
    )
    _, tokenizer = load_teacher(str(folder))
    text, _ = tokenize(tokenizer, ["Good morning"])
    assert text["input_ids"].shape == (1, 9) and tokenizer.decode(text["input_ids"][0, 1:5]) == "Good"


def test_a_tokenizer_without_padding(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    path = teacher / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": None}))
    with pytest.raises(UserError, match=r"^teacher: the tokenizer of .* has no padding token; expected a pad_token in"):
        load_teacher(str(teacher))


@pytest.mark.parametrize("longest", [2, 0, -1, float("nan"), "512"])
def test_a_teacher_without_room_for_text(tmp_path, recording, capsys, longest):
    teacher, student = save_teacher(tmp_path / "teacher"), save_student(tmp_path / "student")
    path = teacher / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": longest}))
    arguments = ["--student", str(student), "--teacher", str(teacher), "--data", str(recording),
                 "--output", str(tmp_path / "run"), "--preset", "pad-slocal"]  # fmt: skip
    assert main(["distill", *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("pad distill: error: teacher: ") and not (tmp_path / "run").exists()
    assert f"model_max_length {longest!r} and 512 positions, and adds 2 special tokens" in last
    assert "expected room for one more token" in last


@pytest.mark.parametrize("longest", [3, 3.5, None, float("inf")])
def test_a_teacher_with_room_for_text(tmp_path, longest):
    path = save_teacher(tmp_path) / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": longest}))
    model, tokenizer = load_teacher(str(tmp_path))
    text, mask = tokenize(tokenizer, ["good morning"])
    assert (
        mask.sum() == min(2, tokenizer.model_max_length - 2)
        and Teacher(model, tokenizer, True)(text["input_ids"], text["attention_mask"], mask)[0].isfinite().all()
    )


def test_capital_letters_are_counted_and_lowered(tmp_path, capsys):
    save_vocabulary(tmp_path / "cased", ["good", "morning", "g", "##o", "##d"] + [f"##{x}" for x in "OD"] + ["G"],
                    do_lower_case=False)  # fmt: skip
    tokenizer = BertTokenizer(str(tmp_path / "cased" / "vocab.txt"), do_lower_case=False)
    warn_of_case(tokenizer, ["GOOD", "good"])
    said = capsys.readouterr().out
    assert "cuts 2 transcripts such as 'GOOD' into 5 pieces, in lower case into 2; --lowercase lowers them" in said
    lower_case(tokenizer)
    warn_of_case(tokenizer, ["GOOD", "good"])
    assert capsys.readouterr().out == ""
    assert len({tuple(ids) for ids in tokenizer(["GOOD morning", "good Morning"])["input_ids"]}) == 1
    uncased = BertTokenizer(str(save_vocabulary(tmp_path / "uncased") / "vocab.txt"))
    warn_of_case(uncased, ["GOOD MORNING"])
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="lowercase: the tokenizer object has no normalizer"):
        lower_case(object())


def test_lowercase_is_a_setting_of_distill(tmp_path, recording, capsys):
    (recording / "a.txt").write_text("GOOD MORNING")
    teacher = save_teacher(tmp_path / "teacher", tokenizer={"do_lower_case": False})
    student = save_student(tmp_path / "student")
    arguments = ["distill", "--student", str(student), "--teacher", str(teacher), "--data", str(recording),
                 "--output", str(tmp_path / "run"), "--max-steps", "1", "--device", "cpu",
                 "--preset", "pad-slocal"]  # fmt: skip
    assert main(arguments) == 2
    assert "the teacher's tokenizer knows no token of 'GOOD MORNING'" in capsys.readouterr().err
    assert main([*arguments, "--lowercase"]) == 0
    assert "--lowercase lowers them" not in capsys.readouterr().out


@pytest.mark.parametrize("gpus", [2, 8])
def test_distill_refuses_data_parallel(tmp_path, recording, capsys, monkeypatch, gpus):
    teacher, student = save_teacher(tmp_path / "teacher"), save_student(tmp_path / "student")
    real = distill_run.training_arguments

    def several(config, checkpoints):
        arguments = real(config, checkpoints)
        arguments._n_gpu = gpus  # what TrainingArguments finds without a launcher
        return arguments

    monkeypatch.setattr(distill_run, "training_arguments", several)
    arguments = ["distill", "--student", str(student), "--teacher", str(teacher), "--data", str(recording),
                 "--output", str(tmp_path / "run"), "--max-steps", "1", "--device", "cpu",
                 "--preset", "pad-slocal"]  # fmt: skip
    assert main(arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"pad distill: error: device: {gpus} GPUs and one process; expected a process for each GPU")
    assert f"torchrun --nproc-per-node {gpus}" in last and "accelerate launch" in last
    assert not (tmp_path / "run").exists()
