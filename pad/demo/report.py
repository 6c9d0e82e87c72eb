"""What a demo run reports."""

from __future__ import annotations

from pathlib import Path

from pad.demo.judge import Judge, Scores
from pad.demo.sentences import INTENTS


def figures(scores: dict[str, Scores], judge: Judge, losses: dict[str, list[float]]) -> dict:
    """The numbers of a report; scores by student, losses of every training step by run."""

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
            "teacher_on_text": judge.teacher_probe()["accuracy"],
            "dev_accuracy": {name: score.probe["dev_accuracy"] for name, score in scores.items()},
            "penalty": {name: score.probe["penalty"] for name, score in scores.items()},
        },
        "training_loss": {
            name: {"first": average(values[:5]), "last": average(values[-20:])}
            for name, values in losses.items()
        },
        "held_out_loss": {name: score.loss for name, score in scores.items()},
    }


def summary(report: dict, folder: Path) -> str:
    """What a report says, for the terminal."""
    columns = ("chance", "undistilled", "distilled", "shuffled")

    def row(title: str, values: dict) -> str:
        cells = (f"{values[name]:>13.3f}" if name in values else " " * 13 for name in columns)
        return f"{title:<44}{''.join(cells)}"

    probe, control = report["probe"], report["training_loss"]["shuffled"]
    lines = [
        "",
        " " * 44 + "".join(f"{name:>13}" for name in columns),
        row("best frame of a word lies within the word", report["word_hit_rate"]),
    ]
    if report["word_hit_rate_recordings"]:
        lines.append(row("the same on the real recordings", report["word_hit_rate_recordings"]))
    lines += [
        row("intent accuracy of a linear probe", {"chance": probe["chance"], **report["probe_accuracy"]}),
        row("loss on held-out speech, lower is better", report["held_out_loss"]),
        "",
        "distilled: the student that learned from speech and its text; undistilled: the same before",
        "shuffled: a control that learned from speech and the text of other speech; it should score like undistilled,",
        f"  though its training loss went from {control['first']:.3f} to {control['last']:.3f} as well",
        f"The probe reaches {probe['teacher_on_text']:.3f} on the teacher's embeddings of the text itself.",
        f"report {folder / 'report.json'}, pictures {folder / 'pictures'}, student {folder / 'student'}",
    ]
    if report["quick"]:
        lines.append(
            "quick: a check of the machinery, too short to learn; run without --quick for the scores of the README"
        )
    return "\n".join(lines)
