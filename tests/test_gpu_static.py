"""The static table of GPU kernels: its arithmetic, what it records of a call, and what it counts in the interpreter."""

import math

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.gpu_static import __main__ as command  # noqa: E402
from benchmarks.gpu_static import counting, gates, model, operators, prediction, recording, tracing  # noqa: E402
from benchmarks.gpu_static.cases import SMALL, Call, make_arguments  # noqa: E402
from benchmarks.gpu_static.compiling import (  # noqa: E402
    Compiled,
    blocks_per_sm,
    code_of,
    instructions,
    on_target,
    refilled_while_read,
)
from benchmarks.gpu_static.recording import Launch  # noqa: E402

CONSTANTS = model.Constants(memory_latency=1000, level2_latency=300, step=5, alu=1, reduction=100, matrix_share=0.5)
LISTING = """
        /*0010*/                   LDC R1, c[0x0][0x28] ;
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   LDGSTS.E.BYPASS.128 [R9], desc[UR4][R2.64] ;
        /*0040*/              @!P0 LDG.E.U16.CONSTANT R4, desc[UR4][R2.64] ;
        /*0050*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], !UPT ;
        /*0060*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*0070*/               @P1 BRA 0x40 ;
        /*0080*/                   EXIT ;
"""


def cycles(*operations, warps=4, stages=1, kept=(False,)):
    return model.timed(tracing.Trace(operations), warps, stages, kept, CONSTANTS)[0]


def test_a_program_waits_for_what_it_loads():
    load, use = (tracing.LOAD, 2048, (), (0, 0)), (tracing.ALU, 128, (0,), None)
    assert cycles(load, use) == pytest.approx(1 + 1000 + 1 + CONSTANTS.step)
    assert cycles(load, use, kept=(True,)) == pytest.approx(1 + 300 + 1 + CONSTANTS.step)
    other = (tracing.LOAD, 2048, (), (1, 0))
    assert cycles(load, other, (tracing.ALU, 128, (0, 1), None)) < 1010, "two loads are under way at once"


def test_asynchronous_loads_run_ahead():
    """Each step of a loop waits for its own load: with three stages two of them are under way."""
    loop = []
    for step in range(20):
        loop += [(tracing.LOAD, 2048, (), (7, 0)), (tracing.ALU, 128, (2 * step,), None)]
    alone, ahead = cycles(*loop), cycles(*loop, stages=3)
    assert alone > 20 * 1000 and ahead < 0.6 * alone


def test_more_elements_take_longer_and_more_warps_share_them():
    few, many = ((tracing.ALU, count, (), None) for count in (128, 128 * 64))
    assert cycles(few) == pytest.approx(1 + CONSTANTS.step) and cycles(many) == pytest.approx(64 + CONSTANTS.step)
    assert cycles(many, warps=8) == pytest.approx(64 + CONSTANTS.step), "eight warps share four schedulers"


def test_a_product_of_float32_takes_its_passes():
    half, three, one, none = (cycles((tracing.PRODUCT, 1e6, (), (item, 0, passes)))
                              for item, passes in ((2, 1), (4, 3), (4, 1), (4, 0)))  # fmt: skip
    assert half < one < three < none
    assert three - half == pytest.approx(1e6 * (3 / 1024 - 1 / 2048) / CONSTANTS.matrix_share)


def test_programs_take_the_places_that_are_free():
    assert model.scheduled([(10.0, 4)], places=4) == 10
    assert model.scheduled([(10.0, 5)], places=4) == 20
    assert model.scheduled([(10.0, 3), (25.0, 1)], places=4) == 25
    assert model.scheduled([(1.0, 10_000)], places=4) == pytest.approx(2500, rel=0.01)


def test_bounds_join_softly():
    assert model.soft_maximum([3.0, 0.0], 2.0) == 3.0 and model.soft_maximum([0.0], 2.0) == 0.0
    assert model.soft_maximum([3.0, 4.0], 2.0) == pytest.approx(5.0)


def test_a_cache_has_what_was_used_last():
    caches = model.Caches(100)
    caches.use(1, 40)
    assert caches.has(1, 40) and not caches.has(2, 1)
    caches.use(2, 70)
    assert not caches.has(1, 40) and caches.has(2, 70)


@pytest.mark.parametrize("registers, shared, warps, expected", [
    (32, 0, 4, 16), (128, 0, 4, 4), (255, 0, 8, 1), (64, 100 * 1024, 4, 2), (16, 0, 1, 32),
])  # fmt: skip
def test_blocks_per_sm(registers, shared, warps, expected):
    assert blocks_per_sm(registers, shared, warps) == expected


