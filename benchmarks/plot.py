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
            if provider in result["providers"]
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
