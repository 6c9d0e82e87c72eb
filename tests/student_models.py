"""Tiny speech encoders with random weights, one per family, and noise to give them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
import transformers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from pad.students import Student
from pad.students.loading import FAMILIES

WIDTH, LAYERS, SECONDS = 32, 2, 2
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {"vocab_size": 261, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
WORDS = ["good", "morning", "night", "sleep", "well"]
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
_HALVES = {
    "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_target_positions": 20,
}  # fmt: skip
CONFIGS = {
    "whisper": {
        **_HALVES, "vocab_size": 261, "num_mel_bins": 20, "max_source_positions": 50 * SECONDS, "pad_token_id": 256,
        "bos_token_id": 256, "eos_token_id": 256, "decoder_start_token_id": 257, "begin_suppress_tokens": None,
    },
    "moonshine": {
        **TEXT, "hidden_size": WIDTH, "intermediate_size": 64, "encoder_num_hidden_layers": LAYERS,
        "decoder_num_hidden_layers": 1, "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4,
    },
    "speech_to_text": {
        **TEXT, **_HALVES, "input_feat_per_channel": 20, "conv_channels": 24, "encoder_layerdrop": 0.0,
        "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
    },
    "parakeet_ctc": {
        "vocab_size": 20, "encoder_config": {
            **SIZES, "num_key_value_heads": 4, "num_mel_bins": 32, "subsampling_conv_channels": 8,
            "conv_kernel_size": 5, "dropout": 0.0, "dropout_positions": 0.0, "layerdrop": 0.0,
            "activation_dropout": 0.0, "attention_dropout": 0.0,
        },
    },
    "wav2vec2-bert": {
        **SIZES, "position_embeddings_type": "rotary", "feature_projection_input_dim": 160, "layerdrop": 0.0,
        "conv_depthwise_kernel_size": 7, "hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
        "feat_proj_dropout": 0.0, "conformer_conv_dropout": 0.0, "apply_spec_augment": False,
    },
}  # fmt: skip


def new_model(kind: str, **options):
    """A model of a family; its weights are large enough for attention to differ from frame to frame."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **CONFIGS[kind] | options)
    model = getattr(transformers, FAMILIES[kind].CLASSES[0])(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "position" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def new_extractor(kind: str, model):
    if kind == "whisper":
        return transformers.WhisperFeatureExtractor(feature_size=model.config.num_mel_bins, chunk_length=SECONDS)
    return FAMILIES[kind].default_feature_extractor(model.config)


def new_student(kind: str, **options) -> Student:
    model = new_model(kind, **options)
    student = FAMILIES[kind].student_of(model, new_extractor(kind, model), {})
    student.encoder.eval()
    return student


def waves(*lengths: int) -> list[np.ndarray]:
    """Noise of so many samples, whose loudness changes over time and from one utterance to the next."""
    random = np.random.default_rng(0)
    return [
        (random.standard_normal(length) * (1.2 + np.sin(np.arange(length) / 900)) / 8 * 0.5 ** (number % 4)).astype("f")
        for number, length in enumerate(lengths)
    ]


def save_whisper(folder: Path) -> str:
    """A Whisper checkpoint with all the files that one on the hub has."""
    model = new_model("whisper")
    model.generation_config.update(max_length=12, is_multilingual=False, no_timestamps_token_id=260)
    model.save_pretrained(folder)
    new_extractor("whisper", model).save_pretrained(folder)
    tokens = [*bytes_to_unicode().values(), *SPECIAL]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "normalizer.json").write_text('{"colour": "color"}')
    transformers.WhisperTokenizer.from_pretrained(folder).save_pretrained(folder)
    return str(folder)


def save_teacher(folder: Path) -> str:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    torch.manual_seed(1)
    transformers.BertModel(transformers.BertConfig(vocab_size=10, **SIZES)).save_pretrained(folder)
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def save_speech(folder: Path, lengths=(16000, 7777, 31990, 12000)) -> str:
    folder.mkdir()
    for number, wave in enumerate(waves(*lengths)):
        soundfile.write(folder / f"{number}.wav", wave, 16000)
        words = [WORDS[(number + place) % len(WORDS)] for place in range(2 + number % 3)]
        (folder / f"{number}.txt").write_text(" ".join(words))
    return str(folder)
