"""Picture of a results file: a bar per provider, a group per case."""

from pathlib import Path


def plot(content: dict, path: Path, *, size: str = "base", dtype: str = "float32") -> None:
    """Medians with 20th and 80th percentiles, on a logarithmic axis; the floor of each case as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = [r for r in content["results"] if r["case"]["size"] == size and r["case"]["dtype"] == dtype]
    if not results:
        results = content["results"]
    providers = list(dict.fromkeys(name for result in results for name in result["providers"]))
    figure, axes = pyplot.subplots(figsize=(1.3 + 1.1 * len(results), 4.5), layout="constrained")
    width = 0.8 / len(providers)
    for place, provider in enumerate(providers):
        rows = [
            (i, result["providers"][provider]["ms"])
            for i, result in enumerate(results)
            if result["providers"].get(provider, {}).get("ms")
        ]
        spread = [[ms["p50"] - ms["p20"] for _, ms in rows], [ms["p80"] - ms["p50"] for _, ms in rows]]
        axes.bar(
            [i - 0.4 + (place + 0.5) * width for i, _ in rows],
            [ms["p50"] for _, ms in rows],
            width,
            yerr=spread,
            label=provider,
            error_kw={"elinewidth": 0.8},
        )
    for i, result in enumerate(results):
        axes.hlines(
            result["floor"]["floor"],
            i - 0.45,
            i + 0.45,
            colors="black",
            linestyles="dotted",
            label="floor" if i == 0 else None,
        )
    names = [result["label"].replace(" ", "\n").replace("+", "+\n") for result in results]
    axes.set_xticks(range(len(results)), names, fontsize="small")
    axes.set_yscale("log")
    axes.set_ylabel("milliseconds")
    machine = content["machine"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    axes.set_title(f"{results[0]['title']}; {where}", fontsize="medium")
    axes.legend(fontsize="small", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_step(content: dict, path: Path) -> None:
    """Time and peak memory of a step by length of audio, per second of audio in the batch, a line for each variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = sorted(content["results"], key=lambda result: result["case"]["seconds"])
    lengths = [result["case"]["seconds"] for result in found]
    audio = [result["case"]["seconds"] * result["case"]["batch"] for result in found]
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name in found[0]["variants"]:
        rows = [result["variants"][name] for result in found]
        panels[0].plot(lengths, [row["ms"]["p50"] / total for row, total in zip(rows, audio)], "o-", label=name)
        if all(row["peak_bytes"] is not None for row in rows):
            megabytes = [row["peak_bytes"] / 1e6 / total for row, total in zip(rows, audio)]
            panels[1].plot(lengths, megabytes, "o-", label=name)
    panels[0].set(xlabel="seconds of audio in an utterance", ylabel="ms for a second of audio", ylim=(0, None))
    panels[1].set(xlabel="seconds of audio in an utterance", ylabel="peak MB for a second of audio", ylim=(0, None))
    panels[0].legend(frameon=False)
    machine = content["machine"]
    figure.suptitle(f"distillation step, {machine.get('gpu') or machine['cpu']}", fontsize="medium")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
