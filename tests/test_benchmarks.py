"""The benchmarks themselves: what a failure does to a run, how results are kept, and what the dry run stands in for."""

import inspect
import json
import platform
import shutil
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from outcomes import Outcomes

pytest.importorskip("rich")

from benchmarks import (  # noqa: E402
    accelerator,
    align_bench,
    bars,
    machine,
    measure,
    peers,
    providers,
    results,
    summary,
    timing,
    traffic,
    workloads,
)
from benchmarks.cases import Case, make_inputs, ragged_mask  # noqa: E402
from benchmarks.floor import Passes, Work, passes, traffic_of  # noqa: E402

CASE = Case("tiny", "token", "hard", "forward+backward", "float32")


class Lost(accelerator.DryRun):
    """A GPU that answers no more after a failure."""

    def recover(self):
        raise RuntimeError("illegal memory access")


def fail(*arguments):
    raise torch.OutOfMemoryError("no memory\nand a long story")


def public(cls):
    return {name: list(inspect.signature(member).parameters) for name, member in inspect.getmembers(cls, callable)
            if not name.startswith("_")}  # fmt: skip


def test_the_dry_run_answers_all_that_a_gpu_is_asked():
    assert public(accelerator.DryRun) == public(accelerator.Cuda)


def test_a_results_file_does_not_show_where_somebody_keeps_files():
    shown = machine.command(["/home/somebody/bench.py", "--folder", "/home/somebody/runs", "--output", "runs/a.json"])
    assert shown == "python bench.py --folder runs --output runs/a.json"
    assert machine.command(["bench.py", "--folder=/home/somebody/runs", "--seeds=1"]) == (
        "python bench.py --folder=runs --seeds=1"
    )


def test_a_failure_ends_one_function_alone():
    found = timing.round_robin({"good": lambda: None, "bad": fail}, accelerator.Cpu(), seconds=0, min_rounds=3)
    assert found.failures == {"bad": "OutOfMemoryError: no memory"}
    assert found.milliseconds.keys() == {"good"} and found.milliseconds["good"]["rounds"] == 3


def test_a_function_that_fails_later_takes_no_further_part():
    calls = []

    def third_time():
        calls.append(1)
        if len(calls) == 3:
            fail()

    found = timing.round_robin({"bad": third_time, "good": lambda: None}, accelerator.Cpu(), seconds=0, min_rounds=5)
    assert len(calls) == 3 and found.failures.keys() == {"bad"} and found.milliseconds.keys() == {"good"}


def test_a_lost_gpu_is_named_with_who_lost_it():
    with pytest.raises(accelerator.DeviceLostError) as raised:
        timing.round_robin({"bad": fail}, Lost(), seconds=0)
    assert raised.value.provider == "bad" and "no memory" in raised.value.reason


def test_columns_of_a_gpu():
    """Each measured apart: what cannot be captured has all the others."""

    class NoGraphs(accelerator.DryRun):
        def capture(self, call):
            fail()

    plan = measure.Plan(0, 1, own_graphs=frozenset({"compiled"}))
    rows = measure.measure({"ours": lambda: torch.ones(8).exp(), "compiled": lambda: None}, NoGraphs(), plan)
    assert rows["ours"]["graph_ms"] is None and "no memory" in rows["ours"]["errors"]["graph_ms"]
    assert rows["ours"]["ms"]["rounds"] == rows["ours"]["wall_ms"]["rounds"] == 1
    assert rows["ours"]["peak_bytes"] == 0 and rows["compiled"]["peak_bytes"] is None
    assert rows["compiled"]["errors"]["graph_ms"] == measure.REPLAYS_GRAPHS_ITSELF
    kernels = {kernel["name"]: kernel for kernel in rows["ours"]["kernels"]}
    assert kernels["aten::exp"]["calls"] == 1 and kernels["aten::exp"]["us"] > 0


class Launching:
    """The answers of torch.cuda to a call whose launches take so many cycles; times are in cycles."""

    def __init__(self, launches: int):
        self.launches, self.leads = launches, []

    def Event(self, enable_timing):
        return self

    def _sleep(self, cycles):
        self.leads.append(cycles)

    def query(self):
        return self.launches > self.leads[-1]

    def elapsed_time(self, other):
        return float(self.launches)

    def record(self):
        pass

    synchronize = record


