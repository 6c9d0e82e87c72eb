"""One whole distillation step: student forward and backward, teacher, priors, loss, optimizer.

Full-size wav2vec2-base and bert-base with random weights, in three variants: `plain`, the student with SDPA and the
mean-pooled L1 loss, without priors: the floor; `eager`, PAD as one would write it, `output_attentions=True` and a
loss in PyTorch; `ours`, priors recorded on the way and pad_loss. Dropout is that of the two configs. Before timing,
the losses and priors of `eager` and `ours` are checked against each other without dropout.
"""

import argparse
import sys
import time
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

import pad.significance
import pad_kernels
from benchmarks import machine, memory, providers, results, tables, timing
from benchmarks.cases import Inputs
from pad.models import FrameLayout
from pad.significance import record_significance

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


CASES = {case.label: case for case in (Case(5, 4), Case(10, 4), Case(20, 2), Case(30, 1))}


class Step:
    """Both models, a batch, and the three variants of a step on them."""

    def __init__(self, case: Case, device: str, precision: str = "float32", small: bool = False):
        torch.manual_seed(0)
        few = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        sizes = few if small else {}
        student = Wav2Vec2Config(**sizes, apply_spec_augment=False, layerdrop=0.0)
        self.student = Wav2Vec2Model(student).to(device).train()
        self.teacher = BertModel(BertConfig(**sizes)).to(device).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-5)
        samples, tokens = case.seconds * RATE, max(4, round(case.seconds * TOKENS_PER_SECOND))
        shares = torch.linspace(1.0, 0.6, case.batch)
        lengths = (shares * samples).long()
        self.samples = (torch.randn(case.batch, samples) * (torch.arange(samples) < lengths[:, None])).to(device)
        layout = FrameLayout.of(student)
        frames = layout.frames(torch.tensor(samples))
        self.frame_mask = (torch.arange(int(frames)) < layout.frames(lengths)[:, None]).to(device)
        self.ids = torch.randint(1000, 20000, (case.batch, tokens), device=device)
        self.attention_mask = (torch.arange(tokens) < (shares * tokens).ceil()[:, None]).to(device)
        self.text_mask = self.attention_mask.clone()
        self.text_mask[:, 0] = False  # [CLS]
        self.autocast = partial(torch.autocast, device, torch.bfloat16, enabled=precision == "bfloat16")
        self.in_loss = 0.0

    def _attend_by(self, implementation: str) -> None:
        self.student.config._attn_implementation = self.teacher.config._attn_implementation = implementation

    def _read(self, **options):
        with torch.no_grad():
            return self.teacher(self.ids, attention_mask=self.attention_mask.long(), **options)

    def plain(self) -> Tensor:
        """Mean-pooled L1, no priors."""
        self._attend_by("sdpa")
        text, speech = self._read().last_hidden_state, self.student(self.samples).last_hidden_state
        means = [(x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                 for x, mask in ((speech.float(), self.frame_mask), (text.float(), self.text_mask))]  # fmt: skip
        return (means[0] - means[1]).abs().sum(1).mean()

    def eager(self) -> Tensor:
        """Attention maps of all layers, priors and the hard loss of spans in PyTorch."""
        self._attend_by("eager")
        text = self._read(output_attentions=True)
        speech = self.student(self.samples, output_attentions=True)
        speech_prior = _from_maps(speech.attentions, self.frame_mask)
        text_prior = _from_maps(text.attentions, self.text_mask)
        counts = self.text_mask.sum(1)
        spans = pad_kernels.select_spans(speech_prior, self.frame_mask, counts, backend="reference")
        outputs = speech.last_hidden_state.float(), text.last_hidden_state.float()
        priors_and_spans = speech_prior, text_prior, spans.start, spans.end
        return providers.eager(Inputs(*outputs, self.frame_mask, self.text_mask, *priors_and_spans), "span", 0.0)

    def ours(self) -> Tensor:
        """Priors recorded, pad_loss."""
        self._attend_by("sdpa")
        with record_significance(self.teacher, self.text_mask) as of_text:
            text = self._read().last_hidden_state
        with record_significance(self.student, self.frame_mask) as of_speech:
            speech = self.student(self.samples).last_hidden_state
        return pad_kernels.pad_loss(
            speech, text.to(speech.dtype), self.frame_mask, self.text_mask, of_speech.prior(), of_text.prior(),
            level="span", temperature=0.0,
        )  # fmt: skip

    def run(self, variant: str) -> None:
        """A step of the optimizer."""
        with self.autocast():
            loss = getattr(self, variant)()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def error(self) -> float:
        """Relative difference of the losses of `eager` and `ours`, dropout off."""
        self.student.eval()
        with torch.no_grad():
            wanted, found = self.eager(), self.ours()
        self.student.train()
        return float((found - wanted).abs() / wanted.abs())

    def parts(self) -> dict[str, float]:
        """Seconds of a step of ours spent in the significance priors and in pad_loss, forward and backward."""
        seconds = {"significance": 0.0, "loss": 0.0}
        inner = pad.significance.significance

        def timed(*arguments, **options):
            begin = time.perf_counter()
            result = inner(*arguments, **options)
            seconds["significance"] += time.perf_counter() - begin
            return result

        pad.significance.significance = timed
        try:
            with torch.no_grad(), record_significance(self.student, self.frame_mask) as record:
                speech = self.student(self.samples).last_hidden_state
            with record_significance(self.teacher, self.text_mask) as of_text:
                text = self._read().last_hidden_state
        finally:
            pad.significance.significance = inner
        speech, prior, text_prior = speech.requires_grad_(), record.prior(), of_text.prior()
        begin = time.perf_counter()
        loss = pad_kernels.pad_loss(speech, text, self.frame_mask, self.text_mask, prior, text_prior, temperature=0.0)
        loss.backward()
        seconds["loss"] = time.perf_counter() - begin
        return seconds


def _from_maps(attentions, mask: Tensor) -> Tensor:
    """The prior by its definition, as one writes it."""
    found = []
    for layer in attentions:
        received = (layer.float().mean(1) * mask[:, :, None]).sum(1) * mask
        found.append(received / received.sum(1, keepdim=True))
    return torch.stack(found).mean(0)


VARIANTS = ("plain", "eager", "ours")


def workload(provider: str, case: dict, device: str) -> Callable[[], object]:
    """The call to measure, from the plain data a child process is given."""
    step = Step(Case(case["seconds"], case["batch"]), device, case["precision"], case["small"])
    return lambda: step.run(provider)


def measure(case: Case, options: argparse.Namespace) -> dict:
    """Check, time and take apart one case."""
    step = Step(case, options.device, options.precision, options.small)
    error = step.error()
    calls = {name: partial(step.run, name) for name in VARIANTS}
    milliseconds = timing.round_robin(calls, seconds=1e-6, min_rounds=options.rounds, device=options.device)
    result = {
        "case": asdict(case) | {"precision": options.precision, "small": options.small},
        "label": case.label,
        "frames": step.frame_mask.shape[1],
        "tokens": step.text_mask.shape[1],
        "error": error,
        "correct": error <= TOLERANCE,
        "variants": {name: {"ms": milliseconds[name], "peak_bytes": None} for name in VARIANTS},
    }
    if options.device == "cpu":
        result["parts_ms"] = {name: 1e3 * seconds for name, seconds in step.parts().items()}
    return result


def relative(result: dict, variant: str, base: str) -> float | None:
    """Time of a variant over that of another; None where the result is wrong."""
    rows = result["variants"]
    return rows[variant]["ms"]["p50"] / rows[base]["ms"]["p50"] if result["correct"] else None


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
    table = Table(title="distillation step")
    for column in ("audio", "variant", "p20 ms", "p50 ms", "p80 ms", "x plain", "peak MB"):
        table.add_column(column, justify="left" if column in ("audio", "variant") else "right")
    for result in found:
        for name, row in result["variants"].items():
            ratio = relative(result, name, "plain")
            table.add_row(result["label"], name, *(tables.number(row["ms"][p]) for p in ("p20", "p50", "p80")),
                          "wrong" if ratio is None else tables.number(ratio),
                          tables.megabytes(row["peak_bytes"]))  # fmt: skip
        table.add_section()
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each variant (default: 5)")
    parser.add_argument("--small", action="store_true", help="tiny models: a test of the benchmark itself")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/step_<device>.json")
    options = parser.parse_args(arguments)
    console = tables.make_console()
    if options.device == "cuda" and not torch.cuda.is_available():
        console.print("--device cuda: torch sees no CUDA device here")
        return 2
    torch.set_num_threads(options.threads)
    content = {"machine": machine.describe(options.device, options.threads), "results": []}
    found = content["results"]
    with tables.make_progress(console) as progress:
        task = progress.add_task("", total=len(options.cases) + len(VARIANTS))
        for label in options.cases:
            progress.update(task, description=label)
            found.append(measure(CASES[label], options))
            progress.advance(task)
        for name in VARIANTS:
            progress.update(task, description=f"memory of {name}")
            cases = [result["case"] for result in found]
            peaks = memory.peaks("benchmarks.step_bench", name, cases, device=options.device, threads=options.threads)
            for result, peak in zip(found, peaks, strict=True):
                result["variants"][name]["peak_bytes"] = peak
            progress.advance(task)
    content["bars"] = bars(found) if not options.small and options.device == "cpu" else []
    print_table(console, found)
    if content["bars"]:
        tables.print_bars(console, content["bars"])
    output = options.output or results.FOLDER / f"step_{options.device}.json"
    results.write_json(output, content)
    console.print(f"written: {output}", soft_wrap=True)
    return 0 if all(result["correct"] for result in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
