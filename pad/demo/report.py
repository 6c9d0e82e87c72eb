"""The report of a demo run."""

from __future__ import annotations

from pathlib import Path

from pad.demo.evaluator import Evaluator, Scores
from pad.demo.sentences import INTENTS


def figures(scores: dict[str, Scores], evaluator: Evaluator, losses: dict[str, list[float]]) -> dict:
    """The numbers of a report. scores: by student; losses: of every training step, by run."""

    def rates(kind: str) -> dict | None:
        found = {name: getattr(score, kind) for name, score in scores.items()}
        if found["undistilled"] is None:
            return None
        return {
            "chance": found["undistilled"]["chance"],
            **{name: rate["hit_rate"] for name, rate in found.items()},
            "words": found["undistilled"]["words"],
        }

    def average(values: list[float]) -> float:
        return sum(values) / len(values)

    main = rates("hits")
    assert main is not None  # every student has these scores
    words = main.pop("words")
    return {
        "word_hit_rate": main,
        "probe_accuracy": {name: score.probe["accuracy"] for name, score in scores.items()},
        "word_hit_rate_words": words,
        "word_hit_rate_commands": rates("hits_in_commands"),
        "word_hit_rate_recordings": rates("hits_in_recordings"),
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
    columns = ("chance", "undistilled", "distilled", "shuffled")

    def row(title: str, values: dict) -> str:
        cells = (f"{values[name]:>13.3f}" if name in values else " " * 13 for name in columns)
        return f"{title:<44}{''.join(cells)}"

    probe, control = report["probe"], report["training_loss"]["shuffled"]
    lines = [
        "",
        " " * 44 + "".join(f"{name:>13}" for name in columns),
        row("word hit rate: best frame within the word", report["word_hit_rate"]),
    ]
    if report["word_hit_rate_recordings"]:
        lines.append(row("word hit rate on the real recordings", report["word_hit_rate_recordings"]))
    lines += [
        row("probe accuracy: intent, linear classifier", {"chance": probe["chance"], **report["probe_accuracy"]}),
        row("loss on held-out speech (lower is better)", report["held_out_loss"]),
        "",
        "undistilled: the student before distillation; distilled: after distillation on speech and its text",
        "shuffled: a control, distilled on speech and the text of other speech. It should score like undistilled,",
        f"  although its training loss went from {control['first']:.3f} to {control['last']:.3f} as well",
        f"The probe reaches {probe['teacher_on_text']:.3f} on the teacher's embeddings of the text.",
        f"Report: {folder / 'report.json'}; pictures: {folder / 'pictures'}; student: {folder / 'student'}",
    ]
    if report["quick"]:
        lines.append(
            "--quick only checks that everything runs: it is too short to learn. Run without --quick for real scores."
        )
    return "\n".join(lines)