@pytest.mark.parametrize(
    "launches, lead, late", [(3_000_000, 4_000_000, 0.0), (10**9, accelerator.LAST_LEAD_CYCLES, 1.0)]
)
def test_a_time_with_waits_for_the_host_is_marked(monkeypatch, launches, lead, late):
    answers = Launching(launches)
    for name in ("Event", "_sleep"):
        monkeypatch.setattr(torch.cuda, name, getattr(answers, name))
    monkeypatch.setattr(accelerator.Cuda, "_clear_caches", lambda self: None)
    monkeypatch.setattr(accelerator.Cuda, "recover", lambda self: None)
    found = timing.round_robin({"call": lambda: None}, accelerator.Cuda(), seconds=0, min_rounds=3)
    row = found.milliseconds["call"]
    assert row == {"p20": launches, "p50": launches, "p80": launches, "rounds": 3, "late": late}
    assert max(answers.leads) == lead
    assert results.any_late([{"ms": row}]) == bool(late) and not results.any_late([{"ms": None}, {"ms": {"p50": 1.0}}])


def test_a_step_is_checked_by_its_priors_too(monkeypatch):
    """Twice a prior gives the same loss."""
    pytest.importorskip("transformers")
    from benchmarks import step_bench
    from pad.priors.record import Record

    step = step_bench.Step(step_bench.CASES[step_bench.TINY], "cpu", small=True)
    assert step.error() <= step_bench.TOLERANCE
    recorded = Record.prior
    monkeypatch.setattr(Record, "prior", lambda self, *arguments: 2 * recorded(self, *arguments))
    assert step.error() > 0.5


def test_bandwidth_where_the_traffic_is_known():
    kernels = [{"name": "tile_kernel", "us": 10.0}, {"name": "other", "us": 1.0}]
    measure.add_bandwidth(kernels, {"tile_kernel": 1.5e7, "other": None}.get, read_gbs=3000.0)
    assert kernels[0]["gbs"] == 1500 and kernels[0]["floor_share"] == 0.5 and kernels[1]["gbs"] is None


def test_the_peak_of_multiply_adds_touches_no_memory():
    """Each of the loop's operands is a register: read from memory, they would be the peak of that."""
    if platform.machine() != "x86_64" or not shutil.which("objdump") or not machine.programs():
        pytest.skip("needs an x86 processor, a C compiler and objdump")
    code = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", machine.programs()["peak"]], capture_output=True, text=True, check=True
    ).stdout
    run = code.partition("<run>:")[2].partition("\n\n")[0]
    products = [line for line in run.splitlines() if "fmadd" in line or "mulps" in line]
    assert len(products) >= 12 and not any("(" in line for line in products)


def test_the_floor_of_arithmetic_is_the_fastest_product_measured():
    work = Work("float32", 4e9, 0, 0)
    rates = {"fma_gflops": 300.0, "mm_gflops": 400.0, "read_gbs": 1.0, "write_gbs": 1.0}
    assert work.milliseconds(rates)["arithmetic"] == 10
    assert work.milliseconds(rates | {"fma_gflops": 500.0})["arithmetic"] == 8


def test_the_floor_of_two_passes_is_the_sum_of_theirs():
    """Backward begins when forward has ended: the arithmetic of one does not run beside the traffic of the other."""
    rates = {"fma_gflops": 100.0, "mm_gflops": 50.0, "read_gbs": 10.0, "write_gbs": 5.0}
    forward, backward = Work("float32", 4e8, 1e7, 0), Work("float32", 0, 0, 1e7)
    assert Passes(forward).milliseconds(rates)["floor"] == pytest.approx(4)
    both = Passes(forward, backward)
    assert both.milliseconds(rates) == pytest.approx({"memory": 3, "arithmetic": 4, "at_mm_rate": 8, "floor": 6})
    assert both.milliseconds(rates, [5, 1])["floor"] == pytest.approx(6)


