"""A Triton kernel compiled for a chip that need not be there, and what its machine code says."""

import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_static.recording import Specialization


@dataclass(frozen=True)
class Target:
    """A chip that kernels are compiled for."""

    backend: str
    arch: int | str
    lanes: int  # of a warp
    shared: int  # bytes that a program may have
    # Bytes that a thread may spill. On the chips that the tiles were chosen on, none; the assemblers of the others
    # spill a few with registers to spare.
    spills: int = 0


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 99 * 1024, 64),  # it has 163 KB, but sm_86 and sm_89, which take its code, do not
    "sm_90": Target("cuda", 90, 32, 227 * 1024),
    "sm_100": Target("cuda", 100, 32, 227 * 1024),
    "sm_86": Target("cuda", 86, 32, 99 * 1024, 96),
    "sm_120": Target("cuda", 120, 32, 99 * 1024, 96),
    "gfx942": Target("hip", "gfx942", 64, 64 * 1024, 64),
}
SERVERS = ("sm_80", "sm_90", "sm_100")
TIMED = "sm_90"  # the target whose machine code is listed, for a prediction of times
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
    refilled: bool = False  # whether a product may read a buffer that is being refilled

    def problem(self, target: str) -> str:
        """Why the target cannot do with this, or nothing."""
        chip = TARGETS[target]
        if self.refused:
            return self.refused
        if self.spills > chip.spills:
            return f"SPILLS {self.spills} BYTES"
        if self.refilled:
            return "A BUFFER IS REFILLED WHILE IT IS READ"
        return f"MORE THAN {chip.shared} BYTES" if self.shared > chip.shared else ""

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


def on_target(wanted: Specialization, target: str) -> Specialization:
    """A launch on an NVIDIA chip as it is on the target: what `common.launch` chooses by the kind of the chip."""
    from pad_kernels.backends.triton import common

    if TARGETS[target].backend != "hip":
        return wanted
    constants = tuple((key, common.precision(amd=True) if key == "PRECISION" else value)
                      for key, value in wanted.constants)  # fmt: skip
    options = tuple((key, common.stages_of(value, amd=True) if key == "num_stages" else value)
                    for key, value in wanted.options if key != "maxnreg")  # fmt: skip
    return replace(wanted, constants=constants, options=options)


def kernel_of(wanted: Specialization) -> Any:
    """The kernel that a specialization is of."""
    return getattr(importlib.import_module(wanted.module), wanted.kernel)


def code_of(kernel: Any) -> str:
    """The source of a kernel, of the functions that it calls, and the constants that these name, wherever they stand
    in a file."""
    import triton

    found: dict[str, str] = {}
    left = [kernel]
    while left:
        function = left.pop()
        if function.fn.__qualname__ in found:
            continue
        found[function.fn.__qualname__] = function.src
        for name in function.fn.__code__.co_names:
            value = function.fn.__globals__.get(name)
            if isinstance(value, triton.runtime.JITFunction):
                left.append(value)
            elif isinstance(value, triton.language.constexpr):
                found[name] = repr(value.value)
    return "".join(found[name] for name in sorted(found))


