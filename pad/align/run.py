"""`pad align`: from settings to pictures."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pad.align.config import AlignConfig
from pad.align.picture import draw, picture_files, save
from pad.align.utterance import align_utterance
from pad.data import read_audio
from pad.data.manifests import read_lines
from pad.data.report import Report
from pad.errors import UserError, reason, shown
from pad.files import refusing_output, try_folder
from pad.models import check_teacher_layer, load_teacher, width
from pad.step.collate import Collator
from pad.step.teacher import Teacher
from pad.students import load_student
from pad.tokenization import fault_of_text, lower_case

# Seconds by which the times of words may be beyond the audio's end.
_ROUNDED = 0.1


def align_one(config: AlignConfig) -> list[Path]:
    """Draw one utterance and return the paths of the pictures; raises UserError."""
    config.check()
    goal = config.objective()
    config.expect("preset", goal.level != "global", "a preset of the token or span level")
    config.expect("audio", Path(config.audio).is_file(), "an audio file that exists")
    output = Path(config.output)
    output = output.with_suffix("") if output.suffix in (".png", ".svg") else output
    with refusing_output(output):
        _check_pictures(config, output)
        try_folder(output.parent)
    transcript = _transcript(config)
    words = None if config.words is None else _words(Path(config.words))
    student = load_student(config.student, config.pad_to_max_length)
    goal.check_depth(student.layers)
    model, tokenizer = load_teacher(config.teacher)
    if config.lowercase:
        lower_case(tokenizer)
    (fault,) = fault_of_text(tokenizer, [transcript])
    if fault is not None:
        raise UserError(f"transcript: {fault.message}")
    linear_map = _linear_map(config.linear_map, width(student.encoder), width(model))
    samples = read_audio(config.audio, student.front_end.sampling_rate)
    try:
        student.front_end.check_length(len(samples))
    except UserError as error:
        raise UserError(f"audio: {config.audio}: {str(error).removeprefix('audio: ')}") from error
    if words is not None:
        _check_within(words, len(samples) / student.front_end.sampling_rate)
    check_teacher_layer(config, config.teacher_layer, model)
    teacher = Teacher(model, tokenizer, goal.text_prior, config.teacher_layer)
    if config.teacher_mean is not None:
        teacher.mean = _saved("teacher_mean", config.teacher_mean, "mean", (width(model),))
    collator = Collator(student.front_end, tokenizer)
    times = None if words is None else list(words.values())
    utterance = align_utterance(student.encoder, collator, teacher, goal, samples, transcript, times, linear_map)
    with refusing_output(output):
        _check_pictures(config, output)  # again: another process may have drawn them since
        return save(draw(utterance), output, shared=True)


def _check_pictures(config: AlignConfig, output: Path) -> None:
    """Raise UserError for a picture that is there and may not be overwritten."""
    for path in picture_files(output):
        if path.exists() and not config.overwrite:
            raise UserError(f"output: {path} exists; choose another path, or --overwrite to replace it")


def _linear_map(path: str | None, of_student: int, of_teacher: int) -> torch.Tensor | None:
    """The map from the teacher's width to the student's, None if they are equal."""
    if path is None:
        if of_student != of_teacher:
            raise UserError(
                f"student and teacher have different widths: {of_student} and {of_teacher}; "
                "choose two of one width, or give the map.safetensors of the student's run as --linear-map"
            )
        return None
    return _saved("linear_map", path, "weight", (of_student, of_teacher))


def _saved(setting: str, path: str, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor that `pad distill` saved next to the student."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{setting}: {path} is no file that pad distill has saved: {error}") from error
    if name not in tensors:
        raise UserError(f"{setting}: {path} is no file that pad distill has saved: it has no tensor {name!r}")
    tensor = tensors[name]
    if tuple(tensor.shape) != shape:
        raise UserError(f"{setting}: expected the shape {shape}, got {tuple(tensor.shape)}")
    return tensor


def _transcript(config: AlignConfig) -> str:
    transcript = config.transcript.strip()
    if config.transcript == "":
        beside = Path(config.audio).with_suffix(".txt")
        try:
            transcript = " ".join(beside.read_text(encoding="utf-8-sig").split())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"transcript: none is given, and {beside} cannot be read: {reason(error)}") from error
    if not transcript:
        raise UserError("transcript: it is empty; expected the words that are spoken")
    return transcript


def _words(path: Path) -> dict[str, tuple[float, float, str]]:
    """Start, end (seconds) and word, separated by tabs, of each line that is not blank, by its file and number."""
    words = {}
    try:
        for where, line in read_lines(path, Report()):
            parts = line.split("\t")
            try:
                start, end, word = float(parts[0]), float(parts[1]), parts[2].strip()
            except (ValueError, IndexError) as error:
                raise UserError(f"{where}: expected start, tab, end, tab, word, got {shown(line)}") from error
            if not 0 <= start <= end < math.inf:
                raise UserError(f"{_spoken(where, start, end, word)}; expected finite times with 0 <= start <= end")
            words[where] = start, end, word
    except UserError as error:
        raise UserError(f"words: {error}") from error
    return words


def _check_within(words: dict[str, tuple[float, float, str]], seconds: float) -> None:
    """Raise UserError for a word that ends after the audio of so many seconds; times may be rounded."""
    for where, (start, end, word) in words.items():
        if end > seconds + _ROUNDED:
            raise UserError(
                f"words: {_spoken(where, start, end, word)}; expected times within the audio, which lasts "
                f"{seconds:.2f} s"
            )


def _spoken(where: str, start: float, end: float, word: str) -> str:
    return f"{where}: {shown(word)} is spoken from {start:g} s to {end:g} s"
