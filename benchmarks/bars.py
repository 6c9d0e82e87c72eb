"""The speeds set as goals at the base size, float32, two threads, and whether a run meets them."""

from dataclasses import asdict, dataclass

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
        case = find(
            results, size="base", dtype="float32", level=bar.level, mode=bar.mode, direction=bar.direction
        )
        measured = ratio(case, "ours", bar.base)
        rows.append(
            asdict(bar)
            | {
                "bar": f"{bar.level} {bar.mode}, {bar.direction}: faster than {bar.base}",
                "unit": "x",
                "measured": measured,
                "met": None if measured is None else measured >= bar.wanted,
            }
        )
    rows.append(_memory_bar(results, threads))
    return rows


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
        "bar": "memory beyond inputs and gradients, the most of all cases: below 1 MB per thread + O(B N)",
        "unit": "MB",
        "wanted": None if limit is None else limit / 1e6,
        "measured": None if extra is None else extra / 1e6,
        "met": None if extra is None else extra < limit,
    }