def compile_one(job: tuple[Specialization, str]) -> Compiled:
    """Compile for a target such as "sm_90"; what the compiler refuses is said in `refused`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    wanted, target = on_target(*job), TARGETS[job[1]]
    kernel = kernel_of(wanted)
    source = ASTSource(
        kernel, dict(wanted.signature), {(kernel.arg_names.index(key),): value for key, value in wanted.constants},
        {(i,): [["tt.divisibility", 16]] for i in wanted.aligned},
    )  # fmt: skip
    chip = GPUTarget(target.backend, target.arch, target.lanes)
    try:
        compiled = triton.compile(source, target=chip, options=dict(wanted.options))
    except Exception as failure:
        # It quotes the kernel down to the line at fault, and says last what is wrong there.
        text = str(failure).strip()
        return _failed(f"{type(failure).__name__}: {text if len(text) <= 300 else f'... {text[-300:]}'}")
    warps, shared = wanted.option("num_warps", 4), compiled.metadata.shared
    if target.backend == "hip":
        return read_amd(compiled.asm["amdgcn"], shared, warps)
    found = read(compiled.asm["cubin"], compiled.asm["ptx"], shared, warps, listed=job[1] == TIMED)
    return replace(found, refilled=refilled_while_read(compiled.asm["ttgir"]))


def refilled_while_read(ttgir: str) -> bool:
    """Whether an asynchronous product that is not waited for at once reads a buffer with fewer places than loads are
    under way: the next load overwrites what is being read. Triton 3.4 to 3.7 compile a loop so where a loaded tile is
    used otherwise too."""
    allocation = r"(%\S+) = ttg\.local_alloc : \(\) -> !ttg\.memdesc<(\d+)x\d+x"
    places = {m[1]: int(m[2]) for m in re.finditer(allocation, ttgir)}
    origin = {m[1]: m[2] for m in re.finditer(r"(%\w+) = ttg\.memdesc_(?:index|trans|reshape) (%\w+)", ttgir)}

    def buffer(name: str) -> str:
        while name in origin:
            name = origin[name]
        return name

    loads = Counter(buffer(m[1]) for m in re.finditer(r"async_copy_global_to_local %\S+, (%\w+)", ttgir))
    for product in re.finditer(r"warp_group_dot (%\w+), (%\w+), [^\n]*isAsync = true", ttgir):
        wait = re.search(r"warp_group_dot_wait [^\n]*pendings = (\d+)", ttgir[product.end() :])
        if wait and int(wait[1]):
            for operand in map(buffer, product.groups()):
                if operand in places and places[operand] < loads[operand]:
                    return True
    return False


def read_amd(assembly: str, shared: int, warps: int) -> Compiled:
    """What the assembly of one kernel for an AMD chip says."""
    registers = int(re.search(r"\.vgpr_count:\s*(\d+)", assembly)[1])
    spills = 4 * sum(int(re.search(rf"\.{kind}_spill_count:\s*(\d+)", assembly)[1]) for kind in ("vgpr", "sgpr"))
    return Compiled(registers, spills, 0, shared, warps, 0, {}, {}, 0, {}, {}, {})


def tools() -> Path:
    """Where Triton keeps NVIDIA's tools."""
    import triton

    return Path(triton.__file__).parent / "backends/nvidia/bin"


def _run(*command) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def read(binary: bytes, ptx: str, shared: int, warps: int, listed: bool = True) -> Compiled:
    """What the machine code of one kernel says; of its instructions nothing unless it is listed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel"
        file.write_bytes(binary)
        usage = _run(tools() / "cuobjdump", "-res-usage", file)
        code = _run(tools() / "cuobjdump", "-sass", file) if listed else ""
        registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
        spills = 0
        if stack:
            # The stack also serves calls, as that of an exact division: the assembler tells what was spilled.
            file.write_text(ptx)
            arch = re.search(r"\.target (\w+)", ptx)[1]
            assembler = tools() / ("ptxas-blackwell" if arch.startswith(("sm_10", "sm_12")) else "ptxas")
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


def compile_all(
    wanted: list[Specialization], target: str, scratch: Path, jobs: int = 2
) -> Iterator[tuple[Specialization, Compiled]]:
    """Each specialization compiled, in order, in `jobs` processes; results are kept in the folder `scratch`, by the
    code of the kernel and of what it calls."""
    import triton

    scratch.mkdir(parents=True, exist_ok=True)
    own = Path(__file__).read_bytes()
    codes = {(one.module, one.kernel): code_of(kernel_of(one)) for one in wanted}

    def file(one: Specialization) -> Path:
        known = f"{triton.__version__} {codes[one.module, one.kernel]} {target} {on_target(one, target)}"
        return scratch / (hashlib.sha256(own + known.encode()).hexdigest()[:32] + ".json")

    files = {one: file(one) for one in wanted}
    missing = {one: None for one, place in files.items() if not place.exists()}
    names = {field.name for field in fields(Compiled)}
    with contextlib.ExitStack() as stack:
        new: Iterator[Compiled] = iter(())
        if missing:
            os.environ["TRITON_CACHE_DIR"] = str(scratch / "triton")
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(min(jobs, len(missing)), mp_context=context))
            new = pool.map(compile_one, [(one, target) for one in missing])
        for one, place in files.items():
            if one in missing:
                partial = place.with_suffix(f".{os.getpid()}")
                partial.write_text(json.dumps(asdict(next(new))), encoding="utf-8")
                partial.rename(place)
            content = json.loads(place.read_text(encoding="utf-8"))
            yield one, Compiled(**{name: content[name] for name in names})
