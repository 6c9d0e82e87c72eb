"""Peak memory of a call, beyond what its inputs take.

CPU: a child process per provider, where each call is made once to warm up and then once under measurement;
the figure is the growth of the process's peak resident set (VmHWM, reset through /proc/self/clear_refs).
Freed memory goes back to the system there (malloc's mmap threshold is lowered, and what the native backend keeps is
released), so that the figure is what was alive. A GPU's memory is read in the process itself (accelerator.Cuda).
"""

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import pad_kernels

ROOT = Path(__file__).resolve().parent.parent
MMAP_THRESHOLD = str(32 * 1024)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def peak_in_process(call: Callable[[], object]) -> int:
    """Bytes by which the memory of this process peaks during `call`."""
    for _ in range(2):
        call()
    gc.collect()
    if "native" in pad_kernels.available_backends():
        importlib.import_module("pad_kernels.backends.library").release_kept_memory()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    result = call()
    peak = _status_bytes("VmHWM")
    del result
    return max(0, peak - before)


def peaks(module: str, provider: str, cases: list[dict], *, threads: int) -> list[int | None]:
    """Peak bytes of each case, measured in a child process; None where it could not be measured.

    `module` names one with `workload(provider, case)`, which returns the call to measure.
    """
    if not Path("/proc/self/clear_refs").exists():
        return [None] * len(cases)
    request = {"module": module, "provider": provider, "cases": cases, "threads": threads}
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": MMAP_THRESHOLD,
        "MALLOC_TRIM_THRESHOLD_": MMAP_THRESHOLD,
    }
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory"],
        input=json.dumps(request),
        text=True,
        capture_output=True,
        cwd=ROOT,
        env=environment,
    )
    if child.returncode:
        print(f"memory of {provider} could not be measured:\n{child.stderr[-2000:]}", file=sys.stderr)
        return [None] * len(cases)
    sys.stderr.write(child.stderr if "memory of" in child.stderr else "")
    return json.loads(child.stdout.splitlines()[-1])


def main() -> None:
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    workload = importlib.import_module(request["module"]).workload
    found = []
    for case in request["cases"]:
        try:
            found.append(peak_in_process(workload(request["provider"], case)))
        except Exception as error:  # of one case; the others are measured
            print(f"memory of {request['provider']} in {case}: {error}", file=sys.stderr)
            found.append(None)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
