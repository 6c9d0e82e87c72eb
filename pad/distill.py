"""One distillation run from settings to a saved student."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from tqdm import tqdm
from transformers import set_seed

from pad.batching import Collator, SpeechTextDataset
from pad.checkpoints import StopOnSignal, check_output, last_whole_checkpoint, save_student
from pad.config import DistillConfig
from pad.data import Report, load_utterances
from pad.errors import Stopped, UserError
from pad.models import FrameLayout, check_widths, load_student, load_teacher, width
from pad.objective import objective
from pad.progress import show_progress
from pad.settings import write_whole
from pad.teacher import Teacher
from pad.trainer import DistillationTrainer, StudentWithMap, training_arguments
from pad.versions import versions


def distill(config: DistillConfig) -> Path:
    """Distill as the settings say; gives the folder of the student, a plain transformers checkpoint.

    Everything the user may have got wrong is checked before the output folder is made. Raises UserError, and
    Stopped after a signal.
    """
    config.check()
    goal = objective(config.preset, config.temperature, config.prior_layers)
    output = Path(config.output)
    checkpoint = check_output(output, config.resume)
    set_seed(config.seed)
    student, extractor = load_student(config.student)
    depth = student.config.num_hidden_layers
    config.expect("prior_layers", all(layer < depth for layer in config.prior_layers), f"layers below {depth}")
    teacher_model, tokenizer = load_teacher(config.teacher)
    if not config.linear_map:
        check_widths(student, teacher_model)
    config.expect("pictures_every", not config.pictures_every or goal.level != "global" and not config.linear_map,
                  "0 for a global objective or with a linear map, which have no alignment to draw")  # fmt: skip
    if config.gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    layout = FrameLayout.of(student.config)
    report = Report(config.on_error)
    utterances = load_utterances(
        config.data,
        min_samples=layout.receptive_field,
        sampling_rate=extractor.sampling_rate,
        max_seconds=config.max_seconds,
        progress=lambda entries: tqdm(entries, desc="checking audio", unit="file", leave=False),
        report=report,
        download=config.download,
    )
    teacher = Teacher(teacher_model, tokenizer, goal.text_prior, config.teacher_layer, config.teacher_cache)
    dataset = SpeechTextDataset(utterances, extractor.sampling_rate, report=report)
    collator = Collator(extractor, tokenizer, layout)
    model = StudentWithMap(student, width(teacher_model)) if config.linear_map else student
    with stable_training(student, config.freeze_feature_encoder):
        trainer = DistillationTrainer(
            model=model,
            args=training_arguments(config, str(output / "checkpoints")),
            data_collator=collator,
            train_dataset=dataset,
            teacher=teacher,
            objective=goal,
            lengths=[item.duration for item in utterances],
        )
        main = trainer.is_world_process_zero()
        if main:
            print(f"{len(utterances)} utterances, {sum(item.duration for item in utterances) / 3600:.2f} h of speech")
        teacher_model.to(trainer.args.device)
        if config.center_teacher:
            teacher.centre(dataset.transcripts, trainer.args.device)
        show_progress(trainer, "distilling")
        if config.pictures_every:
            trainer.add_callback(_pictures(trainer, dataset, collator, teacher, goal, config.pictures_every, output))
        stop = StopOnSignal()
        trainer.add_callback(stop)
        if main:
            output.mkdir(parents=True, exist_ok=True)
            config.save(output / "config.yaml")
            write_whole(output / "versions.json", json.dumps(versions(), indent=2) + "\n")
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except UserError:  # an audio file whose header is sound and whose samples are not
            if main and last_whole_checkpoint(output / "checkpoints") is None:
                shutil.rmtree(output)
            raise
    if stop.number:
        raise Stopped(trainer.state.global_step, stop.number)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    folder = output / "student"
    if main:
        _save(model, extractor, folder, state)
        write_whole(output / "log.json", json.dumps(trainer.state.log_history, indent=1) + "\n")
        dataset.report_unreadable()
        if report.total:
            print(report)
        report.save(output / "left_out.json")
    return folder


def _pictures(trainer, dataset, collator, teacher, goal, every_steps: int, output: Path):
    """Of the first utterance that can be read."""
    from pad.looking.callback import AlignmentPictures

    item = next(item for item in (dataset[number] for number in range(len(dataset))) if item is not None)
    return AlignmentPictures(
        trainer, collator, teacher, goal, item["samples"], item["transcript"], every_steps, output
    )


def _save(model, extractor, folder: Path, state: dict) -> None:
    """The student, and beside it the map where there is one."""
    if isinstance(model, StudentWithMap):
        partial = folder.with_name(".map.partial")
        save_file({"weight": state["map.weight"].cpu().contiguous()}, partial)
        partial.replace(folder.with_name("map.safetensors"))
        state = {name.removeprefix("student."): value for name, value in state.items() if name.startswith("student.")}
        model = model.student
    save_student(model, extractor, folder, state)


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
