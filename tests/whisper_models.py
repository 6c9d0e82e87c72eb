"""A tiny Whisper checkpoint with random weights, a teacher of its width, and speech that is noise."""

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

WIDTH, LAYERS, SECONDS = 32, 2, 2.0
WORDS = ["good", "morning", "night", "sleep", "well"]
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]


def new_whisper(**options) -> WhisperForConditionalGeneration:
    """A model whose positions end after two seconds; its weights are large enough for attention to differ."""
    settings = dict(
        vocab_size=256 + len(SPECIAL), num_mel_bins=20, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
        max_source_positions=round(SECONDS * 50), max_target_positions=20, pad_token_id=256, bos_token_id=256,
        eos_token_id=256, decoder_start_token_id=257, begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**settings | options)).eval()
    positions = model.model.encoder.embed_positions.weight
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter is not positions:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def save_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without merges."""
    characters = list(bytes_to_unicode().values())
    vocabulary = {token: number for number, token in enumerate([*characters, *SPECIAL])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "normalizer.json").write_text("{}")
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_whisper(folder: Path, **options) -> str:
    """The model with all files that a checkpoint on the hub has."""
    model = new_whisper(**options)
    model.generation_config.update(max_length=12, is_multilingual=False, no_timestamps_token_id=260)
    model.save_pretrained(folder)
    extractor(model.config.num_mel_bins).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


def extractor(bands: int = 20) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=bands, chunk_length=round(SECONDS))


def save_teacher(folder: Path, width: int = WIDTH) -> str:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    torch.manual_seed(1)
    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=10, **sizes)).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def waves(*lengths: int) -> list[np.ndarray]:
    """Noise of so many samples, each utterance of another loudness."""
    random = np.random.default_rng(0)
    return [
        (random.standard_normal(length) * 0.5 ** (number % 4)).astype(np.float32)
        for number, length in enumerate(lengths)
    ]


def save_speech(folder: Path, lengths=(16000, 7777, 31990, 12000, 20000, 9000)) -> str:
    folder.mkdir()
    for number, wave in enumerate(waves(*lengths)):
        soundfile.write(folder / f"{number}.wav", wave / 8, 16000)
        words = [WORDS[(number + place) % len(WORDS)] for place in range(2 + number % 3)]
        (folder / f"{number}.txt").write_text(" ".join(words))
    return str(folder)
