"""One distillation run from settings to a saved student."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from pad.batching import Collator, SpeechTextDataset
from pad.config import DistillConfig
from pad.data import load_utterances
from pad.errors import UserError
from pad.models import FrameLayout, check_widths, load_student, load_teacher
from pad.objective import objective
from pad.progress import show_progress
from pad.teacher import Teacher
from pad.trainer import DistillationTrainer, training_arguments


def distill(config: DistillConfig) -> Path:
    """Distill as the settings say; gives the folder of the student, a plain transformers checkpoint.

    Everything the user may have got wrong is checked before the output folder is made. Raises UserError.
    """
    config.check()
    goal = objective(config.preset, config.temperature)
    output = Path(config.output)
    checkpoint = _check_output(output, config.resume)
    set_seed(config.seed)
    student, extractor = load_student(config.student, attention_maps=goal.speech_prior)
    teacher_model, tokenizer = load_teacher(config.teacher, attention_maps=goal.text_prior)
    check_widths(student, teacher_model)
    layout = FrameLayout.of(student.config)
    utterances = load_utterances(
        config.data,
        min_samples=layout.receptive_field,
        sampling_rate=extractor.sampling_rate,
        max_seconds=config.max_seconds,
        progress=lambda entries: tqdm(entries, desc="checking audio", unit="file", leave=False),
    )
    print(f"{len(utterances)} utterances, {sum(item.duration for item in utterances) / 3600:.2f} h of speech")

    teacher = Teacher(teacher_model, tokenizer, goal.text_prior, config.teacher_layer, config.cache_teacher)
    dataset = SpeechTextDataset(utterances, extractor.sampling_rate)
    with stable_training(student, config.freeze_feature_encoder):
        trainer = DistillationTrainer(
            model=student,
            args=training_arguments(config, str(output / "checkpoints")),
            data_collator=Collator(extractor, tokenizer, layout),
            train_dataset=dataset,
            teacher=teacher,
            objective=goal,
            lengths=[item.duration for item in utterances],
        )
        teacher_model.to(trainer.args.device)
        if config.center_teacher:
            teacher.centre(dataset.transcripts, trainer.args.device)
        show_progress(trainer, "distilling")
        output.mkdir(parents=True, exist_ok=True)
        config.save(output / "settings.json")
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except UserError:  # an audio file whose header is sound and whose samples are not
            if get_last_checkpoint(str(output / "checkpoints")) is None:
                shutil.rmtree(output)
            raise
    folder = save_student(student, extractor, output / "student")
    (output / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")
    return folder


def _check_output(output: Path, resume: bool) -> str | None:
    """The checkpoint to go on from, None for a fresh run; raises UserError if the folder does not fit."""
    if output.exists() and not output.is_dir():
        raise UserError(f"output: {output} is a file, expected a folder")
    if not resume:
        if output.exists() and any(output.iterdir()):
            raise UserError(
                f"output: the folder {output} is not empty; choose another, or --resume to go on there"
            )
        return None
    checkpoints = output / "checkpoints"
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    if last is None:
        raise UserError(f"resume: no checkpoint in {checkpoints}")
    return last


@contextmanager
def stable_training(student, freeze_feature_encoder: bool = False):
    """For training, switch off what would blur the target: SpecAugment masks and dropped layers (ours).

    The student's config is as before afterwards.
    """
    kept = {name: getattr(student.config, name) for name in ("apply_spec_augment", "layerdrop")
            if hasattr(student.config, name)}  # fmt: skip
    for name in kept:
        setattr(student.config, name, type(kept[name])(0))
    if freeze_feature_encoder:
        student.feature_extractor._freeze_parameters()
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(student.config, name, value)


def save_student(student, extractor, folder: Path) -> Path:
    """Save a student and its feature extractor; the folder appears whole, under its name, or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        student.save_pretrained(partial)
        extractor.save_pretrained(partial)
        os.chmod(partial, 0o755)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder
