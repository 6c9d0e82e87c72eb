"""Compile every kernel that the Triton backend can launch, without a GPU, and read what it takes.

    python tests/triton_offline.py [--all] [--jobs 2]

The ops run on tensors without memory while their launches are recorded, over sizes that reach every entry of
configurations.py; each launch is compiled for four chips. Exit code 1: more registers were spilled than MOST_SPILLS, a
launch needs more shared memory than the chip has, an asynchronous product may read a buffer that is being refilled, or
an entry of the configurations was not reached. --all adds widths that are no multiple of 16.
"""

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Shared memory that one program may have.
CHIPS = {
    "sm_80": (("cuda", 80, 32), 163 * 1024),
    "sm_90": (("cuda", 90, 32), 227 * 1024),
    "sm_100": (("cuda", 100, 32), 227 * 1024),
    "gfx942": (("hip", "gfx942", 64), 64 * 1024),
}
# Bytes that a thread may spill. On the chips that the tiles were chosen on, none; the assemblers of the others spill a
# few with registers to spare.
MOST_SPILLS = {"sm_80": 64, "sm_90": 0, "sm_100": 0, "gfx942": 64}
POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64",
    torch.int32: "*i32", torch.uint8: "*u8", torch.float64: "*fp64",
}  # fmt: skip
LOSSES = (("token", 0.0), ("token", 0.1), ("span", 0.0), ("span", 0.1), ("global", 0.0))
# Keywords of a launch that are the compiler's.
OPTIONS = ("enable_fp_fusion",)


def describe(kernel, arguments, constants, warps, stages):
    """A launch as plain data: what Triton's own specialisation makes of it."""
    options = {name: constants[name] for name in OPTIONS if name in constants}
    options |= {"num_warps": warps, "num_stages": stages}
    values = {name: value for name, value in constants.items() if name not in OPTIONS}
    signature, aligned = {}, []
    skipped = {p.name for p in kernel.params if p.do_not_specialize}
    dtypes = set()
    for i, (name, value) in enumerate(zip(kernel.arg_names, arguments)):
        if value is None or type(value) is int and value == 1 and name not in skipped:
            signature[name], values[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            aligned.append(i)
            dtypes.add(value.dtype)
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            if name not in skipped and value % 16 == 0:
                aligned.append(i)
    signature |= {name: "constexpr" for name in constants if name not in OPTIONS}
    halves = [str(dtype)[6:] for dtype in (torch.bfloat16, torch.float16) if dtype in dtypes]
    name = f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__}"
    return (
        name, halves[0] if halves else "float32", tuple(signature.items()), tuple(values.items()),
        tuple(aligned), tuple(options.items()),
    )  # fmt: skip


