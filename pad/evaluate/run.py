"""`pad evaluate`: from settings to a table of every model on every task."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from pad.digests import check_digests, digest_of_items, digest_of_tensors, save_digests
from pad.errors import Diverged, UserError
from pad.evaluate import corpora
from pad.evaluate.config import FREE_ON_RESUME, EvaluateConfig
from pad.evaluate.encoder import Encoder
from pad.evaluate.features import all_states, means
from pad.evaluate.snips import snips
from pad.evaluate.states import load_state, save_state
from pad.evaluate.tasks import (
    PUBLISHED_EVAL_EVERY,
    PUBLISHED_STEPS,
    Sentences,
    Split,
    Task,
    slot_task,
    utterance_task,
)
from pad.evaluate.training import Schedule, train
from pad.files import only_run, write_json, write_text
from pad.progress import say
from pad.settings import SETTINGS_FILE, check_output, settings_file
from pad.versions import versions

_COLUMNS = (
    ("ic", "accuracy", "IC accuracy %"),
    ("er", "accuracy", "ER accuracy %"),
    ("sf", "slot_type_f1", "SF slot-type F1 %"),
    ("sf", "slot_value_cer", "SF slot-value CER %"),
)


class _Corpus:
    """A task's corpus, read and checked: its folds, and the duration of each example in seconds."""

    def __init__(self, task: str, config: EvaluateConfig, limits: tuple[float, float]):
        folder = Path(getattr(config, task))
        if not folder.is_dir():
            raise UserError(f"{task}: {folder} is not a folder; expected the folder of the corpus")
        if task == "ic":
            splits, self.classes = corpora.fluent_speech_commands(folder)
            self.folds = [splits]
        elif task == "er":
            self.folds = corpora.leave_one_session_out(corpora.iemocap(folder), config.seed)
            self.classes = (len(corpora.EMOTIONS),)
        else:
            splits, self.slots = snips(folder)
            self.folds = [splits]
        self.task = task
        first = self.folds[0]
        self.examples = [*first.train, *first.dev, *first.test]
        self.seconds = dict(zip(self.examples, corpora.durations(self.examples, *limits)))

    def digest(self) -> str:
        """Of the examples in order: the audio's name and duration, and the label."""
        return digest_of_items(
            (example.audio.name, example.label, self.seconds[example])
            for fold in self.folds for part in (fold.train, fold.dev, fold.test) for example in part
        )  # fmt: skip

    def seconds_of(self, examples: Sequence[corpora.Example]) -> list[float]:
        return [self.seconds[example] for example in examples]


def evaluate(config: EvaluateConfig) -> dict:
    """Evaluate the student, and the baseline if there is one, on every task whose corpus is given.

    Returns the content of OUTPUT/results.json (results.txt: its table): {"settings", "versions", "results"}, with
    results[task][model] for the models student and baseline: "metrics" on test, the "learning_rate" chosen on dev,
    "steps", "sweep" (the dev score of each learning rate) and "folds" (five for IEMOCAP), whose mean is given as the
    metrics. Metrics: accuracy; for slot filling slot_type_f1 and slot_value_cer; as fractions, not percentages.

    All input is checked before the output folder is made. Raises UserError.
    """
    config.check()
    output = Path(config.output)
    check_output(config, output, config.resume, FREE_ON_RESUME)
    device = torch.device("cuda" if config.device == "auto" and torch.cuda.is_available() else "cpu")
    names = {"student": config.student, "baseline": config.baseline}
    encoders = {
        role: Encoder(name, role, device, config.pad_to_max_length) for role, name in names.items() if name is not None
    }
    limits = (max(each.shortest for each in encoders.values()), min(each.longest for each in encoders.values()))
    corpora_read = [_Corpus(task, config, limits) for task in config.tasks]
    digests = {role: digest_of_tensors(encoder.model.state_dict()) for role, encoder in encoders.items()}
    digests |= {corpus.task: corpus.digest() for corpus in corpora_read}

    with only_run(output):
        # Again: another run may have begun or ended there since.
        check_output(config, output, config.resume, FREE_ON_RESUME)
        if config.resume and settings_file(output) is None:
            say(f"resume: no run in {output} yet; starting one")
        if config.resume:
            check_digests(output, digests)
        config.save(output / SETTINGS_FILE)
        save_digests(output, digests)
        settings = {**asdict(config), "lr_sweep": list(config.lr_sweep)}
        result: dict = {"settings": settings, "versions": versions("soundfile", "soxr"), "results": {}}
        for corpus in corpora_read:
            of_task = result["results"].setdefault(corpus.task, {})
            for role, encoder in encoders.items():
                of_task[role] = _evaluate(corpus, encoder, config, output)
                write_json(output / "results.json", result)
        write_text(output / "results.txt", table(result) + "\n")
        shutil.rmtree(output / "features", ignore_errors=True)
    return result