def test_machine_code_is_read():
    found = instructions(LISTING)
    assert found["loads"] == {"128": 2, "16": 1} and found["stores"] == {"64": 1}
    assert found["asynchronous"] == 1 and found["matrix"] == {"HGMMA": 1}
    assert found["hot_loads"] == {"16": 1} and found["hot_stores"] == {"64": 1}, "inside the loop from 0x40 to 0x70"


def operator(function, *arguments):
    found = []
    with recording.Operators(found):
        function(*arguments)
    return found


def test_operators_are_counted_by_their_bytes():
    wide, column = torch.empty(4, 8, device="meta"), torch.empty(4, 1, device="meta")
    assert operator(lambda: wide.t()[0].view(2, 2)) == [] and operator(torch.empty_like, wide) == []
    (product,) = operator(torch.mul, wide, column)
    assert (product.kind, product.read, product.written) == ("broadcast", 4 * (32 + 4), 4 * 32)
    (matmul,) = operator(torch.mm, wide, wide.t())
    assert (matmul.kind, matmul.flops) == ("product", 2 * 4 * 8 * 4)
    (inner,), (outer,) = operator(torch.sum, wide, 1), operator(torch.sum, wide, 0)
    assert (inner.steps, outer.steps) == (0, 4)


@pytest.mark.parametrize("name", ["token hard", "span soft", "global"])
def test_a_call_is_recorded_without_running(name):
    """All launches in order, with what the compiler specializes on; the forward pass is the beginning of the whole."""
    whole, part = (prediction.record(Call(name, SMALL, "bfloat16", backward)) for backward in (True, False))
    launches = prediction.triton_launches(whole)
    assert all(launch.programs > 0 for launch in launches) and len(launches) >= 3
    assert [x.name for x in whole.launches[: whole.forward]] == [x.name for x in part.launches]
    assert len(part.launches) == part.forward and len(whole.launches) > whole.forward
    for launch in launches:
        signature = dict(launch.specialization.signature)
        assert set(dict(launch.specialization.constants)) == {k for k, v in signature.items() if v == "constexpr"}
        assert launch.specialization.option("num_warps") in (1, 2, 4, 8, 16)
    assert any("*bf16" in dict(launch.specialization.signature).values() for launch in launches)


