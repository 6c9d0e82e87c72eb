"""One whole distillation step: student forward and backward, teacher, priors, loss, optimizer.

Full-size wav2vec2-base and bert-base with random weights, in three variants: `plain`, the student with SDPA and the
mean-pooled L1 loss, without priors: the floor; `eager`, PAD as one would write it, `output_attentions=True` and a
loss in PyTorch; `ours`, priors recorded on the way and pad_loss. The student goes first in all of them, so that a GPU
is busy with it while the host goes through the teacher. Dropout is that of the two configs. Before timing, the losses
and priors of `eager` and `ours` are checked against each other without dropout. A variant that fails is shown with its
error.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

if not __package__:
    sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch
from rich.table import Table
from torch import Tensor, nn
from transformers import BertConfig, BertModel, Wav2Vec2Config, Wav2Vec2Model

import pad.priors.attention
import pad_kernels
from benchmarks import accelerator, machine, measure, memory, providers, results, tables, timing
from benchmarks.cases import Inputs
from benchmarks.results import Run
from pad import record_significance
from pad.students.waveforms import convolution_layout

RATE = 16000
TOKENS_PER_SECOND = 3.2
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """A batch of utterances of `seconds` down to 60 % of it."""

    seconds: int
    batch: int

    @property
    def label(self) -> str:
        return f"{self.seconds} s x {self.batch}"


# The last is that of a dry run; the one before fills a GPU.
CASES = {case.label: case for case in (Case(5, 4), Case(10, 4), Case(20, 2), Case(30, 1), Case(15, 32), Case(1, 2))}
TINY = "1 s x 2"


class Step:
    """Both models, a batch, and the three variants of a step on them."""

    def __init__(self, case: Case, device: str, precision: str = "float32", small: bool = False):
        torch.manual_seed(0)
        few = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        sizes = few if small else {}
        convolutions = {"conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
        student = Wav2Vec2Config(**sizes, **(convolutions if small else {}), apply_spec_augment=False, layerdrop=0.0)
        self.student = Wav2Vec2Model(student).to(device).train()
        self.teacher = BertModel(BertConfig(**sizes)).to(device).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-5)
        samples, tokens = case.seconds * RATE, max(4, round(case.seconds * TOKENS_PER_SECOND))
        shares = torch.linspace(1.0, 0.6, case.batch)
        lengths = (shares * samples).long()
        self.samples = (torch.randn(case.batch, samples) * (torch.arange(samples) < lengths[:, None])).to(device)
        layout = convolution_layout(student)
        frames = layout.frames(torch.tensor(samples))
        self.frame_mask = (torch.arange(int(frames)) < layout.frames(lengths)[:, None]).to(device)
        self.ids = torch.randint(1000, 20000, (case.batch, tokens), device=device)
        self.attention_mask = (torch.arange(tokens) < (shares * tokens).ceil()[:, None]).to(device)
        self.text_mask = self.attention_mask.clone()
        self.text_mask[:, 0] = False  # [CLS]
        self.autocast = partial(torch.autocast, device, torch.bfloat16, enabled=precision == "bfloat16")

    def _attend_by(self, implementation: str) -> None:
        self.student.config._attn_implementation = self.teacher.config._attn_implementation = implementation

    def _read(self, **options):
        with torch.no_grad():
            return self.teacher(self.ids, attention_mask=self.attention_mask.long(), **options)

    def plain(self) -> tuple[Tensor]:
        """Mean-pooled L1, no priors."""
        self._attend_by("sdpa")
        speech, text = self.student(self.samples).last_hidden_state, self._read().last_hidden_state
        means = [(x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                 for x, mask in ((speech.float(), self.frame_mask), (text.float(), self.text_mask))]  # fmt: skip
        return ((means[0] - means[1]).abs().sum(1).mean(),)

    def eager(self) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and both priors: attention maps of all layers, and the hard loss of spans in PyTorch."""
        self._attend_by("eager")
        speech = self.student(self.samples, output_attentions=True)
        text = self._read(output_attentions=True)
        speech_prior = _from_maps(speech.attentions, self.frame_mask)
        text_prior = _from_maps(text.attentions, self.text_mask)
        counts = self.text_mask.sum(1)
        spans = pad_kernels.select_spans(speech_prior, self.frame_mask, counts, backend="reference")
        outputs = speech.last_hidden_state.float(), text.last_hidden_state.float()
        priors_and_spans = speech_prior, text_prior, spans.start, spans.end
        loss = providers.eager(Inputs(*outputs, self.frame_mask, self.text_mask, *priors_and_spans), "span", 0.0)
        return loss, speech_prior, text_prior

    def ours(self) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and both priors, which are recorded: pad_loss."""
        self._attend_by("sdpa")
        with record_significance(self.student, self.frame_mask) as of_speech:
            speech = self.student(self.samples).last_hidden_state
        with record_significance(self.teacher, self.text_mask) as of_text:
            text = self._read().last_hidden_state
        priors = of_speech.prior(), of_text.prior()
        masks = self.frame_mask, self.text_mask
        loss = pad_kernels.pad_loss(speech, text.to(speech.dtype), *masks, *priors, level="span", temperature=0.0)
        return loss, *priors

    def run(self, variant: str) -> None:
        """A step of the optimizer."""
        with self.autocast():
            loss, *_ = getattr(self, variant)()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def error(self) -> float:
        """The largest relative difference of the losses and priors of `eager` and `ours`, dropout off."""
        self.student.eval()
        with torch.no_grad():
            pairs = zip(self.eager(), self.ours(), strict=True)
        self.student.train()
        return max(float((found - wanted).norm() / wanted.norm()) for wanted, found in pairs)

    def parts(self, device: accelerator.Device) -> dict[str, float]:
        """Seconds of a step of ours spent in the significance priors and in pad_loss, forward and backward.

        On a GPU each part is waited for, so its launches count with it.
        """
        seconds = {"significance": 0.0, "loss": 0.0}
        clock = device.wall_seconds if device.is_gpu else device.seconds
        inner = pad.priors.attention.significance

        def timed(*arguments, **options):
            result = []
            seconds["significance"] += clock(lambda: result.append(inner(*arguments, **options)))
            return result[0]

        pad.priors.attention.significance = timed
        try:
            with torch.no_grad(), record_significance(self.student, self.frame_mask) as record:
                speech = self.student(self.samples).last_hidden_state
            with record_significance(self.teacher, self.text_mask) as of_text:
                text = self._read().last_hidden_state
        finally:
            pad.priors.attention.significance = inner
        speech, prior, text_prior = speech.requires_grad_(), record.prior(), of_text.prior()
        masks_and_priors = self.frame_mask, self.text_mask, prior, text_prior
        seconds["loss"] = clock(
            lambda: pad_kernels.pad_loss(speech, text, *masks_and_priors, temperature=0.0).backward()
        )
        return seconds


def _from_maps(attentions, mask: Tensor) -> Tensor:
    """The prior by its definition, as one writes it."""
    found = []
    for layer in attentions:
        received = (layer.float().mean(1) * mask[:, :, None]).sum(1) * mask
        found.append(received / received.sum(1, keepdim=True))
    return torch.stack(found).mean(0)


VARIANTS = ("plain", "eager", "ours")


def workload(provider: str, case: dict) -> Callable[[], object]:
    """The call to measure, from the plain data a child process is given."""
    step = Step(Case(case["seconds"], case["batch"]), "cpu", case["precision"], case["small"])
    return lambda: step.run(provider)


def measure_case(case: Case, options: argparse.Namespace, device: accelerator.Device, lost: set[str]) -> dict:
    """Check, time and take apart one case, without the variants that have lost the GPU before."""
    step = Step(case, device.tensors, options.precision, options.small)
    error, failure = timing.attempt("ours", step.error, device)
    calls = {name: partial(step.run, name) for name in VARIANTS if name not in lost}
    seconds = options.seconds if device.is_gpu else 1e-6
    why = "a whole step is not captured: its optimizer counts on the CPU"
    plan = measure.Plan(seconds, options.rounds, profiled=lambda name: name != "eager", not_captured=why)
    rows = {name: measure.failed_row("left out: the GPU was lost with it in an earlier case") for name in VARIANTS}
    rows |= measure.measure(calls, device, plan)
    for row in rows.values():
        measure.add_bandwidth(row.get("kernels", []), lambda name: None, 1.0)
    result = {
        "case": asdict(case) | {"precision": options.precision, "small": options.small},
        "label": case.label,
        "frames": step.frame_mask.shape[1],
        "tokens": step.text_mask.shape[1],
        "error": error,
        "correct": failure is None and error <= TOLERANCE,
        "variants": rows,
    }
    if failure is not None:
        result["check_failure"] = failure
    parts, failure = timing.attempt("ours", lambda: step.parts(device), device)
    if failure is None:
        result["parts_ms"] = {name: 1e3 * seconds for name, seconds in parts.items()}
    return result


def relative(result: dict, variant: str, base: str) -> float | None:
    """Time of a variant over that of another; None where the result is wrong."""
    rows = [result["variants"][name] for name in (variant, base)]
    if not result["correct"] or any(row["ms"] is None for row in rows):
        return None
    return rows[0]["ms"]["p50"] / rows[1]["ms"]["p50"]


def any_late(content: dict) -> bool:
    """Whether waits for the host are part of the GPU times of these steps. Files that do not say are from a time when
    they always were."""
    if not content["machine"].get("gpu"):
        return False
    rows = (row for result in content["results"] for row in result["variants"].values())
    return results.any_late(rows, unsaid=1.0)


def added_memory(result: dict) -> float | None:
    """What ours adds to the peak of plain, over what eager adds."""
    peaks = {name: row["peak_bytes"] for name, row in result["variants"].items()}
    if None in peaks.values() or not result["correct"]:
        return None
    return (peaks["ours"] - peaks["plain"]) / max(1, peaks["eager"] - peaks["plain"])


def bars(found: list[dict]) -> list[dict]:
    """Goals on a CPU, and whether this run meets them."""
    by_label = {result["label"]: result for result in found}
    ten, twenty = by_label.get("10 s x 4"), by_label.get("20 s x 2")
    ratio = None if ten is None else relative(ten, "ours", "plain")
    memory_share = None if twenty is None else added_memory(twenty)
    against = [relative(result, "eager", "ours") for result in found]
    slowest = None if None in against else min(against)
    rows = [("step, 10 s x 4: time relative to plain, at most", 1.10, ratio, "<="),
            ("step, 20 s x 2: memory added to plain, relative to what eager adds, at most", 0.02, memory_share, "<="),
            ("step, slowest case: speed-up over eager", 1.0, slowest, ">")]  # fmt: skip
    return [
        {"bar": name, "unit": "x", "wanted": wanted, "measured": value,
         "met": None if value is None else value <= wanted if sign == "<=" else value > wanted}
        for name, wanted, value, sign in rows
    ]  # fmt: skip


def print_table(console, found: list[dict]) -> None:
    """A row for each case and variant."""
    on_gpu = any("wall_ms" in row for result in found for row in result["variants"].values())
    table = Table(title="distillation step")
    for column in ("audio", "variant", "p20 ms", "p50 ms", "p80 ms", *(("wall ms",) if on_gpu else ()), "x plain",
                   "peak MB"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("audio", "variant") else "right")
    for result in found:
        for name, row in result["variants"].items():
            ratio = relative(result, name, "plain")
            verdict = "failed" if row.get("failure") else "-" if result["correct"] else "wrong"
            table.add_row(result["label"], name, *(tables.median(row, "ms", p) for p in ("p20", "p50", "p80")),
                          *((tables.median(row, "wall_ms"),) if on_gpu else ()),
                          verdict if ratio is None else tables.number(ratio),
                          tables.megabytes(row["peak_bytes"]))  # fmt: skip
        table.add_section()
    console.print(table)
    for result in found:
        difference = f"largest relative difference of losses and priors {tables.number(result['error'], 2)}"
        checked = result.get("check_failure") or difference
        console.print(f"{result['label']}: {checked}", soft_wrap=True, markup=False)
    tables.print_failures(console, found)


def run(options: argparse.Namespace, console, device: accelerator.Device, saved: Run) -> None:
    """Measure all cases; what there is is saved after each."""
    with tables.make_progress(console) as progress:
        task = progress.add_task("", total=len(options.cases) + len(VARIANTS))
        for label in options.cases:
            progress.update(task, description=label)
            case = asdict(CASES[label]) | {"precision": options.precision, "small": options.small}
            if not saved.has(case) and saved.may_start(label):
                saved.results.append(measure_case(CASES[label], options, device, saved.lost()))
                saved.save()
            progress.advance(task)
        for name in () if device.is_gpu else VARIANTS:
            progress.update(task, description=f"memory of {name}")
            found = [result for result in saved.results if not result["variants"][name].get("failure")]
            cases = [result["case"] for result in found]
            peaks = memory.peaks("benchmarks.step_bench", name, cases, threads=options.threads) if found else []
            for result, peak in zip(found, peaks, strict=True):
                result["variants"][name]["peak_bytes"] = peak
            progress.advance(task)
    saved.content["bars"] = [] if options.small or device.is_gpu else bars(saved.results)
    saved.save()


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=accelerator.DEVICES, default="cpu", help=accelerator.DEVICE_HELP)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="default: 5 s x 4 to 30 s x 1")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each variant, at least (default: 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="on a GPU, time for each case (default: 4)")
    parser.add_argument("--small", action="store_true", help="tiny models: a test of the benchmark itself")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/step_<device>.json")
    results.add_options(parser)
    options = parser.parse_args(arguments)
    console = tables.make_console()
    device = accelerator.get(options.device)
    missing = device.missing()
    if missing:
        console.print(f"--device {options.device}: {missing}")
        return 2
    options.cases = options.cases or list(CASES)[:4]
    if options.device == "dry-run":
        options.cases, options.seconds, options.rounds, options.small = [TINY], 0.0, 1, True
    torch.set_num_threads(options.threads)
    output = options.output or results.FOLDER / f"step_{options.device}.json"
    saved = Run(output, machine.describe(device, options.threads), options.seconds_total, options.resume)
    try:
        run(options, console, device, saved)
    except accelerator.DeviceLostError as lost:
        saved.goes_on(lost)
    found = saved.results
    print_table(console, found)
    tables.print_kernels(console, found, most=24)
    if saved.content["bars"]:
        tables.print_bars(console, saved.content["bars"])
    tables.print_left_out(console, saved.content)
    console.print(f"written: {output}", soft_wrap=True)
    whole = found and all(result["correct"] and result["variants"]["ours"]["ms"] for result in found)
    return 0 if whole else 1


if __name__ == "__main__":
    raise SystemExit(main())