def _tasks(corpus: _Corpus, encoder: Encoder, config: EvaluateConfig, features: Path) -> list[Task]:
    """One task per fold."""
    reading = {"batch_size": config.batch_size, "workers": config.workers}
    title = f"encoding {corpus.task} {encoder.role}"
    if corpus.task == "sf":
        splits = []
        for examples in (corpus.folds[0].train, corpus.folds[0].dev, corpus.folds[0].test):
            seconds = corpus.seconds_of(examples)
            states = None
            if config.cache_features:
                states = all_states(encoder, examples, seconds, title, **reading)
            splits.append(Split(Sentences(examples, encoder.sampling_rate, states), seconds))
        return [slot_task(encoder, splits, corpus.slots, config.slot_width, config.spec_augment)]
    seconds = corpus.seconds_of(corpus.examples)
    rows = means(encoder, corpus.examples, seconds, features, title, **reading)
    places = {example: place for place, example in enumerate(corpus.examples)}

    def split(examples: Sequence[corpora.Example]) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.tensor([example.label for example in examples])
        return rows[[places[example] for example in examples]], labels

    return [
        utterance_task([split(fold.train), split(fold.dev), split(fold.test)], corpus.classes, encoder.device)
        for fold in corpus.folds
    ]


def _evaluate(corpus: _Corpus, encoder: Encoder, config: EvaluateConfig, output: Path) -> dict:
    """Train a head for each learning rate and fold; the learning rate with the best mean on dev is reported."""
    schedule = Schedule(
        steps=config.max_steps or PUBLISHED_STEPS[corpus.task],
        eval_every=config.eval_every or PUBLISHED_EVAL_EVERY[corpus.task],
        save_every=config.save_every,
        batch_size=config.batch_size,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        workers=config.workers,
    )
    name = f"{corpus.task}-{encoder.role}"
    done = output / "trials" / name / "judged.pt"
    record = load_state(done)
    if record is not None:
        return record
    tasks = _tasks(corpus, encoder, config, output / "features" / name)
    metric = tasks[0].metric
    sweep = []
    for rate in config.lr_sweep:
        trials = []
        for number, task in enumerate(tasks, start=1):
            fold = f" fold {number}" if len(tasks) > 1 else ""
            folder = output / "trials" / name / f"lr-{rate!r}-fold-{number}"
            trials.append(train(task, schedule, rate, folder, f"{name} lr {rate:g}{fold}", encoder.device))
        sweep.append((_mean(trial["dev"][metric] for trial in trials), trials))
    if all(any("diverged" in trial for trial in trials) for _, trials in sweep):
        raise Diverged(f"{name}: training diverged with each learning rate; smaller ones in lr_sweep may help")
    _, chosen = max(sweep, key=lambda item: item[0])
    record = {
        "metrics": {key: _mean(trial["test"][key] for trial in chosen) for key in chosen[0]["test"]},
        "learning_rate": chosen[0]["learning_rate"],
        "steps": schedule.steps,
        "sweep": [{"learning_rate": trials[0]["learning_rate"], "dev": dev} for dev, trials in sweep],
        "folds": chosen,
    }
    save_state(record, done)
    shutil.rmtree(output / "features" / name, ignore_errors=True)  # may be large, and other tasks follow
    return record


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def table(result: dict) -> str:
    """The metrics in per cent as a table of text, a row per model and a column per metric, with notes below."""
    results = result["results"]
    columns = [column for column in _COLUMNS if column[0] in results]
    roles = list(dict.fromkeys(role for of_task in results.values() for role in of_task))
    rows = [["model", *(title for _, _, title in columns)]]
    for role in roles:
        scores = [results[task][role]["metrics"][metric] for task, metric, _ in columns]
        rows.append([role, *(f"{100 * value:.2f}" for value in scores)])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
    lines += ["", "Test split, at the step and learning rate that were best on dev. Higher is better"]
    lines[-1] += "; for the error rate CER, lower." if "sf" in results else "."
    for role in roles:
        lines.append(f"{role}: {result['settings'][role]}")
    for task, of_task in results.items():
        steps = of_task[roles[0]]["steps"]
        if steps != PUBLISHED_STEPS[task]:
            lines.append(f"{task}: {steps} steps of training, not SUPERB's {PUBLISHED_STEPS[task]}")
    return "\n".join(lines)
