"""Compile every kernel that the Triton backend can launch, without a GPU, and read what it takes.

    python tests/triton_offline.py [--all | --few] [--jobs 2] [--scratch FOLDER]

The ops run on tensors without memory while their launches are recorded, over sizes that reach every entry of
configurations.py; each launch is compiled for NVIDIA's servers. --all adds other chips and rare widths of heads; --few
looks only whether one launch of each kernel and dtype compiles. Exit code 1:
more registers were spilled than the chip is allowed, a launch needs more shared memory than the chip has, an
asynchronous product may read a buffer that is being refilled, or an entry of the configurations was not reached.
Results in FOLDER are used again, by benchmarks.gpu_static too, as long as the kernels stay the same.
"""

import argparse
import itertools
import os
import sys
import tempfile
from pathlib import Path

import torch

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu_static import compiling, recording  # noqa: E402

LOSSES = (("token", 0.0), ("token", 0.1), ("span", 0.0), ("span", 0.1), ("global", 0.0))
# Utterances, frames, tokens: the last two need more than one tile of tokens, and more than one step of utterances.
SHAPES = ((32, 750, 12), (32, 750, 24), (32, 750, 48), (8, 1500, 128), (300, 750, 48))
# Kernels are compiled for what 16 divides and for what it does not; of the latter 520 is another.
WIDTHS = (768, 200)
HEAD_WIDTHS = (16, 32, 64, 80, 128, 256)
RARE_HEAD_WIDTHS = (24, 200)  # no multiples of 16


class Watched(dict):
    """A table of configurations that notes which of its entries are taken."""

    def __init__(self, name, entries, reached):
        super().__init__(entries)
        self.name, self.reached = name, reached

    def __getitem__(self, key):
        self.reached.add((self.name, key))
        value = super().__getitem__(key)
        return Watched((self.name, key), value, self.reached) if isinstance(value, dict) else value


def launches(every=False):
    """Each different launch, and the entries of the configurations that were not reached."""
    from pad_kernels.backends.triton import BACKEND, configurations

    BACKEND.kernels  # noqa: B018  (imports the modules that launch)
    entries, reached = set(), set()
    for name, table in list(vars(configurations).items()):
        if isinstance(table, dict) and name.isupper():
            for size, inner in table.items():
                entries |= {((name, size), key) for key in inner} if isinstance(inner, dict) else {(name, size)}
            setattr(configurations, name, Watched(name, table, reached))
    found = []
    with recording.kernels_not_started(found):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for width in WIDTHS:
                for *lengths, tokens in SHAPES:
                    for level, temperature in LOSSES:
                        loss(BACKEND, (*lengths, tokens, width), dtype, level, temperature)
            alignment(BACKEND, dtype)
            for width in HEAD_WIDTHS + (RARE_HEAD_WIDTHS if every else ()):
                query = empty(32, 12, 750, width, dtype=dtype)
                for lse in (None, empty(32, 12, 750)):
                    BACKEND.significance(query, query, None, width**-0.5, lse)
        select(BACKEND)
    return list(dict.fromkeys(launch.specialization for launch in found)), entries - reached


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def alignment(backend, dtype):
    """The alignment without a loss, of frames and of spans."""
    from pad_kernels.inputs import AlignmentInputs, Needed, PoolingInputs, Saved

    speech, text = empty(2, 750, 768, dtype=dtype), empty(2, 300, 768, dtype=dtype)
    for bounds in ((None, None), [empty(2, 900, dtype=torch.int32)] * 2):
        for temperature in (0.0, 0.1):
            mask = empty(2, 300, dtype=torch.bool)
            inputs = AlignmentInputs(speech, text, empty(2, 750), mask, *bounds, temperature)
            saved = backend.alignment_forward(inputs)
            for needed in ((True, True), (True, False), (False, True)):
                backend.alignment_backward(empty(2, 300), inputs, Saved(*saved), Needed(*needed))
    for width in WIDTHS:
        pooling = PoolingInputs(empty(2, 750, width, dtype=dtype), empty(2, 300, width, dtype=dtype), empty(2, 750),
                                empty(2, 300))  # fmt: skip
        pooled = backend.pooled_distance_forward(pooling)
        backend.pooled_distance_backward(empty(2), pooling, pooled, Needed(True, True))


