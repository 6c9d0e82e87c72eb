"""From the name of a checkpoint to a student."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModel

from pad.errors import UserError, shown
from pad.loaders import SavedFeatureExtractor, WholeModel
from pad.models import load_pretrained
from pad.progress import say
from pad.students import moonshine, parakeet, speech_to_text, wav2vec2_bert, waveforms, whisper
from pad.students.student import Student

# By model type; all others must have convolutions over samples (waveforms.py). Each has the classes of its checkpoints
# (CLASSES), `default_feature_extractor` and `student_of`.
FAMILIES: dict[str, Any] = {
    "whisper": whisper,
    "moonshine": moonshine,
    "speech_to_text": speech_to_text,
    "wav2vec2-bert": wav2vec2_bert,
    "parakeet_ctc": parakeet,
    "parakeet_tdt": parakeet,
    "parakeet_rnnt": parakeet,
}
_REFUSED = {
    "audio-spectrogram-transformer": "its positions are patches of time and frequency, not frames in order",
}
# Of a checkpoint: what is kept besides weights, configuration and feature extractor.
_KEPT = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "normalizer.json", "sentencepiece.bpe.model", "processor_config.json",
    "LICENSE", "NOTICE",
)  # fmt: skip


def load_student(name: str, pad_to_max_length: bool = False) -> Student:
    """A speech encoder of a checkpoint folder or hub name, in float32; raises UserError that names what is wrong.

    pad_to_max_length: fill every utterance up to the longest that the encoder takes (Whisper).
    """
    config = load_pretrained(AutoConfig, name, "student")
    kind = config.model_type
    if kind in _REFUSED:
        raise UserError(f"student: a model of type {kind!r} cannot be distilled into: {_REFUSED[kind]}")
    if pad_to_max_length and kind != "whisper":
        raise UserError(f"pad_to_max_length: a student of type {kind!r} has no fixed length; expected Whisper")
    family = FAMILIES.get(kind, waveforms)
    if family is waveforms:
        waveforms.convolution_layout(config)
        model = load_pretrained(WholeModel(AutoModel), name, "student").float()
    else:
        model = _whole_model(name, config, family.CLASSES).float()
    extractor = _extractor(name, config, family.default_feature_extractor)
    options = {"pad_to_max_length": True} if pad_to_max_length else {}
    return _tried(family.student_of(model, extractor, _files(name), **options))


def _tried(student: Student) -> Student:
    """The student; raises UserError if its feature extractor fails, before anything else could be blamed for it."""
    front_end = student.front_end
    noise = np.random.default_rng(0).standard_normal(front_end.layout.shortest, dtype=np.float32)
    try:
        inputs, _ = front_end([noise])
        reason = "" if all(values.isfinite().all() for values in inputs.values()) else "it gives infinity or NaN"
    except Exception as error:  # whatever settings that do not fit each other make it raise
        reason = " ".join(str(error).split()) or type(error).__name__
    if reason:
        kind = type(front_end.extractor).__name__
        raise UserError(f"student: its feature extractor ({kind}) fails: {reason}; expected the one of its model")
    return student


def _whole_model(name: str, config, classes: tuple[str, ...]):
    """The model of a checkpoint with all that it holds, by the class that it names; raises UserError."""
    found = next((known for known in classes if known in (config.architectures or ())), classes[0])
    return load_pretrained(WholeModel(getattr(transformers, found)), name, "student")


def _extractor(name: str, config, default: Callable):
    """The checkpoint's feature extractor, or the default for its config, which is said; raises UserError."""
    saved, extractor = load_pretrained(SavedFeatureExtractor, name, "student"), default(config)
    if saved is not None:
        for size in ("feature_size", "num_mel_bins", "stride"):
            found, expected = getattr(saved, size, None), getattr(extractor, size, None)
            if expected not in (None, found):
                raise UserError(
                    f"student: its feature extractor has the {size} {shown(found)}, its model takes {shown(expected)}; "
                    "expected the files of one checkpoint"
                )
        return saved
    assumed = [f"{extractor.sampling_rate} Hz"]
    if getattr(extractor, "do_normalize", False):
        assumed.append("normalized")
    assumed.append("with a mask" if extractor.return_attention_mask else "without a mask")
    say(f"{name}: no feature extractor there; assumed: {', '.join(assumed)}")
    return extractor


class _KeptFiles:
    @staticmethod
    def from_pretrained(name: str) -> Path:
        """The folder of the kept files of a hub name, fetched if need be."""
        return Path(snapshot_download(name, allow_patterns=list(_KEPT)))


def _files(name: str) -> dict[str, bytes]:
    """The kept files of a checkpoint by name."""
    folder = Path(name) if Path(name).is_dir() else load_pretrained(_KeptFiles, name, "student")
    return {file: (folder / file).read_bytes() for file in _KEPT if (folder / file).is_file()}
