"""The picture of an aligned utterance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from transformers.audio_utils import mel_filter_bank

from pad.align.utterance import SOFT_TEMPERATURE, AlignedUtterance
from pad.files import whole_file

_BLUE, _ORANGE = "#1f6f8b", "#d1793b"
_SHADES = (_BLUE, "#7fb2c4")  # of neighboring words
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


# A $ in a token or a word is a character, not the start of a formula.
_as_it_stands = rc_context({"text.parse_math": False, "text.usetex": False})


@_as_it_stands
def draw(utterance: AlignedUtterance) -> Figure:
    """Log-mel, speech prior with anchors, alignment matrix with chosen units and text prior: one time axis."""
    tokens = len(utterance.tokens)
    rows = min(14.0, max(2.2, 0.19 * tokens))
    heights = [1.4, 1.2, rows] if utterance.speech_prior is not None else [1.4, rows]
    figure = Figure(figsize=(12, 1.2 + sum(heights)), layout="constrained")
    widths = [9, 0.15] if utterance.text_prior is None else [9, 1.2, 0.15]
    grid = figure.add_gridspec(len(heights), len(widths), height_ratios=heights, width_ratios=widths)
    matrix = figure.add_subplot(grid[-1, 0])
    sound = figure.add_subplot(grid[0, 0], sharex=matrix)
    handles = []
    _draw_sound(sound, utterance)
    if utterance.speech_prior is not None:
        prior = figure.add_subplot(grid[1, 0], sharex=matrix)
        handles += _draw_speech_prior(prior, utterance, utterance.speech_prior)
        prior.tick_params(labelbottom=False)
    handles += _draw_matrix(matrix, utterance, rows, figure.add_subplot(grid[-1, -1]))
    if utterance.text_prior is not None:
        _draw_text_prior(figure.add_subplot(grid[-1, 1], sharey=matrix), utterance.text_prior)
    sound.tick_params(labelbottom=False)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    objective = utterance.objective
    kind = f"soft alignment at temperature {objective.temperature:g}"
    if not objective.temperature:
        kind = f"hard alignment (weights drawn at temperature {SOFT_TEMPERATURE:g})"
    figure.suptitle(f"{objective.level} level, {kind}: loss {utterance.loss:.3f}", fontsize=11)
    return figure


def _draw_sound(axes, utterance: AlignedUtterance) -> None:
    """Log-mel energies; above them the words, each with a bar that shows when it is spoken."""
    energies, step = log_mel(utterance.samples, utterance.sampling_rate)
    seconds = len(utterance.samples) / utterance.sampling_rate
    image = axes.imshow(energies, origin="lower", aspect="auto", cmap="magma", vmin=-70, vmax=0,
                        extent=(-step / 2, energies.shape[1] * step - step / 2, 0, _MELS))  # fmt: skip
    axes.set(xlim=(0, seconds), yticks=[], ylabel="log-mel")
    scale = axes.inset_axes((1.015, 0, 0.012, 1))
    scale.set_in_layout(False)  # it is above the text prior, which would make room for it
    axes.figure.colorbar(image, cax=scale, label="dB")
    _small(axes)
    _small(scale)
    words = [(start, min(end, seconds), word) for start, end, word in utterance.words or () if start < seconds]
    above = axes.get_xaxis_transform()
    for number, (start, end, word) in enumerate(words):
        axes.hlines(1.04, start, end, color=_SHADES[number % 2], linewidth=3, transform=above, clip_on=False)
        axes.vlines((start, end), 0, 1, color="white", linewidth=0.5, alpha=0.7, transform=above)
        crowded = len(words) > 20
        axes.text((start + end) / 2, 1.1, word, fontsize=7, ha="center", va="bottom", transform=above,
                  rotation=90 if crowded else 0)  # fmt: skip


def _draw_speech_prior(axes, utterance: AlignedUtterance, prior: torch.Tensor) -> list:
    """The prior relative to a uniform one, and the anchors; returns the entries of the legend."""
    values = prior.numpy() * len(prior)
    centers = utterance.centers.numpy()
    uniform = axes.axhline(1.0, color="black", linewidth=0.8, linestyle=":", label="uniform prior")
    axes.fill_between(centers, 1.0, values, color=_BLUE, alpha=0.3, linewidth=0)
    axes.plot(centers, values, color=_BLUE, linewidth=0.9)
    axes.set_ylabel("speech prior\n× frames", fontsize=8)
    axes.margins(y=0.12)
    _small(axes)
    if utterance.objective.level != "span":
        return [uniform]
    at = utterance.anchors
    anchors = axes.plot(centers[at], values[at], "o", color=_BLUE, markersize=3.5, label="span anchors")
    return [uniform, *anchors]


def _draw_text_prior(axes, prior: torch.Tensor) -> None:
    """The prior of each token as a bar that starts at the uniform one."""
    values = prior.numpy() * len(prior)
    axes.barh(range(len(values)), values - 1.0, left=1.0, color=_BLUE, alpha=0.6, height=0.7)
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("text prior\n× tokens", fontsize=8)
    axes.margins(x=0.12)
    axes.tick_params(left=False, labelleft=False)
    _small(axes)


def _draw_matrix(axes, utterance: AlignedUtterance, height: float, scale) -> list:
    """Each token's weights over the frames, with a box around its aligned unit; returns the entries of the legend."""
    weights = utterance.frame_matrix()
    weights = weights / weights.amax(dim=1, keepdim=True).clamp_min(1e-12)
    if not utterance.tokens:  # a text of marks alone, such as an accent without its letter: an empty row
        weights = weights.new_zeros(1, len(utterance.centers))
    half, tokens = utterance.hop / 2, len(weights)
    left, right = float(utterance.centers[0]) - half, float(utterance.centers[-1]) + half
    image = axes.imshow(weights, aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest",
                        extent=(left, right, tokens - 0.5, -0.5))  # fmt: skip
    axes.figure.colorbar(image, cax=scale, label="weight / largest of the token")
    _small(scale)
    box: dict[str, Any] = {"fill": False, "edgecolor": _ORANGE, "linewidth": 1.5}
    for row, unit in enumerate(utterance.unit.tolist()):
        if unit >= 0:
            start = float(utterance.centers[int(utterance.start[unit])]) - half
            end = float(utterance.centers[int(utterance.end[unit]) - 1]) + half
            axes.add_patch(Rectangle((start, row - 0.42), end - start, 0.84, **box))
    chosen = "span" if utterance.objective.level == "span" else "frame"
    handles = [Patch(**box, label=f"{chosen} aligned with the token")]
    for start, end, _ in utterance.words or ():
        for place in (start, end):
            line = axes.axvline(place, color=_BLUE, linewidth=0.5, alpha=0.6, label="word boundaries")
    if utterance.words:
        handles.append(line)
    axes.set(xlim=(0, len(utterance.samples) / utterance.sampling_rate), ylim=(tokens - 0.5, -0.5), xlabel="seconds")
    # A label needs about a ninth of an inch.
    named = range(0, len(utterance.tokens), math.ceil(tokens / (9 * height)))
    axes.set_yticks(named, [utterance.tokens[row] for row in named])
    _small(axes)
    return handles


def _small(axes) -> None:
    axes.tick_params(labelsize=7)
    axes.yaxis.label.set_size(8)
    axes.xaxis.label.set_size(8)


def picture_files(path: Path) -> list[Path]:
    """PATH.png and PATH.svg."""
    return [path.with_name(f"{path.name}.{ending}") for ending in ("png", "svg")]


@_as_it_stands
def save(figure: Figure, path: Path, *, shared: bool = False) -> list[Path]:
    """Write PATH.png and PATH.svg, each whole. shared: other processes may write them too."""
    files = picture_files(path)
    for target, canvas in zip(files, (FigureCanvasAgg, FigureCanvasSVG)):
        canvas(figure)
        with whole_file(target, cache=shared) as file:
            figure.savefig(file, dpi=130, format=target.suffix[1:])
    return files
