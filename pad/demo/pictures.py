"""Pictures of a demo run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from pad.demo.intervals import Counts
from pad.demo.report import measures
from pad_kernels import alignment_matrix

_COLORS = {"undistilled": "#999999", "distilled": "#1f6f8b", "shuffled": "#d1793b", "random": "#8a6fb0"}
_PAIRS = {
    "distilled": "real pairs",
    "shuffled": "shuffled pairs (control)",
    "random": "real pairs, random weights (control)",
}
_MOST_WORDS = 12  # of a sentence that is drawn
_TITLES = {
    "word_hit_rate": "most similar frame is within the word:\nsynthetic sentences",
    "retrieval_at_1": "right sentence is first of all",
    "probe_accuracy": "intent accuracy of a linear probe",
}


def draw_all(folder: Path, evaluator, students: dict, losses: dict, scores: dict) -> list[str]:
    """Draw losses, scores and alignments to `folder`; returns the pictures' paths relative to its parent."""
    folder.mkdir()
    draw_losses(folder / "losses.png", losses)
    draw_scores(folder / "scores.png", measures(scores))
    spoken = {"alignment": evaluator.corpus.free["test"]}
    spoken |= {f"alignment-{source}": items for source, items in evaluator.recordings.items()}
    for name, sentences in spoken.items():
        draw_alignment(folder / f"{name}.png", evaluator, students, sentences)
    return sorted(str(path.relative_to(folder.parent)) for path in folder.iterdir())


def draw_losses(path: Path, losses: dict[str, list[float]], window: int = 10) -> None:
    """Training loss: each step in a pale color, and a moving average."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for name, values in losses.items():
        last = min(window, len(values))
        means = torch.tensor(values).unfold(0, last, 1).mean(dim=1)
        axes.plot(range(1, len(values) + 1), values, color=_COLORS[name], linewidth=0.8, alpha=0.35)
        axes.plot(range(last, len(values) + 1), means, color=_COLORS[name], label=_PAIRS[name])
    axes.set(xlabel="step", ylabel="training loss", title=f"pale: each step; strong: mean of the last {last} steps")
    axes.title.set_fontsize(10)
    axes.legend(frameon=False, title="distilled on")
    figure.savefig(path, dpi=120)


def draw_scores(path: Path, counts: dict[str, dict[str, Counts]]) -> None:
    """Every measure of each student with its 95 % interval, and chance; counts: by measure and student."""
    figure = Figure(figsize=(0.8 + 2.9 * len(counts), 3.6), layout="constrained")
    panels = figure.subplots(1, len(counts), squeeze=False)[0]
    for axes, (measure, students) in zip(panels, counts.items()):
        rates = [found.rate for found in students.values()]
        ends = [found.interval() for found in students.values()]
        spread = [
            [rate - low for rate, (low, _) in zip(rates, ends)],
            [high - rate for rate, (_, high) in zip(rates, ends)],
        ]
        bars = axes.bar(list(students), rates, yerr=np.clip(spread, 0, None), capsize=3,
                        color=[_COLORS[name] for name in students])  # fmt: skip
        # A number may overlap the line: it covers it.
        cover = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.bar_label(bars, fmt="%.2f", padding=3, bbox=cover, zorder=3, fontsize=8)
        chance = next(iter(students.values())).chance_rate
        axes.axhline(chance, color="black", linewidth=0.8, linestyle=":")
        axes.text(1.02, chance, f"chance\n{chance:.2f}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        source = measure.partition(": ")[2]
        axes.set_title(_TITLES.get(measure, f"within the word:\nreal speech, {source}"), fontsize=9)
        axes.tick_params(axis="x", labelsize=7)
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def draw_alignment(path: Path, evaluator, students: dict, sentences: list) -> None:
    """Soft alignment of one of the sentences by each student, the true word times as boxes."""
    readable = [item for item in sentences if len(item.words) <= _MOST_WORDS] or sentences
    sentence = max(readable, key=lambda item: (sum(word.known for word in item.words), item.audio))
    text = evaluator.words_of(sentence.transcript)
    figure = Figure(figsize=(4 * len(students), 3.9), layout="constrained")
    panels = figure.subplots(1, len(students), sharey=True, squeeze=False)[0]
    for axes, (name, student) in zip(panels, students.items()):
        heard = evaluator.encode(student, [sentence])[0]
        weights = alignment_matrix(heard.frames[None], text[None], temperature=evaluator.objective.temperature)[0]
        weights = weights / weights.amax(dim=1, keepdim=True)
        half = float(heard.centers[1] - heard.centers[0]) / 2
        left, right = float(heard.centers[0]) - half, float(heard.centers[-1]) + half
        image = axes.imshow(weights, aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest",
                            extent=(left, right, len(text) - 0.5, -0.5))  # fmt: skip
        for row, word in enumerate(sentence.words):
            if word.known:
                axes.add_patch(Rectangle((word.start, row - 0.44), word.end - word.start, 0.88, fill=False,
                                         edgecolor=_COLORS["shuffled"], linewidth=2))  # fmt: skip
        axes.set(title=name, xlabel="seconds", xlim=(0, sentence.duration))
        axes.set_yticks(range(len(text)), [word.text for word in sentence.words])
    figure.colorbar(image, ax=panels, pad=0.01, label="weight of a frame /\nlargest of the word")
    when = Patch(fill=False, edgecolor=_COLORS["shuffled"], linewidth=2, label="true time of the word")
    figure.legend(handles=[when], loc="outside lower center", frameon=False)
    figure.savefig(path, dpi=120)
