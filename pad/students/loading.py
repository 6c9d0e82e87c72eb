"""From the name of a checkpoint to a student."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from pad.models import load_pretrained
from pad.progress import say
from pad.students import waveforms, whisper
from pad.students.student import Student, refuse_padding

# Of a checkpoint with a decoder: what is kept besides weights, configuration and feature extractor.
_KEPT = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "normalizer.json", "processor_config.json",
)  # fmt: skip
_EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")


def load_student(name: str, pad_to_max_length: bool = False) -> Student:
    """A speech encoder of a checkpoint folder or hub name, in float32; raises UserError that names what is wrong.

    pad_to_max_length: fill every utterance up to the longest that the encoder takes (Whisper).
    """
    config = load_pretrained(AutoConfig, name, "student")
    if config.model_type == "whisper":
        model = load_pretrained(whisper.model_class(config), name, "student").float()
        extractor = _extractor(name, config, whisper.default_feature_extractor)
        return whisper.student_of(model, extractor, pad_to_max_length, _files(name))
    refuse_padding(pad_to_max_length, config.model_type)
    waveforms.convolution_layout(config)
    model = load_pretrained(AutoModel, name, "student").float()
    return waveforms.student_of(model, _extractor(name, config, waveforms.default_feature_extractor))


def _extractor(name: str, config, default):
    """The checkpoint's feature extractor, or the default for its config, which is said."""
    folder = Path(name)
    if not folder.is_dir() or any((folder / file).is_file() for file in _EXTRACTOR_FILES):
        return load_pretrained(AutoFeatureExtractor, name, "student")
    extractor = default(config)
    assumed = [f"{extractor.sampling_rate} Hz"]
    if getattr(extractor, "do_normalize", False):
        assumed.append("normalised")
    assumed.append("with a mask" if extractor.return_attention_mask else "without a mask")
    say(f"{name}: no feature extractor there; assumed: {', '.join(assumed)}")
    return extractor


def _files(name: str) -> dict[str, bytes]:
    """The kept files of a checkpoint by name."""
    folder = Path(name)
    if not folder.is_dir():
        folder = Path(snapshot_download(name, allow_patterns=list(_KEPT)))
    return {file: (folder / file).read_bytes() for file in _KEPT if (folder / file).is_file()}
