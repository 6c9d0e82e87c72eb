"""The tables of docs/gpu_predictions.md, as Markdown from benchmarks/results/gpu_static.json."""

from benchmarks.drawings import table
from benchmarks.tables import number


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _calls(content: dict, size: str, dtype: str) -> list[dict]:
    return [one for one in content["calls"] if one["call"]["size"] == size and one["call"]["dtype"] == dtype]


def _shape(call: dict) -> str:
    names = "BHTd" if call["call"]["name"] == "significance" else "BMND"
    return " ".join(f"{name}={size}" for name, size in zip(names, call["shape"]))


def calls(content: dict) -> str:
    """Every call: floor and predicted time on an H100, eager PyTorch's too; the times on the chip that was measured."""
    chip = content["model"]["measured_chip"]
    header = ["call", "launches", "floor, us", "predicted, us", "eager, predicted us"]
    header += [f"{chip}: predicted, us", f"{chip}: measured, us"]
    parts = []
    for size, dtype in dict.fromkeys((one["call"]["size"], one["call"]["dtype"]) for one in content["calls"]):
        found = _calls(content, size, dtype)
        rows = []
        for one in found:
            launches = one["launches"]
            times = "floor_us", "predicted_us", "eager_predicted_us", "predicted_there_us", "measured_us"
            label = one["label"] + (f" ({_shape(one)})" if one["call"]["name"] == "significance" else "")
            counts = f"{launches['forward']} + {launches['backward']}"
            rows.append([label, counts, *(number(one[name]) for name in times)])
        parts.append(f"{_shape(found[0])} {dtype}, ragged 40-100 %:\n\n{table(header, rows)}")
    return "\n\n".join(parts) + (
        "\n\nLaunches: of the forward + the backward pass, PyTorch's own included. Floor and the first two "
        f"predictions: for an H100. Measured: GPU time on an NVIDIA {chip}; at the span level with spans given, where "
        "the prediction includes their choice. All else is predicted."
    )


def kernels(content: dict) -> str:
    """Each kernel of the calls forward and backward at the first size: its share of the chip, and what it moves."""
    header = ["call", "kernel", "programs", "per SM", "waves", "registers", "spilled / stack, bytes", "shared, bytes"]
    header += ["loads, bits", "stores, bits", "matrix instructions", "read, MB", "written, MB", "predicted, us"]
    size = content["calls"][0]["call"]["size"]
    parts = []
    for dtype in dict.fromkeys(one["call"]["dtype"] for one in content["calls"]):
        rows = []
        for one in _calls(content, size, dtype):
            if one["launches"]["backward"] or one["call"]["name"] == "significance":
                rows += [[one["call"]["name"], *_kernel(kernel)] for kernel in one["kernels"]]
        parts.append(f"{dtype}:\n\n{table(header, rows)}")
    return "\n\n".join(parts) + (
        "\n\nCompiled for sm_90. Loads and stores: how many of which width stand in the innermost loops with access to "
        "global memory, or in the whole kernel if there is no such loop. Bytes and times are predicted."
    )


def _kernel(one: dict) -> list[str]:
    moved = [number(one["read_bytes"] / 1e6), number(one["written_bytes"] / 1e6), number(one["predicted_us"])]
    if one.get("pytorch"):
        return [f"{one['name']} (PyTorch)", *["-"] * 10, *moved]

    return [
        one["name"], str(one["programs"]), str(one["blocks_per_sm"]), number(one["waves"]), str(one["registers"]),
        f"{one['spills']} / {one['stack']}", str(one["shared"]), _counted(one["hot_loads"]),
        _counted(one["hot_stores"]), _counted(one["matrix"]), *moved,
    ]  # fmt: skip


def resources(content: dict) -> str:
    """What each kernel takes at most of each chip that it was compiled for."""
    targets = list(dict.fromkeys(one["target"] for one in content["resources"]))
    kernels: dict[tuple[str, str], dict] = {}
    for one in content["resources"]:
        kernels.setdefault((one["kernel"], one["dtype"]), {})[one["target"]] = one
    rows = [
        [kernel, dtype, *(f"{one['registers']}, {one['spills']}, {one['shared']}" if one else "-"
                          for one in map(found.get, targets))]
        for (kernel, dtype), found in sorted(kernels.items())
    ]  # fmt: skip
    version = content["machine"]["versions"]["triton"]
    return table(["kernel", "dtype", *targets], rows) + (
        f"\n\nRegisters, spilled bytes, and bytes of shared memory: the most of all variants, with Triton {version}."
    )


def native(content: dict) -> str:
    """The CUDA kernels: what each takes of the chip."""
    header = ["kernel", "registers", "stack, bytes", "shared, bytes", "per SM, 4 / 8 warps", "loads, bits"]
    header += ["stores, bits", "matrix instructions"]
    rows = [
        [f"`{one['name']}`", str(one["registers"]), str(one["stack"]), str(one["shared"]),
         " / ".join(map(str, one["blocks_per_sm"].values())),
         *(_counted(one[key]) for key in ("hot_loads", "hot_stores", "matrix"))]
        for one in content["native"]
    ]  # fmt: skip
    return table(header, rows)


def _counted(counts: dict) -> str:
    return ", ".join(f"{count} x {width}" for width, count in counts.items()) or "-"


def errors(content: dict) -> str:
    """How far off the predictions are, by kernel."""
    rows = [
        [name, str(one["count"]), *(_share(one[key]) for key in ("median", "within_25_percent", "worst"))]
        for name, one in content["errors"].items()
    ]
    return table(["predicted against measured", "count", "median error", "within 25 %", "worst"], rows)


def bars(content: dict) -> str:
    """The bars, those that do not hold first."""
    rows = []
    for one in sorted(content["bars"], key=lambda one: one["holds"]):
        if one["holds"] and one["name"].startswith(("launches", "registers")):
            continue
        rows.append([one["name"], f"{number(one['allowed'])} {one['unit']}", number(one["found"]),
                     "yes" if one["holds"] else "no"])  # fmt: skip
    held = sum(one["holds"] for one in content["bars"])
    return (
        f"{table(['bar', 'at most', 'predicted', 'holds'], rows)}\n\n{held} of {len(content['bars'])} hold; those on "
        "launches and registers that hold are left out."
    )
