"""`pad distill`: from settings to a saved student."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, distributed, nn
from transformers import PretrainedConfig, TrainingArguments, set_seed

from pad.data import BadSample, Report, Utterance, load_utterances
from pad.digests import DIGESTS_FILE, check_digests, digest_of_tensors, save_digests
from pad.distill.checkpoints import StopOnSignal, after_divergence, checkpoint_to_resume, saving_to
from pad.distill.config import FREE_ON_RESUME, DistillConfig
from pad.distill.data_state import load_data_state
from pad.distill.divergence import check_finite
from pad.distill.manifest import rotate
from pad.distill.output import (
    CHECKPOINTS,
    PICTURES,
    STUDENT,
    TEACHER_MEAN,
    VERSIONS_FILE,
    Record,
    has_student,
    left_as_found,
    record_versions,
)
from pad.distill.progress import show_progress
from pad.distill.trainer import DistillationTrainer, StudentWithMap, training_arguments, try_models
from pad.errors import Diverged, Stopped, UserError
from pad.files import only_run, whole_file, write_json
from pad.models import check_teacher_layer, check_widths, load_teacher, width
from pad.processes import first_process
from pad.progress import counting, say
from pad.settings import SETTINGS_FILE, check_output
from pad.step.collate import Collator, SpeechTextDataset
from pad.step.objective import Objective
from pad.step.teacher import Teacher
from pad.students import FrontEnd, Student, load_student
from pad.tokenization import check_tokens, fault_of_text, lower_case, warn_of_case

_ABSENT = object()
_TRANSCRIPTS_LOOKED_AT = 200


@dataclass
class _Run:
    """What a run works with, loaded and checked."""

    config: DistillConfig
    arguments: TrainingArguments
    student: Student
    teacher_model: nn.Module
    teacher: Teacher
    model: nn.Module  # what is trained: the student's encoder, or with its linear map
    goal: Objective
    collator: Collator
    dataset: SpeechTextDataset
    digests: dict[str, str]
    record: Record


def distill(config: DistillConfig) -> Path:
    """Run a distillation and return the folder of the student, a plain transformers checkpoint.

    All input is checked before the output folder is made. Raises UserError for input that it cannot work with, and
    Stopped after a signal.
    """
    config.check()
    output, main = Path(config.output), first_process()
    _is_finished(config, makes_folder=main)
    run = _prepare(config)
    with only_run(output) if main else nullcontext():
        if distributed.is_initialized():
            distributed.barrier()
        # Again: another run may have begun or ended there since.
        if _is_finished(config):
            check_digests(output, run.digests)
            say(f"resume: the run in {output} is finished; its student stays as it is")
            return output / STUDENT
        checkpoint = checkpoint_to_resume(output / CHECKPOINTS) if config.resume else None
        if checkpoint is not None:
            check_digests(output, run.digests)
            load_data_state(checkpoint, run.dataset, run.arguments.world_size)
        _save_results(run, _train(run, checkpoint))
    run.teacher.write_cache()
    return output / STUDENT


def _is_finished(config: DistillConfig, makes_folder: bool = True) -> bool:
    """Whether the run has saved its student; UserError unless a run can write to its output folder."""
    output = Path(config.output)
    check_output(config, output, config.resume, FREE_ON_RESUME, makes_folder=makes_folder)
    return has_student(output)


def _prepare(config: DistillConfig) -> _Run:
    goal, output = config.objective(), Path(config.output)
    arguments = training_arguments(config, str(output / CHECKPOINTS))
    _refuse_data_parallel(arguments.n_gpu)
    set_seed(config.seed)
    student = load_student(config.student, config.pad_to_max_length)
    teacher_model, tokenizer = load_teacher(config.teacher)
    if config.lowercase:
        lower_case(tokenizer)
    _check_against_models(config, goal, student, teacher_model)
    collator = Collator(student.front_end, tokenizer)
    model = StudentWithMap(student.encoder, width(teacher_model)) if config.linear_map else student.encoder
    try_models(model, collator, Teacher(teacher_model, tokenizer, goal.text_prior, config.teacher_layer), goal)
    if config.gradient_checkpointing:
        _save_memory(student.encoder)
    report = Report(config.on_error)
    utterances = _with_tokens(_read_speech(config, student.front_end, report), tokenizer, report)
    dataset = SpeechTextDataset(utterances, student.front_end.sampling_rate, report=report)
    some = dataset.transcripts[:: len(dataset) // _TRANSCRIPTS_LOOKED_AT + 1]  # of all speakers, who come in order
    check_tokens(tokenizer, some)
    warn_of_case(tokenizer, some)
    teacher = Teacher(teacher_model, tokenizer, goal.text_prior, config.teacher_layer, config.teacher_cache)
    whole = student.encoder if student.whole is None else student.whole
    digests = {name: digest_of_tensors(each.state_dict()) for name, each in (("student", whole),
               ("teacher", teacher_model))}  # fmt: skip
    return _Run(
        config, arguments, student, teacher_model, teacher, model, goal, collator, dataset, digests, Record(output)
    )


def _train(run: _Run, checkpoint: Path | None) -> DistillationTrainer:
    """Train to the last step; raises Stopped after a signal."""
    config, output, main = run.config, run.record.output, first_process()
    utterances = run.dataset.utterances
    with stable_training(run.student, config.freeze_feature_encoder), saving_to(output), left_as_found(output):
        if main:  # before anything else: a folder with settings can be resumed
            run.record.keep(SETTINGS_FILE, config.save)
            run.record.keep(VERSIONS_FILE, record_versions)
            run.record.keep(DIGESTS_FILE, lambda path: save_digests(path.parent, run.digests))
        trainer = DistillationTrainer(
            model=run.model,
            args=run.arguments,
            data_collator=run.collator,
            train_dataset=run.dataset,
            processing_class=run.student.front_end.extractor,
            teacher=run.teacher,
            objective=run.goal,
            lengths=[item.duration for item in utterances],
        )
        noun = "utterance" if len(utterances) == 1 else "utterances"
        say(f"{len(utterances)} {noun}, {sum(item.duration for item in utterances) / 3600:.2f} h of speech")
        run.teacher_model.to(trainer.args.device)
        if config.center_teacher:
            mean = run.teacher.center(run.dataset.transcripts, trainer.args.device)
            if main:
                run.record.keep(TEACHER_MEAN, lambda path: _save_tensor("mean", mean, path))
        bar, stop = show_progress(trainer, "distilling"), StopOnSignal()
        if config.pictures_every:
            trainer.add_callback(_pictures(trainer, run))
        trainer.add_callback(stop)
        trainer.add_callback(run.record)
        if checkpoint is not None and main:
            _rotate_left(checkpoint, config.keep_checkpoints)
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            check_finite(run.model, trainer.args, trainer.state.global_step)
        except Diverged as error:
            if main:
                write_json(output / "log.json", trainer.state.log_history)
            raise Diverged(f"{error}; {after_divergence(output / CHECKPOINTS)}") from error
        finally:
            bar.close()
            stop.restore()
    if stop.number:
        raise Stopped(trainer.state.global_step, stop.number)
    return trainer


def _save_results(run: _Run, trainer: DistillationTrainer) -> None:
    output, report = run.record.output, run.dataset.report
    if not trainer.step_losses:
        say(f"resume: the run in {output} was finished at step {trainer.state.global_step}; its student is saved again")
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    run.dataset.leave_out(trainer.unreadable())
    if not first_process():
        return
    run.dataset.report_unreadable()
    with saving_to(output):
        run.record.complete()
        if trainer.step_losses or not (output / "log.json").exists():
            write_json(output / "log.json", trainer.state.log_history)
        report.save(output / "left_out.json")
        _save(run.student, output, state)
    if report.total:
        say(str(report))


def _refuse_data_parallel(gpus: int) -> None:
    """Raise UserError where Trainer would wrap the student in nn.DataParallel, whose copies are not recorded."""
    if gpus > 1:
        raise UserError(
            f"device: {gpus} GPUs and one process; expected a process for each GPU: torchrun --nproc-per-node {gpus} "
            "-m pad.cli distill ..., or accelerate launch -m pad.cli distill ...; or one GPU: CUDA_VISIBLE_DEVICES=0"
        )


def _check_against_models(config: DistillConfig, goal, student: Student, teacher) -> None:
    """Raise UserError for settings that do not fit the models."""
    goal.check_depth(student.layers)
    check_teacher_layer(config, config.teacher_layer, teacher)
    if not config.linear_map:
        check_widths(student.encoder, teacher)
    config.expect("pictures_every", not config.pictures_every or goal.level != "global" and not config.linear_map,
                  "0 with a global objective or a linear map, for which no alignment is drawn")  # fmt: skip


def _read_speech(config: DistillConfig, front_end: FrontEnd, report: Report) -> list[Utterance]:
    with counting("checking audio", "file") as counted:
        return load_utterances(
            config.data,
            min_samples=front_end.layout.shortest,
            max_samples=front_end.layout.longest,
            sampling_rate=front_end.sampling_rate,
            max_seconds=config.max_seconds,
            progress=counted,
            report=report,
            download=config.download,
        )


def _with_tokens(utterances: list[Utterance], tokenizer, report: Report) -> list[Utterance]:
    """The utterances whose transcripts the teacher can read whole; UserError if there are none."""
    kept = []
    for utterance, fault in zip(utterances, fault_of_text(tokenizer, [each.transcript for each in utterances])):
        if fault is None:
            kept.append(utterance)
        else:
            report.refuse(BadSample(f"{utterance.where}: {fault.message}", fault.reason))
    if not kept:
        raise UserError(f"data: no transcript that the teacher can read; {report}")
    return kept


def _rotate_left(checkpoint: Path, keep: int) -> None:
    """What a kill kept from being removed; a damaged checkpoint stays until the next one is saved."""
    rotate(checkpoint.parent, keep, int(checkpoint.name.rpartition("-")[2]), remove_later=False)


def _save_memory(encoder) -> None:
    # Renamed in transformers 5.23.
    enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _pictures(trainer: DistillationTrainer, run: _Run):
    """Pictures of the first utterance that can be read."""
    from pad.distill.pictures import AlignmentPictures

    items = (run.dataset[number] for number in range(len(run.dataset)))
    item = next(item for item in items if item is not None)
    return AlignmentPictures(
        trainer, run.collator, run.teacher, run.goal, item["samples"], item["transcript"], run.config.pictures_every,
        run.record.output / PICTURES,
    )  # fmt: skip


def _save(student: Student, output: Path, state: dict) -> None:
    """Save the linear map if the state has one, and last the student: by it a run is finished."""
    if "map.weight" in state:
        _save_tensor("weight", state["map.weight"], output / "map.safetensors")
        state = {name.removeprefix("student."): value for name, value in state.items() if name.startswith("student.")}
    if has_student(output):  # its name was free when the run began
        say(f"{output / STUDENT} was made by somebody else meanwhile; it stays as it is")
    else:
        student.save(output / STUDENT, state)


def _save_tensor(name: str, tensor: Tensor, path: Path) -> None:
    with whole_file(path) as file:
        file.write(save({name: tensor.cpu().contiguous()}))


@contextmanager
def stable_training(student: Student, freeze_feature_encoder: bool = False):
    """During training, switch off what would add noise to the target: SpecAugment and layer dropping (ours).

    The student's configs and modules have their settings back afterwards.
    """
    modules = list(student.encoder.modules())
    found = [config for module in modules if isinstance(config := getattr(module, "config", None), PretrainedConfig)]
    configs = list({id(config): config for config in found}.values())
    # Also where it is absent: data2vec has no such setting, and its model then masks.
    quiet: list[tuple[Any, str, bool | float]] = [(config, "apply_spec_augment", False) for config in configs]
    # Also of modules: Parakeet's encoder copies it from its config.
    quiet += [(owner, "layerdrop", 0.0) for owner in [*configs, *modules] if hasattr(owner, "layerdrop")]
    before: list[tuple[Any, str, Any]] = [(owner, name, getattr(owner, name, _ABSENT)) for owner, name, _ in quiet]
    for owner, name, value in quiet:
        setattr(owner, name, value)
    if freeze_feature_encoder:
        student.freeze_convolutions()
    try:
        yield
    finally:
        for owner, name, value in before:
            if value is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