def loss(backend, shape, dtype, level, temperature):
    """A loss and its gradients, with masks and priors and without, for each reduction."""
    from pad_kernels.inputs import REDUCTIONS, LossOptions, LossRequest, Needed, Positions, SpanSelection

    batch, frames, tokens, width = shape
    speech, text = empty(batch, frames, width, dtype=dtype), empty(batch, tokens, width, dtype=dtype)
    masks = (empty(batch, frames, dtype=torch.bool), empty(batch, tokens, dtype=torch.bool)), (None, None)
    priors = (empty(batch, frames), empty(batch, tokens)), (None, None)
    selection = SpanSelection(None, (0.5, 1.0, 2.0), "topk")
    for (speech_mask, text_mask), (speech_prior, text_prior) in zip(masks, priors):
        sides = Positions("", speech, speech_mask, speech_prior), Positions("", text, text_mask, text_prior)
        for reduction in REDUCTIONS:
            options = LossOptions(level, temperature, reduction, selection)
            value, record = backend.loss_forward(LossRequest(*sides, None, options))
            backend.loss_backward(value, record, Needed(True, True))


def select(backend):
    """The choice of spans alone."""
    from pad_kernels.inputs import ANCHORS, SpanInputs

    counts = empty(4, dtype=torch.int64)
    for anchors, frames in itertools.product(ANCHORS, (750, 1500)):
        frame_weights, mask = empty(4, frames), empty(4, frames, dtype=torch.bool)
        for xi in (None, empty(4, dtype=torch.float64)):
            backend.select_spans(SpanInputs(frame_weights, mask, counts, counts, 48, [0.5, 1.0, 2.0], xi, anchors))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="also chips of desktops and AMD's, and rare widths of heads")
    parser.add_argument("--few", action="store_true", help="only whether one launch of each kernel and dtype compiles")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--chips", nargs="+", choices=compiling.TARGETS, help="only for these")
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    parser.add_argument("--scratch", type=Path, help="where compiled results are kept (default: nowhere)")
    options = parser.parse_args()
    try:
        import triton
    except ImportError as failure:
        print(f"skipped: triton is not installed ({failure})")
        return 0
    chips = options.chips or (list(compiling.TARGETS) if options.all else compiling.SERVERS)
    found, unreached = launches(options.all)
    found = [one for one in found if options.kernel in one.kernel]
    if options.few:
        found, unreached = list({(one.kernel, one.dtype): one for one in found}.values()), set()
    print(f"triton {triton.__version__}: {len(found)} launches, each for {', '.join(chips)}")
    with tempfile.TemporaryDirectory() as folder:
        bad = sum(check(found, chip, options.scratch or Path(folder), options) for chip in chips)
    for entry in sorted(unreached, key=str):
        print(f"configuration not reached: {entry}")
    total = len(found) * len(chips)
    print(f"{total - bad} of {total} compile within the registers and the shared memory")
    return 1 if bad or unreached else 0


def check(found, chip, scratch, options):
    """Compile for a chip, a line each; the number that the chip cannot do with."""
    bad = 0
    row = "{:7} {:20} {:9} {:90} {:>5} {:>9} {:>6} {:>8}  {}"
    print(row.format("chip", "kernel", "dtype", "constants", "warps", "registers", "spills", "shared", ""))
    for one, compiled in compiling.compile_all(found, chip, scratch, options.jobs):
        problem = compiled.refused if options.few else compiled.problem(chip)
        bad += bool(problem)
        constants = " ".join(f"{key.lower()}={value}" for key, value in one.constants if value is not None)
        taken = compiled.registers, compiled.spills, compiled.shared
        print(row.format(chip, one.kernel, one.dtype, constants, one.option("num_warps"), *taken, problem), flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main())
