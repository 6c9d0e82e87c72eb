"""Loaders that check what transformers loads silently though it is not what was saved: weights, feature extractors,
text encoders."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForTextEncoding,
    AutoTokenizer,
    FeatureExtractionMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING
from transformers.utils import FEATURE_EXTRACTOR_NAME, PROCESSOR_NAME, cached_file

from pad.errors import shown
from pad.tokenization import lower_case

# Checkpoints may lack these: an encoder's embeddings do not depend on them.
_NOT_USED = re.compile(r"(^|\.)(pooler\..*|masked_spec_embed)$")
# What sentence-transformers has called the settings of a transformer.
_SENTENCE_SETTINGS = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]


class WholeModel:
    """A loader whose `from_pretrained` raises ValueError for a checkpoint that lacks weights of the model.

    transformers fills them with random ones.
    """

    def __init__(self, loader: Any):
        self.loader = loader

    def from_pretrained(self, name: str, **options):
        model, found = self.loader.from_pretrained(name, output_loading_info=True, **options)
        missing = sorted(key for key in found["missing_keys"] if not _NOT_USED.search(key))
        if missing:
            unknown = sorted(found["unexpected_keys"])
            beside = f"; it has {_some(unknown)}, which are not of the model" if unknown else ""
            kind = type(model).__name__
            raise ValueError(f"the checkpoint lacks {len(missing)} weights of {kind}: {_some(missing)}{beside}")
        return model


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class SavedFeatureExtractor:
    """A loader of the feature extractor saved with a model: by itself, or in a processor. None if there is none.

    Raises ValueError for a sampling rate or a padding value that cannot be.
    """

    @staticmethod
    def from_pretrained(name: str):
        try:
            _check_settings(FeatureExtractionMixin.get_feature_extractor_dict(name)[0])
            return AutoFeatureExtractor.from_pretrained(name)
        except (OSError, ValueError):
            if Path(name).is_dir() and not _says_extractor(Path(name)):
                return None
            raise


def _check_settings(settings: dict) -> None:
    """Raise ValueError for settings of a feature extractor that transformers takes, or refuses without their name."""
    rate, padding = settings.get("sampling_rate", 16000), settings.get("padding_value", 0.0)
    if type(rate) is not int or rate < 1:
        raise ValueError(
            f"its feature extractor has the sampling_rate {shown(rate)}; expected a whole number of Hz, such as 16000"
        )
    if type(padding) not in (int, float) or not math.isfinite(padding):
        raise ValueError(f"its feature extractor has the padding_value {shown(padding)}; expected a finite number")


def _says_extractor(folder: Path) -> bool:
    """Whether a folder has a feature extractor that transformers then failed to load."""
    if (folder / FEATURE_EXTRACTOR_NAME).exists():
        return True
    try:
        processor = json.loads((folder / PROCESSOR_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    return "feature_extractor" in processor  # earlier versions saved a processor without its parts


class TextEncoder:
    """A loader of a text encoder and its tokenizer: (model, tokenizer).

    Of an encoder-decoder it takes the encoder. A folder of sentence-transformers is read with its own settings: where
    the transformer lies, its longest text, lower case.
    """

    @staticmethod
    def from_pretrained(name: str):
        sentence = _SentenceTransformer.of(name)
        options = {"subfolder": sentence.subfolder} if sentence.subfolder else {}
        config = AutoConfig.from_pretrained(name, **options)
        # A saved T5EncoderModel says of itself that it is no encoder-decoder.
        alone = MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), None)
        encoder_alone = alone is not None and alone is not MODEL_MAPPING.get(type(config), None)
        model = WholeModel(AutoModelForTextEncoding if encoder_alone else AutoModel).from_pretrained(name, **options)
        if config.is_encoder_decoder and not encoder_alone:
            model = model.get_encoder()
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
        except Exception as error:  # transformers raises many kinds
            raise ValueError(f"it has a model, but no tokenizer: {error}") from error
        tokenizer.padding_side = "right"
        if sentence.longest is not None:
            tokenizer.model_max_length = min(tokenizer.model_max_length, sentence.longest)
        if sentence.lowercase:
            lower_case(tokenizer)
        return model, tokenizer


@dataclass(frozen=True)
class _SentenceTransformer:
    """What a folder of sentence-transformers says of its transformer."""

    subfolder: str = ""
    longest: int | None = None
    lowercase: bool = False

    @classmethod
    def of(cls, name: str) -> _SentenceTransformer:
        """The settings saved at `name`, or those of a plain checkpoint; raises ValueError for a model of words."""
        modules = _json(name, "modules.json")
        if not isinstance(modules, list) or not modules:
            return cls()
        kind, subfolder = str(modules[0].get("type", "")), str(modules[0].get("path", ""))
        if kind.rpartition(".")[2] != "Transformer":
            raise ValueError(f"its first module is {kind!r}; expected a Transformer of sentence-transformers")
        for file in _SENTENCE_SETTINGS:
            settings = _json(name, file, subfolder)
            if isinstance(settings, dict):
                return cls(subfolder, settings.get("max_seq_length"), bool(settings.get("do_lower_case", False)))
        return cls(subfolder)


def _json(name: str, file: str, subfolder: str = ""):
    """The content of a JSON file of a checkpoint folder or hub name, None if it has no such file."""
    path = cached_file(
        name,
        file,
        subfolder=subfolder,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
