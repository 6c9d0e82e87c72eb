"""From what a kernel's programs do to microseconds on an H100, or another chip of its kind: predictions, all of them.

A program is timed by itself: its operations pass in order, each waits for what it needs, loads that the compiler made
asynchronous are issued some iterations ahead. A kernel is as slow as the worst of five bounds, softly: the programs
one after another on the places that the SMs have for them (latency), the instructions that the SMs can issue, the
matrix units, the level-2 cache and the memory.
"""

import heapq
import math
from dataclasses import dataclass, fields

from benchmarks.gpu_static.compiling import Compiled
from benchmarks.gpu_static.operators import Operator
from benchmarks.gpu_static.tracing import (
    ADDRESS,
    ALU,
    BARRIER,
    LOAD,
    PRODUCT,
    REDUCE,
    SECTOR,
    SPECIAL,
    STORE,
    Trace,
    Traced,
)

# Integers of so many elements are addresses and masks of a tile: one for each 16 bytes that are loaded at once.
TILE = 2048


@dataclass(frozen=True)
class Chip:
    """What the data sheet and a copy say of a GPU."""

    name: str = "H100"
    sms: int = 132
    clock: float = 1.755  # GHz
    memory: float = 3000.0  # bytes per ns: the bandwidth that a copy reaches
    written: float = 3500.0  # what a fill reaches, which ends in the level-2 cache
    level2: float = 5500.0
    level2_bytes: float = 50e6
    half: float = 2048.0  # multiply-adds of a cycle and SM, 16-bit operands
    single: float = 1024.0  # tf32 operands


# The chips that there are measured times of.
CHIPS = {chip.name: chip for chip in (Chip(), Chip("H200", memory=4200.0, written=4700.0, level2_bytes=60e6))}


@dataclass(frozen=True)
class Torch:
    """PyTorch's own kernels on an H100, by elements or bytes of a ns, or ns."""

    memory: float = 2700.0
    reduction: float = 0.6  # share of the bandwidth
    broadcast: float = 320.0  # elements, of an operator whose index is computed for each
    step: float = 25.0  # of a reduction along an outer dimension
    softmax_step: float = 42.0
    half: float = 420e3  # of products
    half_unaligned: float = 90e3
    single: float = 40e3
    start: float = 1.0  # us
    long_start: float = 2.2


