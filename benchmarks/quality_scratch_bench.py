"""Every preset against its baseline without priors, for the demo's small student that is trained from scratch.

`python -m benchmarks.quality_scratch_bench [--seeds 0 1 2] [--presets ...] [--steps 100]`. Downstream: intent accuracy
of a linear probe on the frozen student, on phrasings and voices it has not heard. Alignment: how often the unit that
the preset aligns with a word (frame or span) overlaps the word's true time. `pad-tlocal-soft:0` is that preset with the
speech prior of layer 0 alone. What is done is kept in the output file, and a run that was interrupted goes on after it.
"""

import argparse
import copy
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import set_seed
from transformers.utils import logging

from benchmarks import accelerator, machine, results
from pad.demo.config import DemoRecipe
from pad.demo.corpus import SAMPLING_RATE
from pad.demo.evaluator import Evaluator, build_corpus
from pad.demo.packaged import teacher_folder
from pad.demo.probe import mean_states
from pad.demo.run import distill_on, warm_up_on
from pad.demo.student import new_student
from pad.demo.words import encode, unit_hit_rate, word_hit_rate
from pad.models import load_teacher, width
from pad.step.collate import Collator, SpeechTextDataset
from pad.step.objective import PRESETS, objective
from pad.step.teacher import Teacher

UNDISTILLED = "undistilled"
# Two names of one objective are run once; a preset that names layers was chosen for another encoder.
DIFFERENT = [
    name
    for name, goal in PRESETS.items()
    if name == next(n for n, g in PRESETS.items() if g == goal) and goal.prior_layers is None
]

RUNS = [*DIFFERENT, "pad-tlocal-soft:0", "pad-tlocal-soft:1"]


class Seed:
    """One seed's corpus, student and teacher, made once for all presets."""

    def __init__(self, config: DemoRecipe, scratch: Path):
        self.config, self.scratch = config, scratch
        set_seed(config.seed)
        self.corpus = build_corpus(config, scratch / "speech", lambda count=1: None)
        self.model, self.tokenizer = load_teacher(teacher_folder())
        student = new_student(width(self.model), seed=config.seed)
        self.student, self.collator = student.encoder, Collator(student.front_end, self.tokenizer)
        warm_up_on(self.student, self.corpus, config, lambda: None)
        self.teachers: dict[bool, Teacher] = {}

    def teacher(self, with_prior: bool) -> Teacher:
        """The teacher, its outputs kept, with or without its prior."""
        if with_prior not in self.teachers:
            teacher = Teacher(self.model, self.tokenizer, with_prior, cache="memory")
            teacher.center([item.transcript for item in self.corpus.free["train"]], "cpu")
            self.teachers[with_prior] = teacher
        return self.teachers[with_prior]

    def run(self, preset: str) -> dict:
        """Distill with a preset and score the student on the test split."""
        student, losses = copy.deepcopy(self.student), []
        name, _, layer = ("tlocal" if preset == UNDISTILLED else preset).partition(":")
        goal = objective(name, prior_layers=(int(layer),) if layer else ())
        started = time.perf_counter()
        if preset != UNDISTILLED:
            dataset = SpeechTextDataset(self.corpus.free["train"], SAMPLING_RATE)
            losses = distill_on(
                student, dataset, self.collator, self.teacher(goal.text_prior), goal, self.config,
                self.scratch / preset, f"seed {self.config.seed}, {preset}",
            )  # fmt: skip
        seconds = time.perf_counter() - started
        evaluator = Evaluator(self.corpus, {}, self.collator, self.teacher(False), goal)
        free = self.corpus.free["test"]
        heard = encode(student, self.collator, SpeechTextDataset(free, SAMPLING_RATE), with_prior=True)
        spoken = {split: evaluator.encode(student, self.corpus.commands[split]) for split in ("train", "dev", "test")}
        words, embeddings = [item.words for item in free], [evaluator.words_of(item.transcript) for item in free]
        probe = evaluator.probe({split: mean_states(frames) for split, frames in spoken.items()})
        return {
            "seed": self.config.seed,
            "preset": preset,
            "probe_accuracy": probe["accuracy"],
            "frame_hits": word_hit_rate(heard, words, embeddings),
            "unit_hits": {
                name: unit_hit_rate(heard, words, embeddings, PRESETS[name])
                for name in ("pad-slocal", "no-prior", "no-span-pool", "pad-tlocal", "tlocal")
            },
            "loss": {"first": sum(losses[:5]) / 5, "last": sum(losses[-20:]) / 20} if losses else None,
            "seconds": round(seconds, 1),
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--presets", nargs="+", choices=[*PRESETS, *RUNS[-2:]], default=RUNS, help="default: all")
    parser.add_argument("--steps", type=int, default=100, help="distillation steps of each run (default: 100)")
    parser.add_argument("--output", type=Path, default=results.FOLDER / "quality_scratch.json")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    description = machine.describe(accelerator.Cpu(), torch.get_num_threads())
    content = {"machine": description, "steps": arguments.steps, "runs": []}
    if arguments.output.is_file():
        before = results.read_json(arguments.output)
        if before["steps"] != arguments.steps:
            parser.error(f"{arguments.output} holds runs of {before['steps']} steps; give another --output")
        content["runs"] = before["runs"]
    done = {(run["seed"], run["preset"]) for run in content["runs"]}
    for number in arguments.seeds:
        missing = [name for name in (UNDISTILLED, *arguments.presets) if (number, name) not in done]
        if not missing:
            continue
        config = replace(DemoRecipe.of(True, False, number), steps=arguments.steps, commands_per_intent=60)
        with tempfile.TemporaryDirectory() as scratch:
            seed = Seed(config, Path(scratch))
            for name in missing:
                content["runs"].append(seed.run(name))
                results.write_json(arguments.output, content)
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    main()