def test_what_runs_is_what_was_recorded_and_reads_each_frame_once(tmp_path):
    """The count in the interpreter against the formula: real frames and tokens, once each, in sectors of 32 bytes."""
    call = Call("token hard", SMALL, "bfloat16", True)
    batch, _, tokens, width = call.shape
    counted = counting.count_apart([(call, batch)], tmp_path, jobs=1)[call, batch]
    known = prediction.record(call)
    assert [one.name for one in counted] == [launch.name for launch in prediction.triton_launches(known)]
    assert [one.programs for one in counted] == [launch.programs for launch in prediction.triton_launches(known)]
    arguments = prediction.make_arguments(call, batch, "cpu")
    rows = {"speech": arguments.speech_mask.sum(), "text": arguments.text_mask.sum()}
    sectors = {name: int(count) * width * 2 // tracing.SECTOR for name, count in rows.items()}
    read = [max((of[0] for of in one.touched.values()), default=0) for one in counted]
    assert max(read) == sectors["speech"]
    written = sum(max((of[1] for of in one.touched.values()), default=0) for one in counted)
    assert written >= batch * tokens * width * 2 // tracing.SECTOR, "the gradient of the text"
    loads = [
        one[3] for traced in counted for trace in traced.traces for one in trace.operations if one[0] == tracing.LOAD
    ]
    assert len({place for place, _ in loads}) > 2 * len(counted), "each load has its place in the source"
    assert all(math.isclose(sum(trace.count for trace in one.traces), one.programs) for one in counted)


def bars(found):
    return [gates.Bar("one", found, 10, "us"), gates.Bar("two", 5, 10, "us")]


def test_a_bar_that_is_open_and_one_that_holds_now_are_both_said(monkeypatch, capsys):
    monkeypatch.setattr(gates, "known_open", lambda: {"one"})
    assert command.print_bars(bars(20), known_open_allowed=False) == 1
    assert command.print_bars(bars(20), known_open_allowed=True) == 0
    assert "OPEN (recorded): one: 20 us, allowed 10" in capsys.readouterr().out
    assert command.print_bars(bars(3), known_open_allowed=True) == 0
    assert "HOLDS NOW, though recorded as open: one" in capsys.readouterr().out
    monkeypatch.setattr(gates, "known_open", lambda: {"two"})
    assert command.print_bars(bars(20), known_open_allowed=True) == 1
    assert "FAILS: one" in capsys.readouterr().out


FINE = Compiled(64, 0, 0, 0, 4, 10, {}, {}, 0, {}, {}, {})
REFILLED = """
    %a = ttg.local_alloc : () -> !ttg.memdesc<PLACESx64x64xbf16, #shared, #smem, mutable>
    %b = ttg.memdesc_index %a[%i] : view
    %c = ttg.async_copy_global_to_local %p, %b : copy
    %d = ttg.memdesc_index %a[%j] : view
    %e = ttg.async_copy_global_to_local %q, %d : copy
    %f = ttg.memdesc_trans %d : view
    %g = ttng.warp_group_dot %f, %f, %sum {inputPrecision = 0 : i32, isAsync = true} : product
    %h = ttng.warp_group_dot_wait %g {pendings = PENDING : i32} : wait
"""


@pytest.mark.parametrize("places, pending, expected", [(1, 1, True), (2, 1, False), (1, 0, False)])
def test_a_buffer_that_is_refilled_while_it_is_read_is_seen(places, pending, expected):
    """Two loads under way into fewer places, and a product that nobody waits for before the next load."""
    text = REFILLED.replace("PLACES", str(places)).replace("PENDING", str(pending))
    assert refilled_while_read(text) is expected


@pytest.mark.parametrize("bad, target, expected", [
    ({}, "sm_90", ""), ({"spills": 8}, "sm_90", "SPILLS 8 BYTES"), ({"spills": 8}, "sm_80", ""),
    ({"spills": 80}, "sm_80", "SPILLS 80 BYTES"), ({"refused": "no"}, "sm_100", "no"),
    ({"shared": 200 * 1024}, "sm_90", ""), ({"shared": 200 * 1024}, "sm_80", "MORE THAN 101376 BYTES"),
    ({"refilled": True}, "sm_90", "A BUFFER IS REFILLED WHILE IT IS READ"),
])  # fmt: skip
def test_what_a_chip_cannot_do_with(bad, target, expected):
    assert Compiled(**(vars(FINE) | bad)).problem(target) == expected


def test_amd_is_compiled_for_as_it_is_launched():
    options = (("maxnreg", 64), ("num_stages", 4), ("num_warps", 8))
    launch = recording.Specialization("m", "k", (), (("HARD", True), ("PRECISION", "tf32")), (), options)
    assert on_target(launch, "sm_90") == launch
    amd = on_target(launch, "gfx942")
    assert dict(amd.constants) == {"HARD": True, "PRECISION": "ieee"}
    assert dict(amd.options) == {"num_stages": 2, "num_warps": 8}


def test_results_are_kept_by_all_code_of_a_kernel():
    from pad_kernels.backends.triton.scores import score_kernel

    code = code_of(score_kernel)
    assert all(f"def {name}(" in code for name in ("score_kernel", "merge", "reduce_batch", "upper_bits", "eights"))
    assert "def hard_kernel(" not in code


@pytest.mark.parametrize("name", ["token soft", "span hard"])
def test_one_compiled_kernel_serves_every_width_and_reduction(name):
    from pad_kernels import pad_loss

    found = {}
    for width in (64, 200, 768):
        for reduction in ("none", "sum", "mean"):
            call, launches = Call(name, SMALL, "bfloat16", True), []
            with recording.as_on_a_gpu(), recording.kernels_not_started(launches):
                speech, text, *others = make_arguments(call, call.shape[0], "meta", width)
                speech, text = speech.requires_grad_(), text.requires_grad_()
                options = dict(level=call.level, temperature=call.temperature, reduction=reduction)
                loss = pad_loss(speech, text, *others, **options)
                torch.autograd.grad(loss, (speech, text), torch.empty_like(loss))
            found[width, reduction] = {launch.specialization for launch in launches}
    assert len({frozenset(kernels) for kernels in found.values()}) == 1


def test_spills_and_refusals_are_bars():
    wanted = recording.Specialization("m", "kernel", (("x", "*bf16"),), (), (), ())
    (bar,) = gates.of_resources({wanted: FINE}, "sm_90")
    assert bar.holds and "kernel, bf16, sm_90" in bar.name
    for bad in ({"spills": 8}, {"stack": 16}, {"refused": "no"}):
        (bar,) = gates.of_resources({wanted: Compiled(**(vars(FINE) | bad))}, "sm_90")
        assert not bar.holds


def test_launches_are_described_as_data():
    launch = Launch(recording.Specialization("m", "k", (), (), (), (("num_warps", 4),)), 3)
    assert launch.name == "k" and launch.specialization.option("num_stages", 2) == 2
    assert isinstance(operators.Operator("add", "elementwise", 1, 1), operators.Operator)
