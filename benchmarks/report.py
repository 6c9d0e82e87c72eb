"""Draws the tables of README.md and docs/ from the committed results: `python -m benchmarks.report`.

What stands between `<!-- NAME -->` and `<!-- /NAME -->` is replaced; no figure there is typed by hand.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import drawings, front_page, quality_drawings, results
from benchmarks.gpu_static import drawings as gpu_static
from benchmarks.plot import plot, plot_overview, plot_quality, plot_step
from pad_kernels import info

ROOT = results.FOLDER.parent.parent
DRAWN = ("benchmarks", "benchmarks_gpu", "gpu_predictions", "quality", "scaling", "support")
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{page}.md" for page in DRAWN))
NOT_MEASURED = "Not measured yet."


@dataclass(frozen=True)
class Section:
    """What is drawn between two markers, and the files of results it is drawn from."""

    draw: Callable[..., str]
    files: tuple[str, ...]
    optional: tuple[str, ...] = ()
    targets: bool = True  # drawn below, where the file has any


SECTIONS = {
    "summary": Section(
        front_page.summary,
        (
            "align_cpu.json",
            "align_cpu_kept.json",
            "sweep_cpu.json",
            "step_cpu.json",
            "step_cpu_kept.json",
            "quality.json",
        ),
        ("align_cuda.json", "compiled_cuda.json", "step_cuda.json"),
    ),
    "align": Section(drawings.align, ("align_cpu.json",)),
    "align-kept": Section(drawings.align, ("align_cpu_kept.json",)),
    "spread": Section(drawings.spread, ("align_cpu.json",), targets=False),
    "spread-kept": Section(drawings.spread, ("align_cpu_kept.json",), targets=False),
    "kept-leads": Section(drawings.kept_leads, ("align_cpu_kept.json",), targets=False),
    "align-intel": Section(drawings.align, ("align_cpu_intel.json",)),
    "align-cuda": Section(drawings.align_gpu, ("align_cuda.json",)),
    "memory-cuda": Section(drawings.memory_gpu, ("align_cuda.json",)),
    "compiled-cuda": Section(drawings.align_gpu, ("compiled_cuda.json",)),
    "sweep": Section(drawings.sweep, ("sweep_cpu.json",), targets=False),
    "small-batches": Section(drawings.small_batches, ("sweep_cpu.json",)),
    "significance": Section(drawings.significance, ("significance_cpu.json",)),
    "significance-cuda": Section(drawings.significance, ("significance_cuda.json",)),
    "step": Section(drawings.step, ("step_cpu.json",)),
    "step-cuda": Section(drawings.step, ("step_cuda.json",)),
    "step-kept": Section(drawings.step, ("step_cpu_kept.json",)),
    "demo": Section(quality_drawings.demo, ("demo.json",)),
    "demo-scratch": Section(quality_drawings.demo, ("demo_scratch.json",)),
    "quality": Section(quality_drawings.quality, ("quality.json",)),
    "quality-verdicts": Section(quality_drawings.quality_verdicts, ("quality.json",)),
    "quality-sweep": Section(quality_drawings.quality_sweep, ("quality.json",)),
    "prior-layers": Section(quality_drawings.prior_layers, ("prior_layers.json",)),
    "quality-scratch": Section(quality_drawings.quality_scratch, ("quality_scratch.json",)),
    "gpu-status": Section(drawings.gpu_status, (), ("align_cuda.json",)),
    "gpu-goals": Section(
        drawings.gpu_goals, ("align_cuda.json", "significance_cuda.json", "step_cuda.json"), ("compiled_cuda.json",)
    ),
    "gpu-static-errors": Section(gpu_static.errors, ("gpu_static_fit.json",)),
    "gpu-static-bars": Section(gpu_static.bars, ("gpu_static.json",), targets=False),
    "gpu-static-calls": Section(gpu_static.calls, ("gpu_static.json",), targets=False),
    "gpu-static-kernels": Section(gpu_static.kernels, ("gpu_static.json",), targets=False),
    "gpu-static-resources": Section(gpu_static.resources, ("gpu_static.json",), targets=False),
    "gpu-static-native": Section(gpu_static.native, ("gpu_static.json",), targets=False),
    "support": Section(info.support_table, ()),
    "scaling": Section(drawings.scaling, ("scaling_cpu.json",)),
    "teacher-cache": Section(drawings.teacher_cache, ("teacher_cache.json",)),
}


def _draw(section: Section, folder: Path) -> str:
    found = {name: folder / name for name in (*section.files, *section.optional)}
    contents = [results.read_json(path) if path.is_file() else None for path in found.values()]
    if None in contents[: len(section.files)]:
        return NOT_MEASURED
    tables = [section.draw(*contents)]
    if section.targets and len(contents) == 1 and contents[0] and contents[0].get("bars"):
        tables.append(drawings.targets(contents[0]))
    return "\n\n".join(tables)


def fill(text: str, folder: Path = results.FOLDER) -> str:
    """A page's text with its tables drawn anew; raises KeyError for a marker that no section has."""
    return re.sub(
        r"(<!-- ([a-z][\w-]*) -->\n).*?(<!-- /\2 -->)",
        lambda match: f"{match[1]}{_draw(SECTIONS[match[2]], folder)}\n{match[3]}",
        text,
        flags=re.S,
    )


def main() -> None:
    """Draw the plots and all tables."""
    losses, steps = (results.read_json(results.FOLDER / name) for name in ("align_cpu.json", "step_cpu.json"))
    plot(losses, results.FOLDER / "align.png")
    plot_step(steps, results.FOLDER / "step.png")
    plot_overview(losses, steps, results.FOLDER / "overview.png")
    plot_quality(results.read_json(results.FOLDER / "quality.json"), results.FOLDER / "quality.png")
    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
