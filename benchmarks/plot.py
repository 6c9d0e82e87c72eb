"""Plots of the results files."""

from pathlib import Path

COLORS = {"eager": "#4878a8", "eager-scaled": "#e8a33d", "torch.compile": "#6aa56a", "plain": "#888888",
          "ours": "#c44e52"}  # fmt: skip
NAMES = {"ours": "pad_kernels"}


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _where(content: dict) -> str:
    machine = content["machine"]
    return machine.get("gpu") or f"{machine['cpu'].replace('(R)', '')}, {machine['threads']} threads"


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the versions of libraries that drew it: the same results give the same file.
    figure.savefig(path, dpi=120, metadata={"Software": None})
    _pyplot().close(figure)


def plot(content: dict, path: Path, *, size: str = "base", dtype: str = "float32") -> None:
    """Times of the losses, a bar for each provider and a group for each case; the floor of each case as a line."""
    results = [r for r in content["results"] if r["case"]["size"] == size and r["case"]["dtype"] == dtype]
    results = results or content["results"]
    figure, axes = _pyplot().subplots(figsize=(1.3 + 1.1 * len(results), 4.5), layout="constrained")
    _draw_losses(axes, results)
    for i, result in enumerate(results):
        floor, label = result["floor"]["floor"], "floor" if i == 0 else None
        axes.hlines(floor, i - 0.45, i + 0.45, colors="black", linestyles="dotted", label=label)
    axes.set_title(f"{results[0]['title']}; {_where(content)}", fontsize="medium")
    axes.legend(fontsize="small", ncols=2)
    _save(figure, path)


def _draw_losses(axes, results: list[dict]) -> None:
    """Medians with the 20th and 80th percentile, on a logarithmic axis; what failed or is wrong is left out."""
    providers = list(dict.fromkeys(name for result in results for name in result["providers"]))
    width = 0.8 / len(providers)
    for place, provider in enumerate(providers):
        rows = [(i, result["providers"].get(provider)) for i, result in enumerate(results)]
        rows = [(i, row["ms"]) for i, row in rows if row and row.get("ms") and row["correct"]]
        spread = [[ms["p50"] - ms["p20"] for _, ms in rows], [ms["p80"] - ms["p50"] for _, ms in rows]]
        axes.bar(
            [i - 0.4 + (place + 0.5) * width for i, _ in rows],
            [ms["p50"] for _, ms in rows],
            width,
            yerr=spread,
            label=NAMES.get(provider, provider),
            color=COLORS.get(provider),
            error_kw={"elinewidth": 0.8},
        )
    names = [result["label"].replace(" ", "\n").replace("+", "+\n") for result in results]
    axes.set_xticks(range(len(results)), names, fontsize="small")
    axes.set_yscale("log")
    axes.set_ylabel("milliseconds")


def plot_step(content: dict, path: Path) -> None:
    """Time and peak memory of a training step by length of audio, per second of audio in the batch."""
    figure, panels = _pyplot().subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    _draw_step(panels[0], content, lambda row: row["ms"]["p50"], "ms per second of audio")
    _draw_step(panels[1], content, _megabytes, "peak MB per second of audio")
    figure.suptitle(f"distillation step, {_where(content)}", fontsize="medium")
    _save(figure, path)


def _megabytes(row: dict) -> float | None:
    return None if row["peak_bytes"] is None else row["peak_bytes"] / 1e6


def _draw_step(axes, content: dict, value, label: str) -> None:
    """A line for each variant; one that was not measured is left out."""
    found = sorted(content["results"], key=lambda result: result["case"]["seconds"])
    lengths = [result["case"]["seconds"] for result in found]
    audio = [result["case"]["seconds"] * result["case"]["batch"] for result in found]
    for name in found[0]["variants"]:
        values = [value(result["variants"][name]) for result in found]
        if None not in values:
            per_second = [value / total for value, total in zip(values, audio)]
            axes.plot(lengths, per_second, "o-", label=NAMES.get(name, name), color=COLORS.get(name))
    axes.set(xlabel="seconds of audio per utterance", ylabel=label, ylim=(0, None))
    axes.legend(frameon=False, fontsize="small")


def plot_overview(losses: dict, steps: dict, path: Path) -> None:
    """The plot of the front page: time of each loss with its gradients, and peak memory of a training step."""
    figure, panels = _pyplot().subplots(1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=(3, 2))
    wanted = {"size": "base", "dtype": "float32", "direction": "forward+backward"}
    whole = [
        result | {"label": result["label"].removesuffix(" forward+backward")}
        for result in losses["results"]
        if wanted.items() <= result["case"].items()
    ]
    _draw_losses(panels[0], whole)
    panels[0].set_title(f"losses, forward and backward\n{_where(losses)}", fontsize="medium")
    panels[0].set_ylim(1, None)
    panels[0].legend(fontsize="small")
    _draw_step(panels[1], steps, _megabytes, "peak MB per second of audio")
    panels[1].set_title("training step, wav2vec2-base and bert-base\n" + _where(steps), fontsize="medium")
    _save(figure, path)


def plot_quality(content: dict, path: Path) -> None:
    """Paired differences of each configuration from its level without priors, with 95 % intervals, by measure."""
    split = "test" if content["splits"]["test"] else "dev"
    rows = [row for row in content["splits"][split] if next(iter(row["measures"].values()))["differences"]]
    measures = list(rows[0]["measures"]) if rows else ["no pair of runs yet"]
    figure, panels = _pyplot().subplots(
        1, len(measures), figsize=(2.2 + 2.1 * len(measures), 1.4 + 0.3 * len(rows)), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, measure in zip(panels[0], measures):
        for place, row in enumerate(rows):
            found = next(iter(row["measures"][measure]["differences"].values()))
            low, high = found["interval"]
            color = {"better": "#1f6f8b", "worse": "#c44e52", "open": "#888888"}[found["verdict"]]
            axes.plot([low, high], [place, place], color=color, linewidth=2)
            axes.plot(found["difference"], place, "o", color=color, markersize=5)
        axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
        axes.set_title(measure, fontsize="small")
        axes.tick_params(labelsize="small")
    names = [f"{row['configuration']} ({len(row['seeds'])})" for row in rows]
    panels[0][0].set_yticks(range(len(rows)), names)
    panels[0][0].invert_yaxis()
    figure.supxlabel(
        f"difference from the same level without priors, {split} split (number of seeds)", fontsize="small"
    )
    _save(figure, path)