@dataclass(frozen=True)
class Constants:
    """What is fitted to measured times (fit.py); in cycles unless noted."""

    memory_latency: float = 451.0
    level2_latency: float = 192.0
    reduction: float = 144.0
    product: float = 93.5
    wait: float = 14.4
    step: float = 4.71
    barrier: float = 94.0
    # Instructions of a thread for an element.
    alu: float = 1.26
    index: float = 0.37  # integers of a vector
    address: float = 0.563  # of a tile, for 16 bytes
    special: float = 1.77
    operand: float = 0.562  # of a product, 16-bit
    split: float = 20.4  # of a product of float32, in three parts
    store: float = 3.08  # for 16 bytes
    # Share of the rates of the data sheet that is reached.
    issue_share: float = 0.639
    matrix_share: float = 0.797
    memory_share: float = 0.745
    kept_share: float = 0.749  # of the level-2 cache, by what is used again
    start: float = 1.13  # us: a kernel that does nothing
    softness: float = 2.03
    gap: float = 1.7  # us between launches, and before the first
    torch: Torch = Torch()

    def replaced(self, **values: float) -> "Constants":
        """With other values."""
        return Constants(**{f.name: values.get(f.name, getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class Estimate:
    """A kernel's predicted time in us, the bounds that it comes from, and its traffic in bytes."""

    microseconds: float
    bounds: dict[str, float]
    read: float  # from memory
    written: float
    passed: float  # through the level-2 cache
    waves: float = 0.0


def timed(
    trace: Trace, warps: int, stages: int, kept: tuple[bool, ...], constants: Constants, item_bytes: int = 4
) -> tuple[float, float, float, float]:
    """Cycles of a program by itself; cycles of issue; multiply-adds in 16 bits, and in float32."""
    lanes, share = 32 * warps, max(1.0, warps / 4)
    now = issued = half = single = 0.0
    ready: list[float] = []
    passed: dict[int, list[float]] = {}
    weights = {ALU: constants.alu, ADDRESS: constants.index, SPECIAL: constants.special}
    of_tile = constants.address * item_bytes / 16
    for kind, amount, waits, detail in trace.operations:
        needed = 0.0
        for other in waits:
            if ready[other] > needed:
                needed = ready[other]
        if kind in weights:
            now = max(now, needed)
            weight = of_tile if kind == ADDRESS and amount >= TILE else weights[kind]
            cost = max(1.0, weight * amount / lanes) * share
            now += cost
            ready.append(now + constants.step)
        elif kind == LOAD:
            place, new = detail
            cost = max(1.0, amount / 16 / lanes) * share
            latency = constants.level2_latency if new < 0 or kept[new] else constants.memory_latency
            before = passed.setdefault(place, [])
            if stages > 1 and before and amount >= 4 * lanes:
                start = before[max(len(before) - (stages - 1), 0)]
                now += cost
                ready.append(max(now, start + latency))
            else:
                now = max(now, needed) + cost
                ready.append(now + latency)
            before.append(now)
        elif kind == STORE:
            cost = max(1.0, constants.store * amount / 16 / lanes) * share
            now = max(now, needed) + cost
            ready.append(now)
        elif kind == REDUCE:
            cost = max(1.0, constants.alu * amount / lanes) * share
            now = max(now, needed) + cost
            ready.append(now + constants.reduction)
        elif kind == PRODUCT:
            item, elements, passes = detail
            # Three passes split their operands first; none is a multiply-add of each thread for each element.
            weight = constants.split if item == 4 and passes == 3 else constants.operand
            plain = amount if item == 4 and not passes else 0.0
            cost = max(1.0, (weight * elements + plain) / lanes) * share
            now = max(now, needed) + cost
            cycles = amount * passes / 1024.0 if item == 4 else amount / 2048.0
            ready.append(now + constants.product + cycles / constants.matrix_share)
            half, single = (half, single + amount * passes) if item == 4 else (half + amount, single)
        elif kind == BARRIER:
            cost = 1.0
            now = max(now, needed) + constants.barrier * amount
            ready.append(now)
        else:
            cost = 1.0
            now = max(now, needed) + constants.wait
            ready.append(now)
        issued += cost
    return max([now, *ready[-1:]]), issued, half, single


def scheduled(programs: list[tuple[float, float]], places: int) -> float:
    """When the last of (time, number) of programs ends, if each takes the first place that is free."""
    number = sum(count for _, count in programs)
    longest = max((time for time, _ in programs), default=0.0)
    total = sum(time * count for time, count in programs)
    if number <= places:
        return longest
    if number > 2 * places:
        return max(longest, total / places + longest / 2)
    # Long and short ones come as mixed as the utterances are.
    mixed = sorted(((k + 0.5) / count, time) for time, count in programs for k in range(max(1, round(count))))
    free = [0.0] * places
    for _, time in mixed:
        heapq.heapreplace(free, free[0] + time)
    return max(free)


class Caches:
    """What the level-2 cache still has, memory by memory, the latest first."""

    def __init__(self, capacity: float):
        self.capacity = capacity
        self.position = 0.0
        self.last: dict[int, float] = {}

    def has(self, memory: int, size: float) -> bool:
        """Whether all of it is still there."""
        last = self.last.get(memory)
        return last is not None and self.position - last + size <= self.capacity

    def use(self, memory: int | None, size: float) -> None:
        """It passes through the cache."""
        self.position += size
        if memory is not None:
            self.last[memory] = self.position


@dataclass(frozen=True)
class Traffic:
    """Bytes that a kernel reads from memory and writes, and the memories, in order, that a cache still has."""

    read: float
    written: float
    kept: tuple[bool, ...]


def traffic(traced: Traced, programs: int, caches: Caches) -> Traffic:
    """What of a kernel of so many programs goes past the caches, which then have what it touched."""
    scale = programs / max(traced.programs, 1) * SECTOR
    memories = sorted(traced.touched)
    sizes = {memory: sum(traced.touched[memory]) * scale for memory in memories}
    kept = tuple(caches.has(memory, sizes[memory]) for memory in memories)
    read = sum(traced.touched[m][0] for m, has in zip(memories, kept) if not has) * scale
    written = sum(traced.touched[m][1] for m in memories) * scale
    for memory in memories:
        if sizes[memory]:
            caches.use(memory, sizes[memory])
    return Traffic(read, written, kept)


def of_kernel(
    traced: Traced, programs: int, compiled: Compiled, stages: int, moved: Traffic, chip: Chip, constants: Constants
) -> Estimate:
    """The time of a Triton kernel of so many programs, of which `traced` ran a part."""
    scale = programs / max(traced.programs, 1)
    stages = stages if compiled.asynchronous else 1
    found = [
        (
            timed(trace, compiled.warps, stages, moved.kept, constants, traced.item),
            trace.count * scale,
        )
        for trace in traced.traces
    ]
    places = chip.sms * compiled.blocks_per_sm
    uneven = math.ceil(programs / chip.sms) / (programs / chip.sms)
    issued, half, single = (sum(one[k] * count for one, count in found) for k in (1, 2, 3))
    passed = (traced.loaded + traced.stored) * SECTOR * scale
    rate = chip.memory * constants.memory_share
    matrix = half / chip.half + single / chip.single
    bounds = {
        "latency": scheduled([(one[0], count) for one, count in found], places) / chip.clock,
        "issue": issued * uneven / (chip.sms * chip.clock * constants.issue_share),
        "matrix": matrix * uneven / (chip.sms * chip.clock * constants.matrix_share),
        "level 2": passed / chip.level2,
        "memory": moved.read / rate + moved.written / chip.written,
    }
    bounds = {name: value / 1e3 for name, value in bounds.items()}
    time = constants.start + soft_maximum(bounds.values(), constants.softness)
    return Estimate(time, bounds, moved.read, moved.written, passed, programs / places)


def soft_maximum(values, softness: float) -> float:
    """At least the largest, more where others are near it."""
    values = list(values)
    largest = max(values)
    return largest * sum((value / largest) ** softness for value in values) ** (1 / softness) if largest else 0.0


def of_operator(work: Operator, caches: Caches, chip: Chip, constants: Constants) -> Estimate:
    """The time of a kernel of PyTorch's own; its rates were read off measured times of such kernels."""
    caches.use(None, work.read + work.written)
    torch = constants.torch
    moved = work.read / torch.memory + work.written / chip.written
    bounds = {"memory": moved}
    if work.kind == "product":
        flops = torch.single if work.item == 4 else torch.half if work.aligned else torch.half_unaligned
        bounds["matrix"] = work.flops / flops
    elif work.kind == "broadcast":
        bounds["issue"] = work.elements / torch.broadcast
    elif work.kind == "reduction":
        bounds["memory"] = moved / torch.reduction
        bounds["latency"] = work.steps * (torch.softmax_step if "softmax" in work.name else torch.step)
    bounds = {name: value / 1e3 for name, value in bounds.items()}
    start = torch.start if work.kind in ("elementwise", "broadcast") else torch.long_start
    return Estimate(start + max(bounds.values()), bounds, work.read, work.written, work.read + work.written)