@pytest.mark.parametrize(
    ("level", "mode", "products", "reads"), [("token", "soft", 3, 1), ("token", "hard", 0, 0), ("global", "", 0, 0)]
)
def test_the_work_of_the_backward_pass(level, mode, products, reads):
    case = Case("tiny", level, mode, "forward+backward", "float32")
    inputs = make_inputs(case)
    found = passes(case, inputs)
    written = inputs.speech.nbytes + inputs.text.nbytes
    assert found.backward == Work("float32", products * found.forward.flops, reads * found.forward.read_bytes, written)
    assert [bool(traffic_of(work, inputs, 1)._rows) for work in found] == [True, bool(reads)]
    alone = passes(Case("tiny", level, mode, "forward", "float32"), inputs)
    assert list(alone) == [found.forward]


def test_a_single_utterance_has_no_padding():
    assert ragged_mask(1, 50).all() and not ragged_mask(2, 50).all(1).all()


def test_a_loss_that_is_wrong_without_a_graph_is_noticed():
    case = Case("tiny", "global", "", "forward", "float32")
    inputs = make_inputs(case)

    def loss(inputs, level, temperature):
        return providers.eager(inputs, level, temperature) * (1 if torch.is_grad_enabled() else 2)

    expected = providers.reference(inputs.double(), case.level, case.temperature)
    error = workloads.error_alone(loss, inputs, case, expected)
    assert error["loss_alone"] > 0.9 and not workloads.within_tolerance(error, "float32")
    right = workloads.error_alone(providers.eager, inputs, case, expected)
    assert workloads.within_tolerance(right, "float32")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_floor_of_memory_is_its_traffic(threads):
    if not machine.programs():
        pytest.skip("no C compiler")
    inputs = torch.zeros(3, 10_000)
    rows = [inputs[0], inputs[1, :1000], inputs[2, :7]]
    for written in (0, 1000):
        found = traffic.Traffic(rows, written, threads)
        kernels = traffic.WRITING if written else traffic.READING
        rounds = len(kernels) * traffic._ROUNDS_OF_EACH + 3
        timed = timing.round_robin({"memory": found}, accelerator.Cpu(), seconds=0, min_rounds=rounds)
        assert timed.milliseconds["memory"]["rounds"] == rounds and found.milliseconds() > 0
        counts = [len(samples) for samples in found._samples.values()]
        assert min(counts) >= traffic._ROUNDS_OF_EACH and sum(counts) == rounds + 1  # and one to begin with
    for buffer in found.written:
        # A vector is as wide as the processor's, and begins with a one; all whole ones are written.
        ones = buffer.nonzero().flatten() - -buffer.data_ptr() % 64
        width = int(ones[1] - ones[0])
        assert width in (16, 32, 64) and torch.equal(ones, torch.arange(0, 1000 // width * width, width))


def test_rows_are_divided_evenly():
    shares = traffic._divided([(0, 640), (10_000, 64), (20_000, 576)], 2)
    assert shares == [[(0, 640)], [(10_000, 64), (20_000, 576)]]
    assert traffic._divided([(0, 100)], 3) == [[], [(0, 64)], [(64, 36)]]


def test_a_result_below_its_floor_is_named():
    row = {"correct": True, "ms": {"p50": 1.0}}
    rows = {"ours": row, "wrong": row | {"correct": False}, "failed": {"correct": False, "ms": None}}
    result = {"title": "B=1", "label": "token", "providers": rows}

    def below(floor, threads=2):
        found = [result | {"floor": {"floor": floor}}]
        return results.below_floor({"rates": {"threads": threads}, "results": found})

    assert below(0.9) == below(1.1, threads=None) == []
    (line,) = below(1.1)
    assert "B=1 token: ours" in line and "1.1 ms" in line


def test_a_captured_call_of_the_dry_run_is_replayed_on_new_data():
    source = torch.ones(3)
    result, replay = accelerator.DryRun().capture(lambda: (source * 2, source.sum()))
    source.fill_(5)
    replay()
    assert result[0].tolist() == [10, 10, 10] and result[1] == 15


@pytest.fixture
def run_align(tmp_path, capsys):
    def run(*arguments):
        output = tmp_path / "align.json"
        code = align_bench.main(["--device", "dry-run", "--levels", "token", "--modes", "hard", "--dtypes", "float32",
                                 "--directions", "forward+backward", "--output", str(output), *arguments])  # fmt: skip
        return code, json.loads(output.read_text()), capsys.readouterr().out

    return run


def test_a_provider_that_fails_is_a_row_with_its_error(run_align, monkeypatch):
    monkeypatch.setitem(providers._FIXED, "ours-triton", fail)
    code, content, printed = run_align("--providers", "ours-triton", "eager", "ours")
    (rows,) = (result["providers"] for result in content["results"])
    assert rows["ours-triton"]["failure"] == "OutOfMemoryError: no memory" and rows["ours-triton"]["ms"] is None
    assert rows["ours"]["correct"] and rows["ours"]["ratio_to_eager"] > 0
    assert code == 1 and "no memory" in printed


def test_a_wrong_provider_gets_no_ratio(run_align, monkeypatch):
    monkeypatch.setitem(providers._FIXED, "ours-native", lambda *a: 1.001 * providers.ours(*a))
    code, content, _ = run_align("--providers", "eager", "ours-native")
    row = content["results"][0]["providers"]["ours-native"]
    assert row["ms"] and not row["correct"] and row["ratio_to_eager"] is None and code == 1


def test_packages_that_are_not_installed_are_rows_and_no_failure(run_align, monkeypatch):
    for module in ("late_interaction_kernels", "flash_maxsim"):
        monkeypatch.setitem(sys.modules, module, None)
    code, content, _ = run_align("--providers", "ours", *peers.PEERS)
    rows = content["results"][0]["providers"]
    assert code == 0 and all(rows[name]["unavailable"] and rows[name]["ms"] is None for name in peers.PEERS)


def test_packages_that_are_installed_are_checked_by_their_own_definition(run_align, monkeypatch):
    package = types.ModuleType("late_interaction_kernels")
    package.maxsim_pairs = peers._plain
    monkeypatch.setitem(sys.modules, "late_interaction_kernels", package)
    _, content, _ = run_align("--providers", "ours", "late-interaction-kernels")
    assert content["results"][0]["providers"]["late-interaction-kernels"]["correct"]
    package.maxsim_pairs = lambda *a: 1.01 * peers._plain(*a)
    _, content, _ = run_align("--providers", "ours", "late-interaction-kernels")
    assert not content["results"][0]["providers"]["late-interaction-kernels"]["correct"]


def test_peers_compute_the_hard_token_level():
    inputs = make_inputs(CASE).double()
    found, expected = peers.definition(peers.prepare(inputs), "token", 0.0), providers.reference(inputs, "token", 0.0)
    assert abs(found - expected) < 1e-6


def test_what_there_was_no_time_for_is_said(run_align):
    _, content, printed = run_align("--providers", "ours", "--seconds-total", "0")
    assert content["results"] == [] and content["left_out"] == ["tiny float32 token hard forward+backward"]
    assert "left out" in printed and "tiny float32 token hard" in printed


def test_a_run_goes_on_in_a_new_process_without_who_lost_the_gpu(run_align, monkeypatch, tmp_path):
    started = []

    def execv(program, arguments):
        started.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(results.os, "execv", execv)
    monkeypatch.setattr(accelerator, "DEVICES", accelerator.DEVICES | {"dry-run": Lost})
    monkeypatch.setitem(providers._FIXED, "ours-native", fail)
    with pytest.raises(SystemExit):
        run_align("--providers", "eager", "ours", "ours-native")
    kept = json.loads((tmp_path / "align.json").read_text())
    assert started[0][-1] == "--resume" and kept["lost"][0]["provider"] == "ours-native" and kept["results"] == []
    _, content, _ = run_align("--providers", "eager", "ours", "ours-native", "--resume")
    rows = content["results"][0]["providers"]
    assert rows["ours"]["ms"] and "lost" in rows["ours-native"]["failure"]
    _, again, _ = run_align("--providers", "eager", "ours", "ours-native", "--resume")
    assert again["results"] == content["results"]
    monkeypatch.setattr(machine, "cpu_model", lambda: "another")
    with pytest.raises(SystemExit, match="was measured elsewhere; cpu: .* there, another here"):
        run_align("--providers", "eager", "ours", "ours-native", "--resume")


def test_a_file_is_whole_or_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    run = results.Run(path, {})
    run.save()
    before = path.read_text()
    run.results.append({"case": object()})  # what json cannot write
    with pytest.raises(TypeError):
        run.save()
    assert path.read_text() == before


@pytest.mark.parametrize("level, mode", [("token", "hard"), ("span", "soft"), ("global", "")])
@pytest.mark.parametrize("utterances", [1, 3])
def test_the_reference_in_parts_is_that_of_the_batch(level, mode, utterances):
    case = Case("small", level, mode, "forward+backward", "float32")
    inputs = make_inputs(case)
    whole, parts = workloads.truth(inputs, case), workloads.truth(inputs, case, utterances=utterances)
    assert max(workloads.errors(parts, whole).values()) < 1e-12


def test_the_table_of_a_run(tmp_path, capsys):
    steps = tmp_path / "steps.tsv"
    tests = {"passed": 3, "failed": 0, "skipped": 0, "failures": [], "reasons": {}}
    (tmp_path / "tests.json").write_text(json.dumps({"triton": tests, "native": tests | {"passed": 0, "skipped": 2}}))

    def code(*lines):
        steps.write_text("".join("\t".join(line) + "\n" for line in lines))
        return summary.main([str(steps), str(tmp_path)])

    good, build = ("triton", "9", "ok"), ("build", "2", "ok")
    assert code(build, good) == 0
    assert code(build, good, ("losses", "0", "left out")) == summary.LEFT_OUT
    assert code(build, good, ("losses", "90", "out of time")) == summary.FAILED
    assert code(build, good, ("native", "5", "ok")) == summary.FAILED
    assert "no test ran" in capsys.readouterr().out
    assert code() == summary.FAILED


def test_outcomes_of_runs_beside_one_another_are_all_kept(tmp_path):
    def run(name):
        outcomes = Outcomes(tmp_path / "tests.json", name)
        for _ in range(100):
            outcomes.found["passed"] += 1
            outcomes.write()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, "abcd"))
    kept = json.loads((tmp_path / "tests.json").read_text())
    assert {name: found["passed"] for name, found in kept.items()} == dict.fromkeys("abcd", 100)
    assert [path.name for path in tmp_path.iterdir()] == ["tests.json"]


