"""Pictures of a demo run."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402

from pad_kernels import alignment_matrix  # noqa: E402

_COLOURS = {"undistilled": "#999999", "distilled": "#1f6f8b", "shuffled": "#d1793b"}


def draw_all(folder: Path, judge, students: dict, losses: dict, scores: dict) -> list[str]:
    """Draw losses, scores and alignments to `folder`; gives the pictures' paths relative to its parent."""
    folder.mkdir()
    draw_losses(folder / "losses.png", losses)
    draw_scores(folder / "scores.png", scores)
    draw_alignment(folder / "alignment.png", judge, students)
    return sorted(str(path.relative_to(folder.parent)) for path in folder.iterdir())


def draw_losses(path: Path, losses: dict[str, list[float]], window: int = 10) -> None:
    """Training loss by step, as a running mean."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name, values in losses.items():
        smooth = torch.tensor(values).unfold(0, min(window, len(values)), 1).mean(dim=1)
        axes.plot(
            smooth, color=_COLOURS[name], label="real pairs" if name == "distilled" else "shuffled pairs"
        )
    axes.set(xlabel="step", ylabel="training loss")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_scores(path: Path, scores: dict) -> None:
    """Word hit rate and probe accuracy of each student."""
    figure, panels = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
    values = (
        ("best frame of a word lies in the word", lambda score: score.hits["hit_rate"]),
        ("intent accuracy of a linear probe", lambda score: score.probe["accuracy"]),
    )
    for axes, (title, value) in zip(panels, values):
        bars = axes.bar(list(scores), [value(score) for score in scores.values()],
                        color=[_COLOURS[name] for name in scores])  # fmt: skip
        axes.bar_label(bars, fmt="%.2f")
        axes.set_title(title, fontsize=10)
        axes.margins(y=0.15)
    panels[0].axhline(scores["undistilled"].hits["chance"], color="black", linewidth=0.8, linestyle=":")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_alignment(path: Path, judge, students: dict) -> None:
    """Soft alignment of one held-out sentence by each student, the true word times as boxes."""
    sentence = max(
        judge.corpus.free["test"], key=lambda item: (sum(word.known for word in item.words), item.audio)
    )
    text = judge.words_of(sentence.transcript)
    figure, panels = plt.subplots(
        1, len(students), figsize=(4 * len(students), 3.5), sharey=True, layout="constrained"
    )
    for axes, (name, student) in zip(panels, students.items()):
        heard = judge.encode(student, [sentence])[0]
        weights = alignment_matrix(heard.frames[None], text[None], temperature=judge.objective.temperature)[0]
        half = float(heard.centres[1] - heard.centres[0]) / 2
        left, right = float(heard.centres[0]) - half, float(heard.centres[-1]) + half
        axes.imshow(weights, aspect="auto", cmap="Greys", extent=(left, right, len(text) - 0.5, -0.5))
        for row, word in enumerate(sentence.words):
            if word.known:
                axes.add_patch(plt.Rectangle((word.start, row - 0.5), word.end - word.start, 1,
                                             fill=False, edgecolor=_COLOURS["distilled"]))  # fmt: skip
        axes.set(title=name, xlabel="seconds")
        axes.set_yticks(range(len(text)), [word.text for word in sentence.words])
    figure.savefig(path, dpi=120)
    plt.close(figure)
