"""One utterance from settings to pictures."""

from __future__ import annotations

from pathlib import Path

from pad.batching import Collator
from pad.data import read_audio
from pad.errors import UserError
from pad.looking.alignment import look
from pad.looking.config import AlignConfig
from pad.looking.picture import draw, save
from pad.models import FrameLayout, check_widths, load_student, load_teacher
from pad.objective import objective
from pad.teacher import Teacher


def align_one(config: AlignConfig) -> list[Path]:
    """Draw one utterance; gives the pictures' paths. Raises UserError."""
    config.check()
    goal = objective(config.preset, config.temperature)
    config.expect("preset", goal.level != "global", "a preset of the token or span level, which align")
    transcript = _transcript(config)
    words = None if config.words is None else _words(Path(config.words))
    student, extractor = load_student(config.student)
    model, tokenizer = load_teacher(config.teacher)
    check_widths(student, model)
    layout = FrameLayout.of(student.config)
    samples = read_audio(config.audio, extractor.sampling_rate)
    if len(samples) < layout.receptive_field:
        raise UserError(
            f"audio: {config.audio} has {len(samples)} samples, expected at least {layout.receptive_field}, one frame"
        )
    teacher = Teacher(model, tokenizer, with_prior=False)
    utterance = look(student, Collator(extractor, tokenizer, layout), teacher, goal, samples, transcript, words)
    return save(draw(utterance), Path(config.output))


def _transcript(config: AlignConfig) -> str:
    transcript = config.transcript.strip()
    if not transcript:
        beside = Path(config.audio).with_suffix(".txt")
        try:
            transcript = " ".join(beside.read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"transcript: none is given, and {beside} cannot be read: {error}") from error
    if not transcript:
        raise UserError("transcript: it is empty; expected what is said")
    return transcript


def _words(path: Path) -> list[tuple[float, float, str]]:
    """Lines of start, end (seconds) and word, parted by tabs."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"words: {path} cannot be read: {error}") from error
    words = []
    for number, line in enumerate(lines, start=1):
        parts = line.split("\t")
        try:
            start, end, word = float(parts[0]), float(parts[1]), parts[2]
        except (ValueError, IndexError) as error:
            raise UserError(f"{path}:{number}: expected start, tab, end, tab, word, got {line!r}") from error
        words.append((start, end, word))
    return words
