"""`pad distill`: from settings to a saved student."""

from __future__ import annotations

import shutil
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, distributed
from transformers import PretrainedConfig, set_seed

from pad.data import BadSample, Report, Utterance, load_utterances
from pad.digests import check_digests, digest_of_tensors, save_digests
from pad.distill.checkpoints import (
    StopOnSignal,
    after_divergence,
    checkpoint_to_resume,
    last_whole_checkpoint,
    saving_to,
)
from pad.distill.config import FREE_ON_RESUME, DistillConfig
from pad.distill.data_state import load_data_state
from pad.distill.divergence import check_finite
from pad.distill.manifest import rotate
from pad.distill.progress import show_progress
from pad.distill.trainer import DistillationTrainer, StudentWithMap, training_arguments, try_models
from pad.errors import Diverged, Stopped, UserError
from pad.files import holds_output, only_run, whole_file, write_json
from pad.models import check_teacher_layer, check_widths, load_teacher, width
from pad.processes import first_process
from pad.progress import counting, say
from pad.settings import SETTINGS_FILE, check_output
from pad.step.collate import Collator, SpeechTextDataset
from pad.step.teacher import Teacher
from pad.students import FrontEnd, Student, load_student
from pad.tokenization import check_tokens, fault_of_text, lower_case, warn_of_case
from pad.versions import versions

_ABSENT = object()
_TRANSCRIPTS_LOOKED_AT = 200


def distill(config: DistillConfig) -> Path:
    """Run a distillation and return the folder of the student, a plain transformers checkpoint.

    All input is checked before the output folder is made. Raises UserError for input that it cannot work with, and
    Stopped after a signal.
    """
    config.check()
    goal = config.objective()
    output = Path(config.output)
    folder, main = output / "student", first_process()
    check_output(config, output, config.resume, FREE_ON_RESUME, makes_folder=main)
    arguments = training_arguments(config, str(output / "checkpoints"))
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
    with only_run(output) if main else nullcontext():
        if distributed.is_initialized():
            distributed.barrier()
        # Again: another run may have begun or ended there since.
        check_output(config, output, config.resume, FREE_ON_RESUME)
        checkpoint = checkpoint_to_resume(config)
        if config.resume and checkpoint is None and folder.is_dir():
            say(f"resume: the run in {output} is finished, its checkpoints are gone; its student stays as it is")
            return folder
        if checkpoint is not None:
            check_digests(output, digests)
            load_data_state(Path(checkpoint), dataset, arguments.world_size)
        with stable_training(student, config.freeze_feature_encoder), saving_to(output), _left_as_found(output):
            if main:  # before anything else: a folder with settings can be resumed
                config.save(output / SETTINGS_FILE)
                write_json(output / "versions.json", versions())
                save_digests(output, digests)
            trainer = DistillationTrainer(
                model=model,
                args=arguments,
                data_collator=collator,
                train_dataset=dataset,
                processing_class=student.front_end.extractor,
                teacher=teacher,
                objective=goal,
                lengths=[item.duration for item in utterances],
            )
            say(f"{len(utterances)} utterances, {sum(item.duration for item in utterances) / 3600:.2f} h of speech")
            teacher_model.to(trainer.args.device)
            if config.center_teacher:
                mean = teacher.center(dataset.transcripts, trainer.args.device)
                if main:
                    _save_tensor("mean", mean, output / "teacher_mean.safetensors")
            bar = show_progress(trainer, "distilling")
            if config.pictures_every:
                trainer.add_callback(
                    _pictures(trainer, dataset, collator, teacher, goal, config.pictures_every, output)
                )
            stop = StopOnSignal()
            trainer.add_callback(stop)
            if checkpoint is not None and main:
                _rotate_left(Path(checkpoint), config.keep_checkpoints)
            try:
                trainer.train(resume_from_checkpoint=checkpoint)
                check_finite(model, trainer.args, trainer.state.global_step)
            except Diverged as error:
                if main:
                    write_json(output / "log.json", trainer.state.log_history)
                raise Diverged(f"{error}; {after_divergence(output / 'checkpoints')}") from error
            finally:
                bar.close()
                stop.restore()
        if stop.number:
            raise Stopped(trainer.state.global_step, stop.number)
        if not trainer.step_losses:
            step = trainer.state.global_step
            say(f"resume: the run in {output} was finished at step {step}; its student is saved again")
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        dataset.leave_out(trainer.unreadable())
        if main:
            dataset.report_unreadable()
            with saving_to(output):
                _save(student, folder, state)
                if trainer.step_losses or not (output / "log.json").exists():
                    write_json(output / "log.json", trainer.state.log_history)
                report.save(output / "left_out.json")
            if report.total:
                print(report)
    teacher.write_cache()
    return folder


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


def _pictures(trainer, dataset, collator, teacher, goal, every_steps: int, output: Path):
    """Pictures of the first utterance that can be read."""
    from pad.distill.pictures import AlignmentPictures

    item = next(item for item in (dataset[number] for number in range(len(dataset))) if item is not None)
    return AlignmentPictures(trainer, collator, teacher, goal, item["samples"], item["transcript"], every_steps, output)


def _save(student: Student, folder: Path, state: dict) -> None:
    """Save the student and, next to it, the linear map if the state has one."""
    if "map.weight" in state:
        _save_tensor("weight", state["map.weight"], folder.with_name("map.safetensors"))
        state = {name.removeprefix("student."): value for name, value in state.items() if name.startswith("student.")}
    student.save(folder, state)


def _save_tensor(name: str, tensor: Tensor, path: Path) -> None:
    with whole_file(path) as file:
        file.write(save({name: tensor.cpu().contiguous()}))


@contextmanager
def _left_as_found(output: Path):
    """Remove the output of a new run if a UserError ends it before its first checkpoint.

    An example is an audio file whose header can be read and whose samples cannot.
    """
    new = not holds_output(output)
    try:
        yield
    except UserError:
        if new and first_process() and last_whole_checkpoint(output / "checkpoints") is None:
            shutil.rmtree(output, ignore_errors=True)
        raise


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
