"""The table at the top of README.md."""

import math

from benchmarks import results, step_bench
from benchmarks.drawings import BOTH, processor_name, speed_up_range, table, whole_passes
from benchmarks.quality_drawings import summary_rows
from benchmarks.tables import megabytes, shape_text

NOT_RUN = "compiled for sm_80, sm_90, sm_100 and gfx942, **not yet run on a GPU**"


def summary(
    losses: dict,
    losses_kept: dict,
    sweep: dict,
    steps: dict,
    steps_kept: dict,
    quality: dict,
    gpu_losses: dict | None,
    gpu_compiled: dict | None,
    gpu_steps: dict | None,
) -> str:
    """The figures that count: the kernels, what distillation gives, and what a GPU gave."""
    whole = whole_passes(losses)
    where = processor_name(losses["machine"])
    size = shape_text(whole[0]["case"])

    def most(provider: str) -> str:
        rows = (result["providers"][provider] for result in whole)
        return megabytes(max(row["extra_bytes"] for row in rows if row["correct"]))

    def over(provider: str, content: dict = losses) -> str:
        return speed_up_range(results.ratio(result, "ours", provider) for result in whole_passes(content))

    def lowest(provider: str) -> str:
        rows = (row for row in sweep["sweep"] if row["base"] == provider and row["label"].endswith(BOTH))
        return f"{math.floor(10 * min(row['lowest'] for row in rows)) / 10:.1f}x"  # "at least" is not rounded up

    def leads(content: dict) -> str:
        return (
            f"{over('eager', content)} over eager PyTorch, {over('eager-scaled', content)} over optimized eager "
            f"PyTorch, {over('torch.compile', content)} over torch.compile"
        )

    faster, kept = (
        speed_up_range((step_bench.relative(result, "eager", "ours") for result in content["results"]), digits=2)
        for content in (steps, steps_kept)
    )
    saved = [
        100 * (1 - result["variants"]["ours"]["peak_bytes"] / result["variants"]["eager"]["peak_bytes"])
        for result in steps["results"]
    ]
    rows = [
        [
            f"Speed-up of the loss, forward and backward, {size}",
            f"{leads(losses)}; at other sizes at least {lowest('eager')} over eager and {lowest('eager-scaled')} over "
            "optimized eager PyTorch",
            where,
        ],
        ["The same where the allocator keeps freed memory", leads(losses_kept), where],
        [
            "Loss: peak memory beyond inputs and gradients",
            f"{most('ours')} MB at most; eager up to {most('eager')} MB, torch.compile up to "
            f"{most('torch.compile')} MB",
            where,
        ],
        [
            "Whole training step, wav2vec2-base and bert-base: speed-up over PAD in eager PyTorch",
            f"{faster}, with {min(saved):.0f} to {max(saved):.0f} % less memory; {kept} where the allocator keeps "
            "freed memory",
            "; ".join(dict.fromkeys(processor_name(found["machine"]) for found in (steps, steps_kept))),
        ],
        *summary_rows(quality),
        ["GPU", *_gpu(gpu_losses, gpu_compiled, gpu_steps)],
    ]
    return table(["", "result", "measured on"], rows)


def _gpu(losses: dict | None, compiled: dict | None, steps: dict | None) -> list[str]:
    """What ran on a GPU; the runs with torch.compile and of the training step may be missing."""
    if losses is None:
        return [NOT_RUN, "-"]

    def over(content: dict, base: str, column: str) -> str:
        whole = results.select(content["results"], direction=BOTH)
        return speed_up_range(results.ratio(result, "ours", base, column) for result in whole)

    whole = results.select(losses["results"], direction=BOTH)
    found = [f"{over(losses, 'eager', 'ms')} over eager PyTorch"]
    if compiled is not None:
        found.append(f"{over(compiled, 'torch.compile', 'ms')} over torch.compile")
    if any(result["providers"]["eager-scaled"]["correct"] for result in whole):
        found.append(f"{over(losses, 'eager-scaled', 'ms')} over optimized eager PyTorch")
    waited = f"{over(losses, 'eager', 'wall_ms')} over eager PyTorch in wall time"
    text = f"loss, forward and backward: {' and '.join(found)} in GPU time, {waited}"
    left_out, wrong = (sum(not result["providers"][name]["correct"] for result in whole) for name in ("eager", "ours"))
    if left_out:
        text += f"; {left_out} of {len(whole)} cases left out, where eager PyTorch is wrong"
    text += f"; {wrong} of {len(whole)} cases wrong" if wrong else ""
    if steps is not None:
        ours, eager = (
            speed_up_range((step_bench.relative(result, name, "plain") for result in steps["results"]), digits=2)
            for name in ("ours", "eager")
        )
        kind = "time between events" if step_bench.any_late(steps) else "GPU time"
        text += f". Training step: {ours} the {kind} of training without priors; PAD in eager PyTorch {eager}"
    return [text, processor_name(losses["machine"])]
