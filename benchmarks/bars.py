"""The speeds set as goals at the base size, float32, two threads, and whether a run meets them."""

import statistics
from dataclasses import asdict, dataclass

from .cases import SMALL_BATCHES
from .results import find, ratio

BOTH = "forward+backward"
# Beyond inputs and gradients, per thread, and per token of the padded batch.
BYTES_PER_THREAD = 1e6
BYTES_PER_TOKEN = 64


@dataclass(frozen=True)
class Bar:
    """`ours` at least `wanted` times as fast as `base`."""

    level: str
    mode: str
    direction: str
    base: str
    wanted: float


BARS = (
    Bar("token", "hard", BOTH, "eager", 8.0),
    Bar("token", "hard", BOTH, "eager-scaled", 4.0),
    Bar("token", "hard", BOTH, "torch.compile", 4.0),
    Bar("token", "hard", "forward", "eager-scaled", 3.5),
    Bar("token", "soft", BOTH, "eager-scaled", 4.0),
    Bar("span", "hard", BOTH, "eager-scaled", 4.0),
    Bar("span", "soft", BOTH, "eager-scaled", 4.0),
)


def evaluate(results: list[dict], threads: int) -> list[dict]:
    """Each bar with what was measured (None: not measured) and whether it is met."""
    rows = []
    for bar in BARS:
        case = find(results, size="base", dtype="float32", level=bar.level, mode=bar.mode, direction=bar.direction)
        measured = ratio(case, "ours", bar.base)
        rows.append(
            asdict(bar)
            | {
                "bar": f"{bar.level} {bar.mode}, {bar.direction}: speed-up over {bar.base}",
                "unit": "x",
                "measured": measured,
                "met": None if measured is None else measured >= bar.wanted,
            }
        )
    rows += [_thread_bar(results, threads, direction) for direction in ("forward", BOTH)]
    rows.append(_memory_bar(results, threads))
    return rows


def summarize(results: list[dict]) -> list[dict]:
    """Of a sweep, small batches aside: how many times faster ours is than each other provider, median and lowest."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for result in results:
        if result["case"]["size"] not in SMALL_BATCHES:
            groups.setdefault((result["label"], result["case"]["dtype"]), []).append(result)
    rows = []
    for (label, dtype), members in groups.items():
        for base in members[0]["providers"]:
            found = {member["case"]["size"]: ratio(member, "ours", base) for member in members}
            known = {size: value for size, value in found.items() if value is not None}
            if base != "ours" and known:
                lowest = min(known, key=known.get)
                median = statistics.median(known.values())
                rows.append({"label": label, "dtype": dtype, "base": base, "sizes": len(known), "median": median,
                             "lowest": known[lowest], "at": lowest})  # fmt: skip
    return rows


def _thread_bar(results: list[dict], threads: int, direction: str) -> dict:
    """With the backward pass the system's clearing of the gradients' fresh pages has a large share."""
    wanted = {"size": "base", "dtype": "float32", "direction": direction}
    found = [result["one_thread"] for result in results
             if wanted.items() <= result["case"].items() and "one_thread" in result]  # fmt: skip
    measured = None
    if threads == 2 and found:
        measured = statistics.median(times["one"]["p50"] / times["all"]["p50"] for times in found)
    return {
        "bar": f"two threads over one, {direction}: median speed-up of the losses",
        "unit": "x",
        "wanted": 1.7,
        "measured": measured,
        "met": None if measured is None else measured >= 1.7,
    }


def _memory_bar(results: list[dict], threads: int) -> dict:
    extra, limit = None, None
    for result in results:
        ours = result["providers"].get("ours")
        if result["case"]["size"] == "base" and result["case"]["dtype"] == "float32" and ours:
            if ours["extra_bytes"] is not None and (extra is None or ours["extra_bytes"] > extra):
                extra = ours["extra_bytes"]
                shape = result["case"]["shape"]
                limit = threads * BYTES_PER_THREAD + BYTES_PER_TOKEN * shape["batch"] * shape["tokens"]
    return {
        "bar": "peak memory beyond inputs and gradients, worst case: below 1 MB per thread + O(B N)",
        "unit": "MB",
        "wanted": None if limit is None else limit / 1e6,
        "measured": None if extra is None else extra / 1e6,
        "met": None if extra is None else extra < limit,
    }
