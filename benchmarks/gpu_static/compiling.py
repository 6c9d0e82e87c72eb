"""A Triton kernel compiled for a chip that need not be there, and what its machine code says."""

import hashlib
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.gpu_static.recording import Specialisation

TARGETS = {"sm_80": 80, "sm_90": 90, "sm_100": 100}
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
MATRIX = ("HGMMA", "HMMA", "IMMA", "QGMMA", "UTCHMMA", "UTCQMMA")


@dataclass(frozen=True)
class Compiled:
    """What a kernel takes of a chip, and what its machine code is made of."""

    registers: int
    spills: int  # bytes
    stack: int  # bytes
    shared: int  # bytes
    warps: int
    instructions: int
    # How many of each: loads and stores of global memory by their width in bits, asynchronous ones included.
    loads: dict[str, int]
    stores: dict[str, int]
    asynchronous: int
    matrix: dict[str, int]
    # Of these, what stands in the innermost loop that loads from global memory.
    hot_loads: dict[str, int]
    hot_stores: dict[str, int]
    refused: str = ""  # why it does not compile

    @property
    def blocks_per_sm(self) -> int:
        """Programs that fit on an SM at once; the limits are those of sm_90."""
        return blocks_per_sm(self.registers, self.shared, self.warps)


def blocks_per_sm(registers: int, shared: int, warps: int) -> int:
    """By registers, shared memory, warps and blocks of an SM of sm_90."""
    of_warp = -(-max(registers, 1) * 32 // 256) * 256
    by_registers = (65536 // of_warp) // 4 * 4 // warps if warps >= 4 else (65536 // of_warp) // warps
    return max(1, min(by_registers, 228 * 1024 // (shared + 1024), 64 // warps, 32))


def _failed(reason: str) -> Compiled:
    return Compiled(0, 0, 0, 0, 1, 0, {}, {}, 0, {}, {}, {}, reason)


def compile_one(job: tuple[Specialisation, str]) -> Compiled:
    """Compile for a target such as "sm_90"; what the compiler refuses is said in `refused`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    wanted, target = job
    kernel = getattr(importlib.import_module(wanted.module), wanted.kernel)
    source = ASTSource(
        kernel, dict(wanted.signature), {(kernel.arg_names.index(key),): value for key, value in wanted.constants},
        {(i,): [["tt.divisibility", 16]] for i in wanted.aligned},
    )  # fmt: skip
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", TARGETS[target], 32), options=dict(wanted.options))
    except Exception as failure:
        return _failed(f"{type(failure).__name__}: {str(failure).strip()[:300]}")
    return read(compiled.asm["cubin"], compiled.asm["ptx"], compiled.metadata.shared, wanted.option("num_warps", 4))


def tools() -> Path:
    """Where Triton keeps NVIDIA's tools."""
    import triton

    return Path(triton.__file__).parent / "backends/nvidia/bin"


def _run(*command) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def read(binary: bytes, ptx: str, shared: int, warps: int) -> Compiled:
    """What the machine code of one kernel says."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel"
        file.write_bytes(binary)
        usage = _run(tools() / "cuobjdump", "-res-usage", file)
        code = _run(tools() / "cuobjdump", "-sass", file)
        registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
        spills = 0
        if stack:
            # The stack also serves calls, as that of an exact division: the assembler tells what was spilled.
            file.write_text(ptx)
            arch = re.search(r"\.target (\w+)", ptx)[1]
            assembler = tools() / ("ptxas-blackwell" if arch.startswith("sm_10") else "ptxas")
            said = _run(assembler if assembler.exists() else tools() / "ptxas", "-v", f"-arch={arch}", file,
                        "-o", os.devnull)  # fmt: skip
            spills = sum(int(size) for size in re.findall(r"(\d+) bytes spill", said))
    return Compiled(registers, spills, stack, shared, warps, **instructions(code))


def _width(name: str) -> str:
    found = re.search(r"\.(64|128|256)\b", name)
    narrow = re.search(r"\.[US](8|16)\b", name)
    return found[1] if found else narrow[1] if narrow else "32"


def instructions(code: str) -> dict:
    """Counts of the instructions of a listing by cuobjdump, by kind."""
    lines = [(int(at[1], 16), name[1], line) for line in code.splitlines()
             if (name := INSTRUCTION.search(line)) and (at := re.search(r"/\*([0-9a-f]{4,})\*/", line))]  # fmt: skip
    names = [name for _, name, _ in lines]
    moved = ("LDG", "LDGSTS", "STG", "UTMALDG", "UTMASTG", "UBLKCP")
    inside = _innermost_loops(lines)
    hot = [name for (at, name, _) in lines if any(low <= at <= high for low, high in inside)]

    def widths(found: list[str], kinds: tuple[str, ...]) -> dict[str, int]:
        return dict(sorted(Counter(_width(n) if n.startswith(("LDG", "STG")) else "bulk" for n in found
                                   if n.split(".")[0] in kinds).items()))  # fmt: skip

    loads, stores = (moved[0], moved[1], moved[3], moved[5]), (moved[2], moved[4])
    return {
        "instructions": len([name for name in names if name != "NOP"]),
        "loads": widths(names, loads),
        "stores": widths(names, stores),
        "asynchronous": sum(name.split(".")[0] in ("LDGSTS", "UTMALDG", "UBLKCP") for name in names),
        "matrix": dict(Counter(name.split(".")[0] for name in names if name.split(".")[0] in MATRIX)),
        "hot_loads": widths(hot, loads),
        "hot_stores": widths(hot, stores),
    }


def _innermost_loops(lines: list[tuple[int, str, str]]) -> list[tuple[int, int]]:
    """Ranges of addresses of backward branches with loads or stores of global memory and no such range inside."""
    loops = []
    for at, name, line in lines:
        if name.split(".")[0] == "BRA" and (target := re.search(r"0x([0-9a-f]+)", line.partition("BRA")[2])):
            low = int(target[1], 16)
            moving = any(low <= place <= at and n.startswith(("LDG", "STG", "UTMA", "UBLKCP")) for place, n, _ in lines)
            if low < at and moving:
                loops.append((low, at))
    return [(low, high) for low, high in loops
            if not any(low <= a and b <= high and (a, b) != (low, high) for a, b in loops)]  # fmt: skip


def sources(*reading: str) -> str:
    """A digest of the code of the kernels, of the files that read what becomes of it, and of Triton's version."""
    import triton

    import pad_kernels.backends.triton as backend

    digest = hashlib.sha256(triton.__version__.encode())
    for file in [*sorted(Path(backend.__file__).parent.glob("*.py")), *map(Path, reading)]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def compile_all(wanted: list[Specialisation], target: str, scratch: Path, jobs: int = 2) -> dict:
    """Each specialisation compiled, in `jobs` processes; results are kept in the folder `scratch`."""
    scratch.mkdir(parents=True, exist_ok=True)
    code = sources(__file__)

    def file(one: Specialisation) -> Path:
        return scratch / (hashlib.sha256(f"{code} {target} {one}".encode()).hexdigest()[:32] + ".json")

    wanted = list(dict.fromkeys(wanted))
    missing = [one for one in wanted if not file(one).exists()]
    if missing:
        os.environ["TRITON_CACHE_DIR"] = str(scratch / "triton")
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(jobs, len(missing)), mp_context=context) as pool:
            for one, found in zip(missing, pool.map(compile_one, [(one, target) for one in missing])):
                partial = file(one).with_suffix(f".{os.getpid()}")
                partial.write_text(json.dumps(asdict(found)), encoding="utf-8")
                partial.rename(file(one))
    names = [field.name for field in fields(Compiled)]
    found = {}
    for one in wanted:
        content = json.loads(file(one).read_text(encoding="utf-8"))
        found[one] = Compiled(**{name: content[name] for name in names})
    return found
