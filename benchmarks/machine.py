"""The machine of a run: what it is, and the rates it reaches, measured in the same run as the results."""

import atexit
import functools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import pad_kernels

from .accelerator import Device

PACKAGES = ("torch", "pad_kernels", "triton", "numpy", "transformers")


def cpu_model() -> str:
    """Name of the processor, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def package_versions() -> dict[str, str]:
    """Versions of the packages a figure depends on, those installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def command(arguments: list[str]) -> str:
    """A command as a results file may show it: of absolute paths, which tell of somebody's machine, the name alone."""

    def shown(word: str) -> str:
        flag, equals, value = word.rpartition("=")
        return flag + equals + (Path(value).name if Path(value).is_absolute() else value)

    return " ".join(["python", Path(arguments[0]).name, *map(shown, arguments[1:])])


def describe(device: Device, threads: int) -> dict:
    """Machine, threads and versions for the JSON file."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "versions": package_versions(),
        "backends": str(pad_kernels.available_backends()),
        "allocator": {name: value for name, value in os.environ.items() if name.startswith(("MALLOC_", "ONEDNN_"))},
        "command": command(sys.argv),
        "finished": "",
        **device.describe(),
    }


def _best_seconds(call: Callable[[], object], device: Device, repeats: int = 7) -> float:
    call()
    return min(device.seconds(call) for _ in range(repeats))


@functools.cache
def programs() -> dict[str, Path]:
    """The C programs beside this file, `traffic` a library, compiled for this processor; none without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return {}
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    built = {}
    for name in ("peak", "traffic"):
        source, program = Path(__file__).with_name(f"{name}.c"), Path(folder) / name
        shared = ("-shared", "-fPIC") if name == "traffic" else ()
        command = [compiler, "-O3", "-march=native", "-ffp-contract=fast", *shared, source, "-o", program]
        if subprocess.run(command, capture_output=True).returncode == 0:
            built[name] = program
    return built


def _peak_gflops(threads: int, dtype: str) -> float | None:
    """Peak of multiply-adds in registers, one process per thread; None where it cannot be measured."""
    if "peak" not in programs():
        return None
    best = 0.0
    for _ in range(3):
        command = [programs()["peak"], dtype]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(threads)]
        best = max(best, sum(float(process.communicate()[0]) for process in running))
    return best or None


def measure_rates(device: Device, threads: int) -> dict[str, float | None]:
    """Best of several tries: matrix products in GFLOP/s, memory reads and writes in GB/s.

    `fma_gflops` is the ceiling of the CPU's arithmetic (multiply-adds in registers), `fma_gflops_bfloat16` that of
    bfloat16 products, where the processor has them, in tiles where it has those; `mm_gflops` what torch.mm reaches on
    square float32 matrices (`mm_gflops_half`, on a GPU: bfloat16); `write_gbs` is into memory already mapped;
    `copy_gbs`, on a GPU, counts what is read and what is written; `threads` is None on a GPU.
    """
    side, bytes_moved = {"cpu": (2048, 2**28), "cuda": (8192, 2**31), "dry-run": (64, 2**16)}[device.name]

    def mm_gflops(dtype: torch.dtype) -> float:
        a, b = torch.randn(2, side, side, device=device.tensors).to(dtype)
        out = torch.empty_like(a)
        return 2 * side**3 / _best_seconds(lambda: torch.mm(a, b, out=out), device) / 1e9

    buffer = torch.ones(bytes_moved // 4, device=device.tensors)
    read = buffer.nbytes / _best_seconds(lambda: buffer.sum(), device)
    write = buffer.nbytes / _best_seconds(lambda: buffer.fill_(1.0), device)
    rates = {
        "threads": None if device.is_gpu else threads,
        "fma_gflops": None if device.is_gpu else _peak_gflops(threads, "float32"),
        "fma_gflops_bfloat16": None if device.is_gpu else _peak_gflops(threads, "bfloat16"),
        "mm_gflops": mm_gflops(torch.float32),
        "mm_gflops_half": mm_gflops(torch.bfloat16) if device.is_gpu else None,
        "read_gbs": read / 1e9,
        "write_gbs": write / 1e9,
    }
    if device.is_gpu:
        halves = buffer.chunk(2)
        rates["copy_gbs"] = buffer.nbytes / _best_seconds(lambda: halves[0].copy_(halves[1]), device) / 1e9
    return rates