def launches(every):
    """Each different launch, and the entries of the configurations that were not reached."""
    from pad_kernels.backends.triton import BACKEND, configurations
    from pad_kernels.inputs import ANCHORS, AlignmentInputs, Needed, Saved

    BACKEND.kernels  # noqa: B018  (imports the modules that launch)
    significance = BACKEND.function("significance")
    found, reached = {}, set()

    def record(kernel, programs, *arguments, warps, stages, **constants):
        found.setdefault(describe(kernel, arguments, constants, warps, stages))

    class Watched(dict):
        def __init__(self, name, entries):
            super().__init__(entries)
            self.name = name

        def __getitem__(self, key):
            reached.add((self.name, key))
            value = super().__getitem__(key)
            return Watched((self.name, key), value) if isinstance(value, dict) else value

    tables = {name: value for name, value in vars(configurations).items() if isinstance(value, dict) and name.isupper()}
    entries = set()
    for name, table in tables.items():
        for size, inner in table.items():
            entries |= {((name, size), key) for key in inner} if isinstance(inner, dict) else {(name, size)}
        setattr(configurations, name, Watched(name, table))
    for name, module in list(sys.modules.items()):
        if name.startswith("pad_kernels.backends.triton.") and hasattr(module, "launch"):
            module.launch = record

    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        # Of the tokens the last two need more than one tile, and more than one step of utterances.
        sizes = {768: ((32, 12), (32, 24), (32, 48), (8, 128), (300, 48)), 200: ((32, 48),)}
        if every:
            sizes |= {200: sizes[768], 520: sizes[768]}
        for width, shapes in sizes.items():
            for batch, tokens in shapes:
                for level, temperature in LOSSES:
                    loss(BACKEND, (batch, 750, tokens, width), dtype, level, temperature)
        speech, text = empty(2, 750, 768, dtype=dtype), empty(2, 300, 768, dtype=dtype)
        spans = [empty(2, 900, dtype=torch.int32)] * 2
        for bounds in ((None, None), spans):
            for temperature in (0.0, 0.1):
                mask = empty(2, 300, dtype=torch.bool)
                inputs = AlignmentInputs(speech, text, empty(2, 750), mask, *bounds, temperature)
                saved = BACKEND.alignment_forward(inputs)
                for needed in ((True, True), (True, False), (False, True)):
                    grad = empty(2, 300)
                    BACKEND.alignment_backward(grad, inputs, Saved(*saved), Needed(*needed))
        for width in (16, 32, 64, 80, 128, 256) + ((24, 200) if every else ()):
            query = empty(32, 12, 750, width, dtype=dtype)
            for lse in (None, empty(32, 12, 750)):
                significance(query, query, None, width**-0.5, lse)
    for anchors in ANCHORS:
        select(BACKEND, anchors)
    return list(found), entries - reached


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def loss(backend, shape, dtype, level, temperature):
    """A loss and its gradients, with masks and priors and without, for each reduction."""
    from pad_kernels.inputs import REDUCTIONS, LossOptions, LossRequest, Needed, Positions, SpanSelection

    batch, frames, tokens, width = shape
    speech, text = empty(batch, frames, width, dtype=dtype), empty(batch, tokens, width, dtype=dtype)
    masks = (empty(batch, frames, dtype=torch.bool), empty(batch, tokens, dtype=torch.bool)), (None, None)
    priors = (empty(batch, frames), empty(batch, tokens)), (None, None)
    selection = SpanSelection(None, [0.5, 1.0, 2.0], "topk")
    for (speech_mask, text_mask), (speech_prior, text_prior) in zip(masks, priors):
        sides = Positions("", speech, speech_mask, speech_prior), Positions("", text, text_mask, text_prior)
        for reduction in REDUCTIONS:
            options = LossOptions(level, temperature, reduction, selection)
            value, record = backend.loss_forward(LossRequest(*sides, None, options))
            backend.loss_backward(value, record, Needed(True, True))


def select(backend, anchors):
    """The choice of spans alone."""
    from pad_kernels.inputs import SpanInputs

    prior, counts = empty(4, 750), empty(4, dtype=torch.int64)
    for xi in (None, empty(4, dtype=torch.float64)):
        mask = empty(4, 750, dtype=torch.bool)
        backend.select_spans(SpanInputs(prior, mask, counts, counts, 48, [0.5, 1.0, 2.0], xi, anchors))


