"""Terminal tables of the benchmarks."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


def shape_text(case: dict) -> str:
    """Sizes of a case: batch, frames, tokens, width."""
    shape = case["shape"]
    return f"B={shape['batch']} M={shape['frames']} N={shape['tokens']} D={shape['width']}"


def number(value: float | None, digits: int = 3) -> str:
    """A number to a few significant digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def megabytes(count: float | None) -> str:
    """Bytes as MB (10^6)."""
    return "-" if count is None else number(count / 1e6)


def make_console() -> Console:
    """As wide as the terminal; where output goes to a file, wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=150)


def make_progress(console: Console) -> Progress:
    """A progress bar with what is being measured and the time so far."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
    )


def print_results(console: Console, results: list[dict]) -> None:
    """One table per title; a provider whose result is wrong gets its error instead of a ratio.

    Results of a GPU have more columns: wall time of the call and replay of its CUDA graph.
    """
    groups: dict[str, list[dict]] = {}
    for result in results:
        groups.setdefault(result["title"], []).append(result)
    on_gpu = any("wall_ms" in row for result in results for row in result["providers"].values())
    for title, members in groups.items():
        table = Table(title=title)
        for column in ("", "provider"):
            table.add_column(column, justify="left")
        names = ("p20 ms", "p50 ms", "p80 ms", *(("wall ms", "graph ms") if on_gpu else ()))
        for column in (*names, "x eager", "x floor", "extra MB", "error"):
            table.add_column(column, justify="right", no_wrap=True)
        for result in members:
            for provider, row in result["providers"].items():
                table.add_row(
                    result["label"],
                    provider,
                    *(median(row, "ms", p) for p in ("p20", "p50", "p80")),
                    *((median(row, "wall_ms"), median(row, "graph_ms")) if on_gpu else ()),
                    number(row.get("ratio_to_eager")),
                    number(row["ms"]["p50"] / result["floor"]["floor"] if row["correct"] else None),
                    megabytes(row["extra_bytes"]),
                    worst_error(row),
                )
            table.add_section()
        console.print(table)
    print_failures(console, results)


def median(row: dict, column: str, percentile: str = "p50") -> str:
    """A time of a row, or a dash where there is none."""
    times = row.get(column)
    return "-" if times is None else number(times[percentile])


def print_failures(console: Console, results: list[dict]) -> None:
    """What each provider failed with, each error once."""
    found: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for name, row in result.get("providers", result.get("variants", {})).items():
            reasons = [row["failure"]] if row.get("failure") else []
            reasons += [f"{column}: {reason}" for column, reason in row.get("errors", {}).items()]
            for reason in reasons:
                found.setdefault((name, reason), []).append(result["label"])
    for (name, reason), labels in found.items():
        console.print(f"{name}: {reason} ({len(labels)} x, first: {labels[0]})", soft_wrap=True, markup=False)


def print_kernels(console: Console, results: list[dict], provider: str = "ours", most: int = 12) -> None:
    """The kernels of one provider, a table for each case."""
    for result in results:
        kernels = result.get("providers", result.get("variants", {})).get(provider, {}).get("kernels")
        if not kernels:
            continue
        total = sum(kernel["us"] for kernel in kernels)
        launches = sum(kernel["calls"] for kernel in kernels)
        table = Table(title=f"{result.get('title', '')} {result['label']}, {provider}: {launches:.0f} launches, "
                            f"{number(total, 4)} us")  # fmt: skip
        table.add_column("kernel", overflow="ellipsis", no_wrap=True, max_width=70)
        for column in ("calls", "us", "GB/s", "share of floor"):
            table.add_column(column, justify="right")
        for kernel in kernels[:most]:
            share = kernel.get("floor_share")
            table.add_row(kernel["name"], number(kernel["calls"]), number(kernel["us"]), number(kernel.get("gbs")),
                          "-" if share is None else f"{100 * share:.0f} %")  # fmt: skip
        console.print(table)


def print_left_out(console: Console, content: dict) -> None:
    """Cases for which there was no time."""
    if content["left_out"]:
        console.print(f"left out, the time was used up: {'; '.join(content['left_out'])}", soft_wrap=True)


def worst_error(row: dict) -> str:
    """The largest relative error of a provider, marked where it is beyond the tolerance."""
    if row.get("failure"):
        return "unavailable" if row.get("unavailable") else "failed"
    if not row["error"]:
        return "-"
    return f"{max(row['error'].values()):.0e}" + ("" if row["correct"] else " WRONG")


def rates_text(rates: dict[str, float | None]) -> str:
    """The machine's measured rates in a line."""
    peak, half = rates["fma_gflops"], rates.get("fma_gflops_bfloat16")
    return (
        f"measured in this run: torch.mm {rates['mm_gflops']:.0f} GFLOP/s, "
        + (f"multiply-adds in registers {peak:.0f} GFLOP/s, " if peak else "")
        + (f"of bfloat16 {half:.0f} GFLOP/s, " if half else "")
        + f"memory read {rates['read_gbs']:.0f} GB/s, write {rates['write_gbs']:.0f} GB/s"
    )


def print_sweep(console: Console, rows: list[dict]) -> None:
    """Speed-up over each other provider, across all sizes."""
    table = Table(title="speed-up across all sizes")
    for column in ("loss", "dtype", "over", "median", "lowest", "lowest at"):
        table.add_column(column, justify="right" if column in ("median", "lowest") else "left")
    for row in rows:
        table.add_row(row["label"], row["dtype"], row["base"], number(row["median"]), number(row["lowest"]), row["at"])
    console.print(table)


def print_bars(console: Console, bars: list[dict]) -> None:
    """Each target, what was measured, and whether it is met."""
    table = Table(title="targets")
    for column in ("target", "required", "measured", "met"):
        table.add_column(column, justify="left" if column == "target" else "right")
    for bar in bars:
        met = {None: "not measured", True: "yes", False: "no"}[bar["met"]]
        table.add_row(bar["bar"], f"{number(bar['wanted'])} {bar['unit']}", number(bar["measured"]), met)
    console.print(table)
