"""Compiles the CUDA kernels for every target and prints what each needs: `python tests/cuda_offline.py`.

Fails if a kernel spills registers, has a stack frame (something indexed at run time) or exceeds 48 KB of static shared
memory. Without nvcc it says 'skipped: why'.
"""

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent.parent.resolve() / "csrc"
TARGETS = ("80", "90", "100")
SHARED_LIMIT = 48 * 1024


def compile_one(source: Path, target: str) -> tuple[str, str, list[tuple[str, int, int, int, int]]]:
    """(kernel, registers, bytes spilled, of its stack frame, of shared memory) of each kernel of a source."""
    command = [
        "nvcc", "-std=c++17", "-O3", f"-I{SOURCES}", f"-I{SOURCES / 'cuda'}", '-DPAD_CUDA_TARGETS=""',
        "-gencode", f"arch=compute_{target},code=sm_{target}", "-Xptxas", "-v", "-cubin",
        "-o", "/dev/null", str(source),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc failed on {source.name} for sm_{target}:\n{done.stdout}{done.stderr}")
    found = []
    for block in done.stderr.split("Compiling entry function")[1:]:
        name = re.search(r"'(\S+)'", block).group(1)
        spills = [int(number) for number in re.findall(r"(\d+) bytes spill", block)]
        stack = int(re.search(r"(\d+) bytes stack frame", block).group(1))
        registers = int(re.search(r"Used (\d+) registers", block).group(1))
        shared = re.search(r"(\d+) bytes smem", block)
        found.append((name, registers, sum(spills), stack, int(shared.group(1)) if shared else 0))
    return source.stem, target, found


def readable(name: str) -> str:
    """A mangled kernel's own name and template arguments."""
    if shutil.which("c++filt"):
        name = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout.strip()
    name = re.sub(r"\(pad::cuda::\w+\)$|\(.*\)$|^void ", "", name.replace("pad::cuda::", ""))
    return re.sub(r"\(bool\)|__nv_|__", "", name)


def main() -> int:
    if shutil.which("nvcc") is None:
        print("skipped: no nvcc on this machine")
        return 0
    jobs = [(source, target) for source in sorted((SOURCES / "cuda").glob("*.cu")) for target in TARGETS]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda job: compile_one(*job), jobs))
    kernels: dict[str, dict[str, tuple[int, ...]]] = {}
    for _, target, found in results:
        for name, *needs in found:
            kernels.setdefault(name, {})[target] = tuple(needs)
    print(f"{'kernel':<52}" + "".join(f"sm_{target:<26}" for target in TARGETS))
    print(f"{'':<52}" + f"{'registers spill stack shared':<29}" * len(TARGETS))
    bad = 0
    for name, needs in sorted(kernels.items(), key=lambda item: readable(item[0])):
        cells = "".join("{:>9} {:>5} {:>5} {:>6} ".format(*needs[target]) for target in TARGETS)
        print(f"{readable(name):<52}{cells}")
        bad += sum(spill > 0 or stack > 0 or shared > SHARED_LIMIT for _, spill, stack, shared in needs.values())
    print(f"{len(kernels)} kernels for {len(TARGETS)} targets, {bad} with spills, a stack or too much shared memory")
    return 1 if bad or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
