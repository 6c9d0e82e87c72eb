"""README.md and docs/: their tables are those that the committed results give, and the front page stays short."""

import json
import shutil

import pytest

pytest.importorskip("transformers")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from benchmarks import front_page, report, results  # noqa: E402

MARKDOWN = [report.ROOT / "README.md", *sorted((report.ROOT / "docs").glob("*.md"))]
LONGEST_FRONT_PAGE = 110


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_tables_are_drawn_from_results(page):
    text = page.read_text(encoding="utf-8")
    assert "<!-- /" in text and report.fill(text) == text


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: page.name)
def test_every_page_with_a_drawn_table_is_redrawn(page):
    assert page in report.PAGES or "<!-- /" not in page.read_text(encoding="utf-8")


def test_every_section_is_on_one_page():
    text = "".join(page.read_text(encoding="utf-8") for page in report.PAGES)
    assert {name: text.count(f"<!-- {name} -->\n") for name in report.SECTIONS} == dict.fromkeys(report.SECTIONS, 1)


def test_front_page_is_short():
    assert len((report.ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_FRONT_PAGE


def test_a_table_typed_by_hand_is_replaced():
    text = "before\n<!-- step -->\nten times faster\n<!-- /step -->\nafter\n"
    filled = report.fill(text)
    assert "ten times" not in filled and filled.startswith("before\n<!-- step -->\n| audio |")


def test_a_marker_without_a_section_is_an_error():
    with pytest.raises(KeyError, match="no-such"):
        report.fill("<!-- no-such -->\n<!-- /no-such -->")


def test_what_was_not_measured_is_said(tmp_path):
    for name, section in report.SECTIONS.items():
        if section.files:
            assert report.NOT_MEASURED in report.fill(f"<!-- {name} -->\n<!-- /{name} -->", tmp_path)


def _summary(folder):
    return report.fill("<!-- summary -->\n<!-- /summary -->", folder)


@pytest.fixture
def cpu_results(tmp_path):
    for name in report.SECTIONS["summary"].files:
        shutil.copy(results.FOLDER / name, tmp_path)
    return tmp_path


def test_the_summary_says_that_no_gpu_was_used(cpu_results):
    table = _summary(cpu_results)
    assert front_page.NOT_RUN in table and len(table.splitlines()) == 2 + 2 + 8


@pytest.fixture
def gpu_results(cpu_results):
    """Of one case on a card that never was: 2 ms, 5 ms with the wait, against 9 and 10 of eager."""
    content = json.loads((cpu_results / "align_cpu.json").read_text(encoding="utf-8"))
    content["machine"]["gpu"], content["bars"] = "a card", []
    content["results"] = [r for r in content["results"] if r["label"] == "span hard forward+backward"][:1]
    providers = content["results"][0]["providers"]
    for name, device, wall in (("ours", 2.0, 5.0), ("eager", 9.0, 10.0), ("torch.compile", 1.0, 4.0)):
        providers[name]["ms"], providers[name]["wall_ms"] = ({"p20": t, "p50": t, "p80": t} for t in (device, wall))
    providers["eager-scaled"] = {"ms": None, "error": {}, "correct": False, "failure": "out of memory"}
    providers["peer"] = providers["eager-scaled"] | {"unavailable": True}
    return content


def _write(folder, content, name="align_cuda.json"):
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def test_the_summary_has_what_a_gpu_gave(cpu_results, gpu_results):
    _write(cpu_results, gpu_results)
    table = _summary(cpu_results)
    assert front_page.NOT_RUN not in table and len(table.splitlines()) == 2 + 2 + 8
    assert "backward: 4.5x over eager PyTorch in GPU time, 2.0x over eager PyTorch in wall time | a card |" in table
    assert "Run on a card" in report.fill("<!-- gpu-status -->\n<!-- /gpu-status -->", cpu_results)

    shutil.copy(results.FOLDER / "step_cuda.json", cpu_results)
    steps = json.loads((cpu_results / "step_cuda.json").read_text(encoding="utf-8"))["results"]
    times = [result["variants"]["ours"]["ms"]["p50"] / result["variants"]["plain"]["ms"]["p50"] for result in steps]
    spread = " to ".join(dict.fromkeys(f"{time:.2f}x" for time in (min(times), max(times))))
    steps = json.loads((cpu_results / "step_cuda.json").read_text(encoding="utf-8"))
    for late, kind in ((0.0, "GPU time"), (1.0, "time between events")):
        for result in steps["results"]:
            for row in result["variants"].values():
                row["ms"]["late"] = 0.0
        steps["results"][0]["variants"]["plain"]["ms"]["late"] = late
        _write(cpu_results, steps, "step_cuda.json")
        assert f". Training step: {spread} the {kind}" in _summary(cpu_results)
    for row in steps["results"][0]["variants"].values():
        del row["ms"]["late"]
    _write(cpu_results, steps, "step_cuda.json")
    assert f". Training step: {spread} the time between events" in _summary(cpu_results)
    drawn = report.fill("<!-- step-cuda -->\n<!-- /step-cuda -->", cpu_results)
    assert "Time between events, waits for the host included, median of 5 steps" in drawn
    (cpu_results / "step_cuda.json").unlink()

    _write(cpu_results, gpu_results, "compiled_cuda.json")
    assert "over eager PyTorch and 0.5x over torch.compile in GPU time" in _summary(cpu_results)

    gpu_results["results"][0]["providers"]["eager"]["correct"] = False
    _write(cpu_results, gpu_results)
    assert "; 1 of 1 cases left out, where eager PyTorch is wrong | a card |" in _summary(cpu_results)

    gpu_results["results"][0]["providers"]["eager"]["correct"] = True
    gpu_results["results"][0]["providers"]["ours"]["correct"] = False
    _write(cpu_results, gpu_results)
    assert "; 1 of 1 cases wrong | a card |" in _summary(cpu_results)


def test_a_provider_that_failed_on_a_gpu_is_said(cpu_results, gpu_results):
    _write(cpu_results, gpu_results)
    table = report.fill("<!-- align-cuda -->\n<!-- /align-cuda -->", cpu_results)
    header, row = (line for line in table.splitlines() if line.startswith("| "))
    cells = dict(zip(header.split(" | "), row.split(" | ")))
    assert cells["eager-scaled, ms"] == "failed" and cells["peer, ms"] == "-"
    assert cells["pad_kernels, wall ms"] == "5 (5-5)" and cells["vs eager"] == "4.5x"
    assert "late" not in table
    gpu_results["results"][0]["providers"]["eager"]["ms"]["late"] = 0.5
    _write(cpu_results, gpu_results)
    table = report.fill("<!-- align-cuda -->\n<!-- /align-cuda -->", cpu_results)
    assert "| 9 (9-9), late |" in table and "; late: waits for the host included; a card" in table


def test_goals_on_a_gpu_are_judged_by_the_worst_case(cpu_results, gpu_results):
    for name in ("significance", "step"):
        shutil.copy(results.FOLDER / f"{name}_cuda.json", cpu_results)
    slower = json.loads(json.dumps(gpu_results["results"][0]))
    slower["providers"]["eager"]["wall_ms"] = {"p20": 4.0, "p50": 4.0, "p80": 4.0}
    goal = "losses, forward+backward{}: {}"

    def row(name):
        _write(cpu_results, gpu_results)
        table = report.fill("<!-- gpu-goals -->\n<!-- /gpu-goals -->", cpu_results)
        return next(line.strip("| ").split(" | ")[1:] for line in table.splitlines() if name in line)

    wall = goal.format("", "wall time of a call relative to eager")
    assert row(wall) == ["at most 1x", "0.50x", "yes"]
    assert row(goal.format(", float32", "speed-up over eager in GPU time")) == ["at least 5x", "4.5x", "no"]
    assert row("memory bandwidth")[-1] == "not measured"
    gpu_results["results"].append(slower)
    assert row(wall) == ["at most 1x", "0.50 to 1.25x", "no"]
    for result in gpu_results["results"]:
        result["case"]["level"], result["floor"]["memory"] = "token", 1.0
    assert row("token and global, forward+backward") == ["at least 60 %", "50 %", "no"]