def _result(level, mode, direction, dtype, milliseconds, size="base", **others):
    rows = {"ours": milliseconds, "eager-scaled": None} | others
    providers = {name: {"correct": time is not None, "ms": time and {"p50": time}, "extra_bytes": None}
                 for name, time in rows.items()}  # fmt: skip
    shape = {"batch": 16, "frames": 750, "tokens": 48, "width": 768}
    case = {"size": size, "level": level, "mode": mode, "direction": direction, "dtype": dtype, "shape": shape}
    return {"case": case, "label": f"{level} {mode} {direction}", "floor": {"floor": 3.0}, "providers": providers}


def test_bars_are_judged():
    compiled = {"torch.compile": 20.0}
    found = [
        _result("token", "soft", "forward+backward", "float32", 4.0, **compiled),
        _result("token", "soft", "forward+backward", "bfloat16", 3.5),
        _result("global", "", "forward", "float32", 6.0),
    ]
    judged = {row["bar"]: (row["measured"], row["met"]) for row in bars.evaluate(found, 2, memory_kept=True)}
    assert judged["token soft, forward+backward: share of the floor"] == (0.75, True)
    assert judged["global, forward: share of the floor"] == (0.5, False)
    assert judged["token soft, forward+backward: speed-up of bfloat16 over float32"] == (4 / 3.5, False)
    assert judged["span hard, forward+backward: speed-up of bfloat16 over float32"] == (None, None)
    assert judged["token soft, forward+backward: speed-up over torch.compile, memory kept"] == (5.0, True)
    assert len(bars.evaluate(found, 2)) == len(judged) - 5
    found[1]["providers"]["ours"] = {"correct": False, "ms": None, "extra_bytes": None, "failure": "out of memory"}
    assert all(row["measured"] is None for row in bars.evaluate(found, 2) if "bfloat16 over" in row["bar"])
    small = [_result("token", "hard", "forward", "float32", 1.0, "M=20", eager=1.5),
             _result("global", "", "forward", "float32", 2.0, "M=20", eager=1.5)]  # fmt: skip
    for result in small:
        result["case"]["size"] = next(iter(bars.SMALL_BATCHES))
    lowest, other = bars.small_batches(small)
    assert lowest["measured"] == 0.75 and not lowest["met"] and "global" in lowest["bar"]
    assert other["measured"] is None and other["met"] is None
