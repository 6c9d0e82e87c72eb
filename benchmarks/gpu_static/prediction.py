"""Calls put together: what is launched, what each launch takes of the chip, what it does, and the time of it all."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.cases import DTYPES
from benchmarks.gpu_static import compiling, counting, model, recording
from benchmarks.gpu_static.cases import Call, make_arguments
from benchmarks.gpu_static.compiling import Compiled
from benchmarks.gpu_static.operators import Operator
from benchmarks.gpu_static.recording import Launch
from benchmarks.gpu_static.tracing import Traced

UTTERANCES = 2  # that are run in the interpreter: the shortest and the longest


@dataclass
class Known:
    """All that is known of a call before a model makes times of it."""

    launches: list[Launch | Operator]
    forward: int  # launches of the forward pass
    traced: list[Traced] = field(default_factory=list)  # of the Triton launches, in order
    compiled: list[Compiled] = field(default_factory=list)


def record(call: Call, batch: int | None = None, width: int | None = None) -> Known:
    """The launches of a call, which is made without memory."""
    found: list[Launch | Operator] = []
    forward: list[int] = []
    with recording.as_on_a_gpu(), recording.kernels_not_started(found), recording.Operators(found):
        if call.level == "significance":
            own, heads, length, width = call.shape
            query, key = torch.empty(2, batch or own, heads, length, width, dtype=DTYPES[call.dtype], device="meta")
            recording.perform_significance(
                query, key, torch.empty(batch or own, length, dtype=torch.bool, device="meta")
            )
        else:
            arguments = make_arguments(call, batch or call.shape[0], "meta", width)
            recording.perform(call, arguments, lambda: forward.append(len(found)))
    return Known(found, forward[0] if forward else len(found))


def triton_launches(known: Known) -> list[Launch]:
    """The launches of Triton kernels, in order."""
    return [launch for launch in known.launches if isinstance(launch, Launch)]


def tiles(launches: list[Launch]) -> list[tuple]:
    """What must not depend on the number of utterances for a few of them to stand for all."""
    return [(x.name, tuple((k, v) for k, v in x.specialization.constants if isinstance(v, (bool, str, tuple)) or
                           k.isupper())) for x in launches]  # fmt: skip


def representative(call: Call, known: Known) -> int:
    """The fewest utterances with which the call takes the same kernels with the same tiles."""
    batch = UTTERANCES
    while batch < call.shape[0]:
        if tiles(triton_launches(record(call, batch))) == tiles(triton_launches(known)):
            return batch
        batch *= 2
    return call.shape[0]


def gather(calls: list[Call], scratch: Path, target: str = "sm_90", jobs: int = 2) -> dict[Call, Known]:
    """Record, compile and run in the interpreter."""
    found = {call: record(call) for call in calls}
    wanted = [launch.specialization for known in found.values() for launch in triton_launches(known)]
    compiled = dict(compiling.compile_all(wanted, target, scratch, jobs))
    whole = {call: replace(call, backward=True) for call in calls}
    # A forward pass that launches what the pass with gradients begins with needs no run of its own.
    sources = {call: whole[call] if whole[call] in found and _begins(found[whole[call]], found[call]) else call
               for call in calls}  # fmt: skip
    sizes = {call: representative(call, found[call]) for call in dict.fromkeys(sources.values())}
    counted = counting.count_apart(list(sizes.items()), scratch, jobs)
    for call, known in found.items():
        launches = triton_launches(known)
        traced = counted[sources[call], sizes[sources[call]]]
        known.traced = traced[: len(launches)] if sources[call] != call else traced
        known.compiled = [compiled[launch.specialization] for launch in launches]
        names = [one.name for one in known.traced]
        if names != [launch.name for launch in launches]:
            raise RuntimeError(f"{call.label}: the interpreter ran {names}, {[x.name for x in launches]} are launched")
    return found


def _begins(whole: Known, part: Known) -> bool:
    return triton_launches(whole)[: len(triton_launches(part))] == triton_launches(part)


@dataclass
class Predicted:
    """A call's launches with their estimates, and the time of the whole."""

    call: Call
    rows: list[tuple[Launch | Operator, Traced | None, Compiled | None, model.Estimate]]
    forward: int
    microseconds: float


def predict(call: Call, known: Known, chip: model.Chip, constants: model.Constants, warm: bool = False) -> Predicted:
    """The time of a call whose inputs are in no cache; `warm`: of a second one right after the first."""
    caches = model.Caches(chip.level2_bytes * constants.kept_share)
    kernels = list(zip(triton_launches(known), known.traced, known.compiled))
    if warm:
        places = iter(kernels)
        for launch in known.launches:
            if isinstance(launch, Operator):
                caches.use(None, launch.read + launch.written)
            else:
                model.traffic(next(places)[1], launch.programs, caches)
    rows: list = []
    places = iter(kernels)
    for launch in known.launches:
        if isinstance(launch, Operator):
            rows.append((launch, None, None, model.of_operator(launch, caches, chip, constants)))
            continue
        _, traced, compiled = next(places)
        stages = launch.specialization.option("num_stages", 3)
        moved = model.traffic(traced, launch.programs, caches)
        estimate = model.of_kernel(traced, launch.programs, compiled, stages, moved, chip, constants)
        rows.append((launch, traced, compiled, estimate))
    whole = sum(row[3].microseconds for row in rows) + constants.gap * len(rows)
    return Predicted(call, rows, known.forward, whole)
