"""The CUDA kernels of csrc/cuda, compiled by nvcc where there is one: what each takes of the chip.

`auto` takes them at widths that Triton does not serve, and where Triton is not installed. Neither their launches nor
their work are counted, so that there is no time for them.
"""

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.gpu_static.compiling import blocks_per_sm, instructions, tools

SOURCES = Path(__file__).resolve().parents[2] / "csrc"


def kernels(scratch: Path, jobs: int = 2) -> list[dict]:
    """Each kernel as plain data, kept in the folder `scratch`; none without nvcc."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return []
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for source in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("cuda/*")]):
        digest.update(source.read_bytes())
    file = scratch / f"{digest.hexdigest()[:32]}.native"
    if not file.exists():
        with ThreadPoolExecutor(jobs) as pool:
            found = list(pool.map(lambda source: _compiled(nvcc, source), sorted((SOURCES / "cuda").glob("*.cu"))))
        listed = sorted((kernel for part in found for kernel in part), key=lambda kernel: kernel["name"])
        file.write_text(json.dumps(listed), encoding="utf-8")
    kept: list[dict] = json.loads(file.read_text(encoding="utf-8"))
    return kept


def _compiled(nvcc: str, source: Path) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.cubin"
        command = [nvcc, "-std=c++17", "-O3", f"-I{SOURCES}", f"-I{SOURCES / 'cuda'}", '-DPAD_CUDA_TARGETS=""',
                   "-arch=sm_90", "-cubin", "-o", str(file), str(source)]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        usage, code = (_output(tools() / "cuobjdump", option, file) for option in ("-res-usage", "-sass"))
    listings = dict(re.findall(r"Function : (\S+)(.*?)(?=Function : |\Z)", code, re.S))
    found = []
    for name, line in re.findall(r"Function (\S+):\n(.*)", usage):
        taken = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
        if name in listings:
            found.append(_kernel(_readable(name), taken, instructions(listings[name])))
    return found


def _kernel(name: str, taken: dict[str, int], counted: dict) -> dict:
    return {
        "name": name,
        "registers": taken["REG"],
        "stack": taken["STACK"],
        "shared": taken["SHARED"],
        "blocks_per_sm": {warps: blocks_per_sm(taken["REG"], taken["SHARED"], warps) for warps in (4, 8)},
        "matrix": counted["matrix"],
        "hot_loads": counted["hot_loads"] or counted["loads"],
        "hot_stores": counted["hot_stores"] or counted["stores"],
    }


def _output(*command) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _readable(name: str) -> str:
    """A mangled kernel's own name and template arguments."""
    if shutil.which("c++filt"):
        name = _output("c++filt", name).strip()
    name = re.sub(r"\(pad::cuda::\w+\)$|\(.*\)$|^void ", "", name.replace("pad::cuda::", ""))
    return re.sub(r"\(bool\)|__nv_|__", "", name)
