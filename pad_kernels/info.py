"""What this installation can do: `python -m pad_kernels.info`, or `pad_kernels.info.report()`.

With `--check` every backend runs a tiny case of each op against the reference, on each device.
"""

import argparse
import importlib.metadata
import os
import platform
import sys
from typing import Any

import torch

from pad_kernels import backends
from pad_kernels.backends import library, self_test
from pad_kernels.inputs import OP_OF_LEVEL
from pad_kernels.registration import OPS


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices(every: bool = False) -> list[torch.device]:
    """One of each type, or every one."""
    gpus = ["cuda"] * torch.cuda.is_available()
    if every:
        gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [torch.device(name) for name in ("cpu", *gpus, *["mps"] * torch.backends.mps.is_available())]


def report() -> dict[str, Any]:
    """Versions, CPU, devices, backends with the reason for each one missing, and which backends implement each op.

    `backends` maps a name to None (available) or the reason; `ops` maps a device type and an op to the names
    of the backends that run it in float32, the fastest first: the first one is what "auto" takes.
    """
    devices = _devices()
    reasons: dict[str, str | None] = {}
    ops: dict[str, dict[str, list[str]]] = {device.type: {op: [] for op in OPS} for device in devices}
    for name, backend in backends.FASTEST_FIRST.items():
        found = []
        for device in devices:
            for op in OPS:
                reason = backend.unsupported_reason(op, device, torch.float32)
                if reason is None:
                    ops[device.type][op].append(name)
                found.append(reason)
        reasons[name] = None if None in found else found[0]
    return {
        "versions": {
            "pad_kernels": _version("pad-kernels"),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "python": platform.python_version(),
        },
        "cpu": {
            "machine": platform.machine(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
            "native_instruction_set": library.instruction_set() or "none",
            "threads": torch.get_num_threads(),
        },
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        + ["Apple (mps)"] * torch.backends.mps.is_available(),
        "cuda_kernels": library.cuda_targets() or f"none: {library.cuda_note()}",
        "default_backend": os.environ.get(backends.ENVIRONMENT_VARIABLE) or "auto",
        "backends": reasons,
        "ops": ops,
    }


def text(found: dict[str, Any]) -> str:
    """The report for a terminal."""
    versions, cpu = found["versions"], found["cpu"]
    lines = [f"{name:<12} {version}" for name, version in versions.items()]
    lines.append(
        f"{'cpu':<12} {cpu['machine']}, {cpu['threads']} threads, "
        f"torch uses {cpu['torch_capability']}, pad_kernels uses {cpu['native_instruction_set']}"
    )
    lines.append(f"{'gpus':<12} {', '.join(found['gpus']) or 'none'}")
    lines.append(f"{'cuda kernels':<12} {found['cuda_kernels']}")
    lines.append(f"{'default':<12} {found['default_backend']} ({backends.ENVIRONMENT_VARIABLE})")
    lines += ["", "backends"]
    for name, reason in found["backends"].items():
        lines.append(f"  {name:<10} {'available' if reason is None else 'missing: ' + reason}")
    column = max(len(op) for op in OPS) + 2
    for device, ops in found["ops"].items():
        names = "".join(f"{name:<12}" for name in found["backends"])
        lines += ["", f"{'ops on ' + device:<{column + 2}}{names}".rstrip()]
        for op, names in ops.items():
            cells = ("yes" if name in names else "-" for name in found["backends"])
            lines.append(f"  {op:<{column}}" + "".join(f"{cell:<12}" for cell in cells).rstrip())
    return "\n".join(lines)


def support_table() -> str:
    """Which backend has which op, whatever is installed here: a table in Markdown."""
    columns = [
        (backend, device_type)
        for backend in reversed(backends.FASTEST_FIRST.values())
        for device_type in backend.default_devices or ("any device",)
    ]
    rows = [
        ["op", *(f"{backend.name}, {device_type}" for backend, device_type in columns)],
        ["---"] * (len(columns) + 1),
    ]
    for op in OPS:
        cells = ("yes" if op in backend.ops_on(device_type) else "" for backend, device_type in columns)
        rows.append([f"`{op}`", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def check() -> list[str]:
    """Runs a tiny case of each op and loss on every backend and device, in float32, bfloat16 and float16; what went
    wrong, or could not be run."""
    cases = [(op, None) for op in OPS] + [(op, level) for level, op in OP_OF_LEVEL.items()]
    failures = []
    for device in _devices(every=True):
        for backend in backends.FASTEST_FIRST.values():
            for op, level in cases:
                for dtype in (torch.float32, torch.bfloat16, torch.float16):
                    if backend.unsupported_reason(op, device, dtype) is None:
                        what = backend, op, device, dtype, level
                        failures.append(self_test.failure(*what) or self_test.untested_reason(*what))
    return sorted({failure for failure in failures if failure})


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pad_kernels.info", description="What is installed here.")
    parser.add_argument("--check", action="store_true", help="run a tiny case of every op on every backend")
    parser.add_argument("--support", action="store_true", help="print which backend implements which op, in Markdown")
    options = parser.parse_args()
    if options.support:
        print(support_table())
        return 0
    try:
        print(text(report()), flush=True)
    except BrokenPipeError:  # piped to `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if not options.check:
        return 0
    failures = check()
    print("\ncheck")
    print("\n".join(f"  {failure}" for failure in failures) or "  all ops are right on all backends of this machine")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
