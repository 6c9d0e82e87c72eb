"""The picture of one aligned utterance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from transformers.audio_utils import mel_filter_bank

from pad.looking.alignment import AlignedUtterance

_BLUE, _ORANGE, _GREY = "#1f6f8b", "#d1793b", "#888888"
_WINDOW, _STEP, _MELS = 0.025, 0.01, 64  # seconds, seconds, bands


def log_mel(samples: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, float]:
    """Log-mel energies [64, windows] in decibels below the loudest, and the seconds from one window to the next."""
    window, step = round(_WINDOW * sampling_rate), round(_STEP * sampling_rate)
    wave = torch.from_numpy(np.pad(samples.astype(np.float32), (0, max(0, window - len(samples)))))
    spectrum = torch.stft(wave, window, step, window=torch.hann_window(window), return_complex=True).abs().square()
    bands = (window // 2 + 1, _MELS, 50.0, sampling_rate / 2, sampling_rate)
    filters = mel_filter_bank(*bands, norm=None, mel_scale="htk")
    power = filters.T @ spectrum.double().numpy()
    decibels = 10 * np.log10(power + 1e-10)
    return decibels - decibels.max(), step / sampling_rate


def draw(utterance: AlignedUtterance) -> Figure:
    """Log-mel, speech prior with anchors and chosen spans, alignment matrix with the text prior: one time axis."""
    tokens = len(utterance.tokens)
    rows = min(14.0, max(2.2, 0.19 * tokens))
    figure = Figure(figsize=(11, 3.4 + rows), layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=[1.4, 1.4, rows], width_ratios=[9, 1])
    sound = figure.add_subplot(grid[0, 0])
    prior = figure.add_subplot(grid[1, 0], sharex=sound)
    matrix = figure.add_subplot(grid[2, 0], sharex=sound)
    text = figure.add_subplot(grid[2, 1], sharey=matrix)
    seconds = len(utterance.samples) / utterance.sampling_rate
    _draw_sound(sound, utterance, seconds)
    _draw_prior(prior, utterance)
    _draw_matrix(matrix, utterance, seconds)
    text.barh(range(tokens), utterance.text_prior, color=_ORANGE, height=0.7)
    text.set_title("text prior", fontsize=9)
    text.tick_params(left=False, labelleft=False, labelsize=7)
    for axes in (sound, prior):
        axes.tick_params(labelbottom=False)
    objective = utterance.objective
    kind = f"temperature {objective.temperature:g}" if objective.temperature else "hard alignment (matrix drawn soft)"
    figure.suptitle(f"{objective.level} level, {kind}, loss {utterance.loss:.3f}", fontsize=11)
    return figure


def _draw_sound(axes, utterance: AlignedUtterance, seconds: float) -> None:
    energies, step = log_mel(utterance.samples, utterance.sampling_rate)
    axes.imshow(energies, origin="lower", aspect="auto", cmap="magma", vmin=-70, vmax=0,
                extent=(-step / 2, energies.shape[1] * step - step / 2, 0, _MELS))  # fmt: skip
    axes.set(xlim=(0, seconds), yticks=[], ylabel="log-mel")
    for start, end, word in utterance.words or ():
        axes.axvline(start, color="white", linewidth=0.5)
        axes.text((start + end) / 2, _MELS - 2, word, color="white", fontsize=6, ha="center", va="top", clip_on=True)


def _draw_prior(axes, utterance: AlignedUtterance) -> None:
    """The prior; below it a bar for the span that each token has chosen."""
    values = utterance.speech_prior.numpy() * len(utterance.speech_prior)
    centres = utterance.centres.numpy()
    axes.fill_between(centres, values, color=_BLUE, alpha=0.35, linewidth=0)
    axes.plot(centres, values, color=_BLUE, linewidth=0.8)
    axes.axhline(1.0, color=_GREY, linewidth=0.5, linestyle=":")
    half = utterance.hop / 2
    chosen = sorted({unit for unit in utterance.unit.tolist() if unit >= 0})
    first = utterance.centres[utterance.start[chosen].clamp(max=len(centres) - 1)].numpy() - half
    last = utterance.centres[(utterance.end[chosen] - 1).clamp(min=0)].numpy() + half
    # Spans of three lanes, so that neighbours stay apart.
    lanes = -0.15 * (1 + np.arange(len(chosen)) % 3) * max(values.max(), 1.0)
    axes.hlines(lanes, first, last, color=_ORANGE, linewidth=2)
    if utterance.objective.level == "span":
        scales = len(utterance.objective.scales)
        anchors = {(int(s) + int(e)) // 2 for s, e in zip(utterance.start[::scales], utterance.end[::scales]) if e > s}
        places = sorted(anchors)
        axes.plot(centres[places], values[places], "o", color=_BLUE, markersize=2.5, label="anchors")
    axes.set_ylabel("speech prior\n(1: uniform)", fontsize=8)
    axes.tick_params(labelsize=7)


def _draw_matrix(axes, utterance: AlignedUtterance, seconds: float) -> None:
    weights = utterance.frame_matrix()
    weights = weights / weights.amax(dim=1, keepdim=True).clamp_min(1e-12)
    half, tokens = utterance.hop / 2, len(utterance.tokens)
    left, right = float(utterance.centres[0]) - half, float(utterance.centres[-1]) + half
    axes.imshow(weights, aspect="auto", cmap="Greys", extent=(left, right, tokens - 0.5, -0.5), interpolation="nearest")
    for row, unit in enumerate(utterance.unit.tolist()):
        if unit >= 0:
            start = float(utterance.centres[int(utterance.start[unit])]) - half
            end = float(utterance.centres[int(utterance.end[unit]) - 1]) + half
            axes.hlines(row, start, end, color=_ORANGE, linewidth=2)
    for start, end, _ in utterance.words or ():
        for place in (start, end):
            axes.axvline(place, color=_BLUE, linewidth=0.4, alpha=0.6)
    axes.set(xlim=(0, seconds), ylim=(tokens - 0.5, -0.5), xlabel="seconds")
    axes.set_yticks(range(tokens), utterance.tokens, fontsize=7 if tokens <= 45 else 5)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write PATH.png and PATH.svg, each to a new file that is then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for ending, canvas in (("png", FigureCanvasAgg), ("svg", FigureCanvasSVG)):
        target = path.with_name(f"{path.name}.{ending}")
        partial = path.with_name(f".{path.name}.partial.{ending}")
        canvas(figure)
        figure.savefig(partial, dpi=130, format=ending)
        partial.replace(target)
        written.append(target)
    return written
