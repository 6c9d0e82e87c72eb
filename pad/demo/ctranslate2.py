"""Whisper from the format of CTranslate2 to that of transformers."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


class _Reader:
    """Reads numbers and names from the bytes of a file, in order."""

    def __init__(self, data: bytes):
        self.data, self.place = data, 0

    def number(self, form: str) -> int:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.place)
        self.place += struct.calcsize(f"<{form}")
        return value

    def name(self) -> str:
        length = self.number("H")  # with the zero byte at its end
        value = self.data[self.place : self.place + length - 1].decode()
        self.place += length
        return value

    def tensor(self) -> np.ndarray:
        shape = [self.number("I") for _ in range(self.number("B"))]
        dtype, size = np.dtype(_DTYPES[self.number("B")]), self.number("I")
        values = np.frombuffer(self.data, dtype, size // dtype.itemsize, self.place).reshape(shape)
        self.place += size
        return values


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a CTranslate2 `model.bin`, by name."""
    reader = _Reader(path.read_bytes())
    reader.number("I"), reader.name(), reader.number("I")  # version, kind of model, its revision
    tensors = {}
    for _ in range(reader.number("I")):
        name = reader.name()
        tensors[name] = reader.tensor()
    for _ in range(reader.number("I")):
        alias = reader.name()
        tensors[alias] = tensors[reader.name()]
    return tensors


def whisper(path: Path) -> WhisperForConditionalGeneration:
    """The Whisper model of a `model.bin` without quantization: float32, every weight taken from the file."""
    tensors = read_tensors(path)
    model = WhisperForConditionalGeneration(_config(tensors))
    state = {f"model.encoder.{name}": value for name, value in _stack(tensors, "encoder").items()}
    state |= {f"model.decoder.{name}": value for name, value in _stack(tensors, "decoder").items()}
    for name in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"):
        state[f"model.encoder.{name}"] = tensors[f"encoder/{name.replace('.', '/')}"]
    state["model.decoder.embed_tokens.weight"] = tensors["decoder/embeddings/weight"]
    state["proj_out.weight"] = tensors["decoder/projection/weight"]
    model.load_state_dict({name: torch.tensor(value, dtype=torch.float32) for name, value in state.items()})
    return model.eval()


def _config(tensors: dict[str, np.ndarray]) -> WhisperConfig:
    vocabulary, width = tensors["decoder/embeddings/weight"].shape
    english = vocabulary == 51864  # the multilingual models have a token more
    end = 50256 if english else 50257
    return WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=tensors["encoder/conv1/weight"].shape[1],
        d_model=width,
        encoder_layers=_depth(tensors, "encoder"),
        encoder_attention_heads=int(tensors["encoder/num_heads"]),
        encoder_ffn_dim=len(tensors["encoder/layer_0/ffn/linear_0/bias"]),
        decoder_layers=_depth(tensors, "decoder"),
        decoder_attention_heads=int(tensors["decoder/num_heads"]),
        decoder_ffn_dim=len(tensors["decoder/layer_0/ffn/linear_0/bias"]),
        max_source_positions=len(tensors["encoder/position_encodings/encodings"]),
        max_target_positions=len(tensors["decoder/position_encodings/encodings"]),
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=end + 1,
    )


def _depth(tensors: dict[str, np.ndarray], stack: str) -> int:
    numbers = {name.split("/")[1].removeprefix("layer_") for name in tensors if name.startswith(f"{stack}/layer_")}
    return sum(number.isdecimal() for number in numbers)


def _stack(tensors: dict[str, np.ndarray], stack: str) -> dict[str, np.ndarray]:
    """The weights of an encoder's or decoder's layers, by their names in transformers."""
    state = {"embed_positions.weight": tensors[f"{stack}/position_encodings/encodings"]}

    def linear(to: str, source: str, parts: tuple[str, ...] = ("",)) -> None:
        # Projections of one input are stored as one; Whisper's keys have no bias, there it is zero.
        for kind in ("weight", "bias"):
            for part, value in zip(parts, np.split(tensors[f"{source}/{kind}"], len(parts))):
                if (part, kind) != ("k_proj", "bias"):
                    state[".".join(filter(None, (to, part, kind)))] = value

    def norm(to: str, source: str) -> None:
        state[f"{to}.weight"], state[f"{to}.bias"] = tensors[f"{source}/gamma"], tensors[f"{source}/beta"]

    norm("layer_norm", f"{stack}/layer_norm")
    for number in range(_depth(tensors, stack)):
        to, source = f"layers.{number}", f"{stack}/layer_{number}"
        linear(f"{to}.self_attn", f"{source}/self_attention/linear_0", ("q_proj", "k_proj", "v_proj"))
        linear(f"{to}.self_attn.out_proj", f"{source}/self_attention/linear_1")
        norm(f"{to}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
        if stack == "decoder":
            linear(f"{to}.encoder_attn", f"{source}/attention/linear_0", ("q_proj",))
            linear(f"{to}.encoder_attn", f"{source}/attention/linear_1", ("k_proj", "v_proj"))
            linear(f"{to}.encoder_attn.out_proj", f"{source}/attention/linear_2")
            norm(f"{to}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
        linear(f"{to}.fc1", f"{source}/ffn/linear_0")
        linear(f"{to}.fc2", f"{source}/ffn/linear_1")
        norm(f"{to}.final_layer_norm", f"{source}/ffn/layer_norm")
    return state