def nvidia_usage(binary, ptx):
    """Registers and spilled bytes of a kernel."""
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel"
        file.write_bytes(binary)
        command = [tools / "cuobjdump", "-res-usage", file]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        registers, stack = (int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK"))
        if not stack:
            return registers, 0
        # The stack also serves calls, as that of an exact division: the assembler tells what was spilled.
        file.write_text(ptx)
        target = re.search(r"\.target (\w+)", ptx)[1]
        assembler = tools / ("ptxas-blackwell" if target.startswith("sm_10") else "ptxas")
        command = [assembler if assembler.exists() else tools / "ptxas", "-v", f"-arch={target}", file]
        text = subprocess.run([*command, "-o", os.devnull], capture_output=True, text=True, check=True).stderr
    return registers, sum(int(size) for size in re.findall(r"(\d+) bytes spill", text))


def amd_usage(assembly):
    registers = re.search(r"\.vgpr_count:\s*(\d+)", assembly)
    spills = sum(int(re.search(rf"\.{kind}_spill_count:\s*(\d+)", assembly)[1]) for kind in ("vgpr", "sgpr"))
    return int(registers[1]), spills


def refilled_while_read(ttgir):
    """Whether an asynchronous product that is not waited for at once reads a buffer with fewer places than loads are
    under way: the next load overwrites what is being read. Triton 3.4 to 3.7 compile a loop so where a loaded tile is
    used otherwise too."""
    allocation = r"(%\S+) = ttg\.local_alloc : \(\) -> !ttg\.memdesc<(\d+)x\d+x"
    places = {m[1]: int(m[2]) for m in re.finditer(allocation, ttgir)}
    origin = {m[1]: m[2] for m in re.finditer(r"(%\w+) = ttg\.memdesc_(?:index|trans|reshape) (%\w+)", ttgir)}

    def buffer(name):
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


def compile_one(job):
    """(launch, chip, registers, spills, shared bytes or the error, whether a buffer is refilled while it is read)."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launch, chip = job
    name, _, signature, constants, aligned, options = launch
    module, function = name.split(".")
    kernel = getattr(importlib.import_module(f"pad_kernels.backends.triton.{module}"), function)
    nvidia = chip.startswith("sm_")
    # As common.PRECISION is with torch for AMD.
    constants = {key: "ieee" if key == "PRECISION" and not nvidia else value for key, value in constants}
    source = ASTSource(
        kernel, dict(signature), {(kernel.arg_names.index(key),): value for key, value in constants.items()},
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )  # fmt: skip
    try:
        compiled = triton.compile(source, target=GPUTarget(*CHIPS[chip][0]), options=dict(options))
        if nvidia:
            registers, spills = nvidia_usage(compiled.asm["cubin"], compiled.asm["ptx"])
        else:
            registers, spills = amd_usage(compiled.asm["amdgcn"])
    except Exception as failure:
        return launch, chip, None, None, f"{type(failure).__name__}: {str(failure).strip()[:300]}", False
    return launch, chip, registers, spills, compiled.metadata.shared, refilled_while_read(compiled.asm["ttgir"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="also widths that are no multiple of 16")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--chips", nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    options = parser.parse_args()
    try:
        import triton
    except ImportError as failure:
        print(f"skipped: triton is not installed ({failure})")
        return 0
    found, unreached = launches(options.all)
    found = [launch for launch in found if options.kernel in launch[0]]
    jobs = [(launch, chip) for launch in found for chip in options.chips]
    print(f"triton {triton.__version__}: {len(found)} launches, {len(jobs)} compilations")
    bad = 0
    row = "{:40} {:9} {:44} {:>5} {:7} {:>9} {:>6} {:>8}  {}"
    print(row.format("kernel", "dtype", "constants", "warps", "chip", "registers", "spills", "shared", ""))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        pool = multiprocessing.get_context("spawn").Pool(options.jobs)
        for launch, chip, registers, spills, shared, refilled in pool.imap(compile_one, jobs):
            verdict = ""
            if registers is None:
                verdict, shared = shared, "-"
            elif spills > MOST_SPILLS[chip]:
                verdict = "SPILLS"
            elif refilled:
                verdict = "A BUFFER IS REFILLED WHILE IT IS READ"
            elif shared > CHIPS[chip][1]:
                verdict = f"MORE THAN {CHIPS[chip][1]} BYTES"
            bad += bool(verdict)
            constants = " ".join(f"{key.lower()}={value}" for key, value in launch[3] if value is not None)
            warps = dict(launch[5])["num_warps"]
            cells = (constants, warps, chip, registers or "-", "-" if spills is None else spills, shared)
            print(row.format(launch[0], launch[1], *cells, verdict), flush=True)
    for entry in sorted(unreached, key=str):
        print(f"configuration not reached: {entry}")
    print(f"{len(jobs) - bad} of {len(jobs)} compile within the registers and the shared memory")
    return 1 if bad or unreached else 0


if __name__ == "__main__":
    sys.exit(main())
