"""What a GPU was to reach, and whether it did: the table in docs/support.md."""

from collections.abc import Iterable

from benchmarks import results, step_bench

DIRECTIONS = ("forward", "forward+backward")


def rows(losses: dict, prior: dict, steps: dict, compiled: dict | None) -> list[list[str]]:
    """Goal, what was wanted, what was measured, whether it is met; the runs with torch.compile may be missing."""
    found = []
    for dtype in ("bfloat16", "float32"):
        whole = results.select(losses["results"], direction=DIRECTIONS[1], dtype=dtype)
        for base in ("eager", "eager-scaled"):
            values = [results.ratio(result, "ours", base) for result in whole]
            goal = f"losses, forward+backward, {dtype}: speed-up over {base} in GPU time"
            found.append(_at_least(goal, values, 5.0 if base == "eager" else None))
    whole = results.select((compiled or losses)["results"], direction=DIRECTIONS[1])
    values = [results.ratio(result, "ours", "torch.compile") for result in whole]
    found.append(_at_least("losses, forward+backward: speed-up over torch.compile in GPU time", values, 2.5))
    for direction in DIRECTIONS:
        there = results.select(losses["results"], direction=direction)
        shares = [_floor_share(result) for result in there if result["case"]["level"] in ("token", "global")]
        found.append(_at_least(f"token and global, {direction}: share of the memory bandwidth", shares, 60, " %", 0))
    for direction in DIRECTIONS:
        there = results.select(losses["results"], direction=direction)
        times = [_inverse(results.ratio(result, "ours", "eager", "wall_ms")) for result in there]
        found.append(_at_most(f"losses, {direction}: wall time of a call relative to eager", times, 1.0))
    found += _of_prior(prior) + _of_steps(steps)
    return found


def _of_prior(content: dict) -> list[list[str]]:
    times = [_inverse(results.ratio(result, "ours", "sdpa forward")) for result in content["results"]]
    return [_at_most("significance: GPU time relative to an SDPA forward", times, 1.3)]


def _of_steps(content: dict) -> list[list[str]]:
    times = [step_bench.relative(result, "ours", "plain") for result in content["results"]]
    walls = [_wall(result) for result in content["results"]]
    added = [step_bench.added_memory(result) for result in content["results"]]
    kind = "time between events" if step_bench.any_late(content) else "GPU time"
    return [
        _at_most(f"training step: {kind} relative to plain", times, 1.03),
        _at_most("training step: wall time relative to plain", walls, 1.03),
        _at_most("training step: memory added to plain, relative to what eager adds", added, 0.02),
    ]


def _wall(result: dict) -> float | None:
    ours, plain = (result["variants"][name].get("wall_ms") for name in ("ours", "plain"))
    return ours["p50"] / plain["p50"] if result["correct"] and ours and plain else None


def _floor_share(result: dict) -> float | None:
    row = result["providers"]["ours"]
    return 100 * result["floor"]["memory"] / row["ms"]["p50"] if row["correct"] and row["ms"] else None


def _inverse(value: float | None) -> float | None:
    return None if value is None else 1 / value


def _at_least(
    goal: str, values: Iterable[float | None], wanted: float | None, unit: str = "x", digits: int = 1
) -> list[str]:
    known = [value for value in values if value is not None]
    if wanted is None:
        return [goal, "-", _spread(known, unit, digits), "-"]
    return [goal, f"at least {wanted:g}{unit}", _spread(known, unit, digits), _met(known and min(known) >= wanted)]


def _at_most(goal: str, values: Iterable[float | None], wanted: float) -> list[str]:
    known = [value for value in values if value is not None]
    return [goal, f"at most {wanted:g}x", _spread(known, "x", 2), _met(known and max(known) <= wanted)]


def _met(reached: bool | list) -> str:
    """An empty list: nothing was measured."""
    return "not measured" if reached == [] else "yes" if reached else "no"


def _spread(known: list[float], unit: str, digits: int) -> str:
    if not known:
        return "-"
    low, high = (f"{value:.{digits}f}" for value in (min(known), max(known)))
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"
