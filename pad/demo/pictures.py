"""Pictures of a demo run."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402

from pad.demo.sentences import INTENTS  # noqa: E402
from pad_kernels import alignment_matrix  # noqa: E402

_COLOURS = {"undistilled": "#999999", "distilled": "#1f6f8b", "shuffled": "#d1793b"}
_PAIRS = {"distilled": "real pairs", "shuffled": "shuffled pairs (control)"}


def draw_all(folder: Path, evaluator, students: dict, losses: dict, scores: dict) -> list[str]:
    """Draw losses, scores and alignments to `folder`; returns the pictures' paths relative to its parent."""
    folder.mkdir()
    draw_losses(folder / "losses.png", losses)
    draw_scores(folder / "scores.png", scores)
    draw_alignment(folder / "alignment.png", evaluator, students)
    return sorted(str(path.relative_to(folder.parent)) for path in folder.iterdir())


def draw_losses(path: Path, losses: dict[str, list[float]], window: int = 10) -> None:
    """Training loss: each step in a pale colour, and a moving average."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name, values in losses.items():
        last = min(window, len(values))
        means = torch.tensor(values).unfold(0, last, 1).mean(dim=1)
        axes.plot(range(1, len(values) + 1), values, color=_COLOURS[name], linewidth=0.8, alpha=0.35)
        axes.plot(range(last, len(values) + 1), means, color=_COLOURS[name], label=_PAIRS[name])
    axes.set(xlabel="step", ylabel="training loss", title=f"pale: each step; strong: mean of the last {last} steps")
    axes.title.set_fontsize(10)
    axes.legend(frameon=False, title="distilled on")
    _finish(figure, path)


def draw_scores(path: Path, scores: dict) -> None:
    """Word hit rate and probe accuracy of each student, with chance."""
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained")
    hits = [score.hits["hit_rate"] for score in scores.values()]
    probes = [score.probe["accuracy"] for score in scores.values()]
    for axes, title, values, chance in (
        (panels[0], "most similar frame is within the word", hits, scores["undistilled"].hits["chance"]),
        (panels[1], "intent accuracy of a linear probe", probes, 1 / len(INTENTS)),
    ):
        bars = axes.bar(list(scores), values, color=[_COLOURS[name] for name in scores])
        # A number may overlap the line: it covers it.
        cover = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.bar_label(bars, fmt="%.2f", padding=3, bbox=cover, zorder=3)
        axes.axhline(chance, color="black", linewidth=0.8, linestyle=":")
        axes.text(1.02, chance, f"chance\n{chance:.2f}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    _finish(figure, path)


def draw_alignment(path: Path, evaluator, students: dict) -> None:
    """Soft alignment of one held-out sentence by each student, the true word times as boxes."""
    sentence = max(evaluator.corpus.free["test"], key=lambda item: (sum(word.known for word in item.words), item.audio))
    text = evaluator.words_of(sentence.transcript)
    figure, panels = plt.subplots(1, len(students), figsize=(4 * len(students), 3.9), sharey=True, layout="constrained")
    for axes, (name, student) in zip(panels, students.items()):
        heard = evaluator.encode(student, [sentence])[0]
        weights = alignment_matrix(heard.frames[None], text[None], temperature=evaluator.objective.temperature)[0]
        weights = weights / weights.amax(dim=1, keepdim=True)
        half = float(heard.centres[1] - heard.centres[0]) / 2
        left, right = float(heard.centres[0]) - half, float(heard.centres[-1]) + half
        image = axes.imshow(weights, aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest",
                            extent=(left, right, len(text) - 0.5, -0.5))  # fmt: skip
        for row, word in enumerate(sentence.words):
            if word.known:
                axes.add_patch(plt.Rectangle((word.start, row - 0.44), word.end - word.start, 0.88, fill=False,
                                             edgecolor=_COLOURS["shuffled"], linewidth=2))  # fmt: skip
        axes.set(title=name, xlabel="seconds", xlim=(0, sentence.duration))
        axes.set_yticks(range(len(text)), [word.text for word in sentence.words])
    figure.colorbar(image, ax=panels, pad=0.01, label="weight of a frame /\nlargest of the word")
    when = Patch(fill=False, edgecolor=_COLOURS["shuffled"], linewidth=2, label="true time of the word")
    figure.legend(handles=[when], loc="outside lower center", frameon=False)
    _finish(figure, path)


def _finish(figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)
