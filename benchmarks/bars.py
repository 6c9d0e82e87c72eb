"""What is set as goals at the base size, float32 unless it says so, two threads, and whether a run meets it."""

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


LOSSES = (("token", "hard"), ("token", "soft"), ("span", "hard"), ("span", "soft"), ("global", ""))
BARS = (
    Bar("token", "hard", BOTH, "eager", 8.0),
    Bar("token", "hard", BOTH, "eager-scaled", 4.0),
    Bar("token", "hard", BOTH, "torch.compile", 4.0),
    Bar("token", "hard", "forward", "eager-scaled", 3.5),
    Bar("token", "soft", BOTH, "eager-scaled", 4.0),
    Bar("span", "hard", BOTH, "eager-scaled", 4.0),
    Bar("span", "soft", BOTH, "eager-scaled", 4.0),
)


# Of the time that memory traffic and arithmetic allow.
FLOOR_SHARES = {"forward": 0.6, BOTH: 0.7}
# Over torch.compile, forward and backward, where the allocator keeps freed memory for all of them.
KEPT_OVER_COMPILED, KEPT_OVER_COMPILED_TOKEN_SOFT = 5.0, 4.0
KEPT = "speed-up over torch.compile, memory kept"
# bfloat16 over float32, forward and backward.
HALF, HALF_TOKEN_SOFT = 1.0, 1.3


def evaluate(results: list[dict], threads: int, memory_kept: bool = False) -> list[dict]:
    """Each bar with what was measured (None: not measured) and whether it is met.

    memory_kept: the allocator keeps freed memory for all; the leads over torch.compile that are wanted then count too.
    """
    base = {"size": "base", "dtype": "float32"}
    rows = []
    for bar in BARS:
        case = find(results, **base, level=bar.level, mode=bar.mode, direction=bar.direction)
        name = f"{bar.level} {bar.mode}, {bar.direction}: speed-up over {bar.base}"
        rows.append(asdict(bar) | _row(name, "x", bar.wanted, ratio(case, "ours", bar.base)))
    rows += [_thread_bar(results, threads, direction) for direction in ("forward", BOTH)]
    rows.append(_memory_bar(results, threads))
    for level, mode in LOSSES:
        for direction, wanted in FLOOR_SHARES.items():
            case = find(results, **base, level=level, mode=mode, direction=direction)
            rows.append(_row(f"{_name(level, mode)}, {direction}: share of the floor", "", wanted, _floor_share(case)))
    for level, mode in LOSSES:
        token_soft = (level, mode) == ("token", "soft")
        single, half = (find(results, **base | {"dtype": dtype}, level=level, mode=mode, direction=BOTH)
                        for dtype in ("float32", "bfloat16"))  # fmt: skip
        name = f"{_name(level, mode)}, {BOTH}: speed-up of bfloat16 over float32"
        times = _milliseconds(single), _milliseconds(half)
        measured = None if None in times else times[0] / times[1]
        rows.append(_row(name, "x", HALF_TOKEN_SOFT if token_soft else HALF, measured))
        if memory_kept:
            wanted = KEPT_OVER_COMPILED_TOKEN_SOFT if token_soft else KEPT_OVER_COMPILED
            name = f"{_name(level, mode)}, {BOTH}: {KEPT}"
            rows.append(_row(name, "x", wanted, ratio(single, "ours", "torch.compile")))
    return rows


def small_batches(results: list[dict]) -> list[dict]:
    """Of a sweep, for each small batch: the loss with the least lead over eager, which is to be one."""
    rows = []
    for size in SMALL_BATCHES:
        found = {result["label"]: ratio(result, "ours", "eager") for result in results
                 if result["case"]["size"] == size and result["case"]["dtype"] == "float32"}  # fmt: skip
        known = {label: value for label, value in found.items() if value is not None}
        lowest = min(known, key=known.get) if known else None
        name = f"{size}, lowest of all losses: speed-up over eager" + (f" ({lowest})" if lowest else "")
        rows.append(_row(name, "x", 1.0, known.get(lowest)))
    return rows


def _row(bar: str, unit: str, wanted: float, measured: float | None) -> dict:
    met = None if measured is None else measured >= wanted
    return {"bar": bar, "unit": unit, "wanted": wanted, "measured": measured, "met": met}


def _name(level: str, mode: str) -> str:
    return f"{level} {mode}".strip()


def _milliseconds(result: dict | None) -> float | None:
    """Ours, where it is right and was timed."""
    ours = result and result["providers"].get("ours")
    return ours["ms"]["p50"] if ours and ours["correct"] and ours["ms"] else None


def _floor_share(result: dict | None) -> float | None:
    milliseconds = _milliseconds(result)
    return None if milliseconds is None else result["floor"]["floor"] / milliseconds


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
    return _row(f"two threads over one, {direction}: median speed-up of the losses", "x", 1.7, measured)


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
