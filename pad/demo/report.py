"""The report of a demo run."""

from __future__ import annotations

from pathlib import Path

from pad.demo.evaluator import Evaluator, Scores
from pad.demo.intervals import Counts
from pad.demo.sentences import INTENTS

EXPLAINED = {
    "undistilled": "the student before distillation",
    "distilled": "after distillation on speech and its text",
    "shuffled": "a control, distilled on speech and the text of other speech: it should score like undistilled",
    "random": "a control with random weights instead of the pretrained ones, distilled as the student was",
}


def measures(scores: dict[str, Scores]) -> dict[str, dict[str, Counts]]:
    """The counts of each measure by student, with the names that the report and the pictures use."""

    def of(pick) -> dict[str, Counts]:
        return {name: pick(score) for name, score in scores.items()}

    sources = next(iter(scores.values())).recordings
    real = {f"word_hit_rate_real: {source}": of(lambda score, s=source: score.recordings[s]) for source in sources}
    return {
        "word_hit_rate": of(lambda score: score.words),
        **real,
        "retrieval_at_1": of(lambda score: score.sentences),
        "probe_accuracy": of(lambda score: score.intents),
    }


def _rates(counts: dict[str, Counts]) -> dict[str, float]:
    chance = next(iter(counts.values())).chance_rate
    return {"chance": chance, **{name: found.rate for name, found in counts.items()}}


def figures(scores: dict[str, Scores], evaluator: Evaluator, losses: dict[str, list[float]]) -> dict:
    """The numbers of a report. scores: by student; losses: of every training step, by run."""
    counts = measures(scores)
    first = next(iter(scores.values()))

    def average(values: list[float]) -> float:
        return sum(values) / len(values)

    return {
        "word_hit_rate": _rates(counts["word_hit_rate"]),
        "probe_accuracy": {name: found.rate for name, found in counts["probe_accuracy"].items()},
        "word_hit_rate_real": {
            source: {
                **_rates(counts[f"word_hit_rate_real: {source}"]),
                "words": int(found.trials.sum()),
                "utterances": len(found.trials),
            }
            for source, found in first.recordings.items()
        },
        "retrieval_at_1": _rates(counts["retrieval_at_1"]),
        "retrieval_sentences": len(first.sentences.trials),
        "intervals": {
            measure: {name: found.interval() for name, found in of_measure.items()}
            for measure, of_measure in counts.items()
        },
        "word_hit_rate_words": int(first.words.trials.sum()),
        "word_hit_rate_commands": _rates({name: score.words_in_commands for name, score in scores.items()}),
        "probe": {
            "intents": len(INTENTS),
            "chance": 1 / len(INTENTS),
            "teacher_on_text": evaluator.teacher_probe()["accuracy"],
            "dev_accuracy": {name: score.probe["dev_accuracy"] for name, score in scores.items()},
            "penalty": {name: score.probe["penalty"] for name, score in scores.items()},
        },
        "training_loss": {
            name: {"first": average(values[:5]), "last": average(values[-20:])} for name, values in losses.items()
        },
        "held_out_loss": {name: score.loss for name, score in scores.items()},
    }


def summary(report: dict, folder: Path) -> str:
    """A report as text for the terminal."""
    students = list(report["held_out_loss"])
    columns = ("chance", *students)

    def row(title: str, values: dict, measure: str = "") -> list[str]:
        cells = "".join(f"{values[name]:>15.3f}" if name in values else " " * 15 for name in columns)
        lines = [f"{title:<44}{cells}"]
        if measure:
            ends = report["intervals"][measure]
            between = "".join(f"{ends[name][0]:>9.3f}-{ends[name][1]:.3f}" for name in students)
            lines.append(f"{'  95 % interval':<44}{' ' * 15}{between}")
        return lines

    probe, control = report["probe"], report["training_loss"]["shuffled"]
    lines = ["", " " * 44 + "".join(f"{name:>15}" for name in columns)]
    lines += row("word hit rate: best frame within the word", report["word_hit_rate"], "word_hit_rate")
    for source, rates in report["word_hit_rate_real"].items():
        lines += row(f"  on real speech: {source}, {rates['words']} words", rates, f"word_hit_rate_real: {source}")
    lines += row(f"right sentence of {report['retrieval_sentences']} first", report["retrieval_at_1"], "retrieval_at_1")
    accuracy = {"chance": probe["chance"], **report["probe_accuracy"]}
    lines += row("probe accuracy: intent, linear classifier", accuracy, "probe_accuracy")
    lines += row("loss on held-out speech (lower is better)", report["held_out_loss"])
    lines += [
        "",
        *(f"{name}: {EXPLAINED[name]}" for name in students),
        f"The training loss of shuffled pairs went from {control['first']:.3f} to {control['last']:.3f} as well.",
        f"The probe reaches {probe['teacher_on_text']:.3f} on the teacher's embeddings of the text.",
        f"Report: {folder / 'report.json'}; pictures: {folder / 'pictures'}; student: {folder / 'student'}",
    ]
    if report["quick"]:
        lines.append(
            "--quick only checks that everything runs: it is too short to learn. Run without --quick for real scores."
        )
    return "\n".join(lines)
