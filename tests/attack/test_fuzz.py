"""Fuzz: seeded cases of every public op against float64, judged by the contract of precision.

PAD_ATTACK_CASES (20000) is their number in all, PAD_ATTACK_SEED (0) the first seed. A line that fails names its seed:
`cases.alignment(SEED)` is the case.
"""

import importlib.util
import os
import subprocess
import sys

import cases
import pytest
import torch
import truth
from judge import OF_SCALE, TRITON, Verdict
from oracle import spans_of

import pad_kernels
from pad_kernels import align, alignment_matrix, pad_loss, select_spans, significance, significance_from_attentions

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("PAD_ATTACK_CASES", 20_000))
FIRST = int(os.environ.get("PAD_ATTACK_SEED", 0))
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ("triton",) if INTERPRETED else tuple(x for x in pad_kernels.available_backends() if x != "triton")
SHARES = {"loss": 0.5, "align": 0.2, "spans": 0.1, "significance": 0.15, "maps": 0.05}
TRITON_SHARE = 0.015  # the interpreter takes some seconds a case


def seeds(op: str) -> range:
    return range(FIRST, FIRST + max(round(CASES * SHARES[op] / len(BACKENDS)), 1))


def steepness(temperature: float) -> float:
    return max(1.0, 1 / temperature) if temperature else 1.0


def of_scale(backend: str, dtype: torch.dtype) -> float:
    return TRITON.get(dtype, OF_SCALE[dtype]) if backend == "triton" else OF_SCALE[dtype]


def taken_units(case, backend: str) -> torch.Tensor:
    """The units of the alignment of a loss that is hard, or has the gradient of a hard one."""
    spans = case.spans
    if case.level == "span" and spans is None:
        tokens = case.text.shape[1] if case.text_mask is None else (case.text_mask != 0).sum(1)
        mask = case.speech_mask
        if mask is None and case.speech_prior is None:
            mask = torch.ones(case.speech.shape[:2], dtype=torch.bool)
        prior = None if case.speech_prior is None else case.speech_prior.float()
        # As many as the loss makes room for: products of other sizes round otherwise, and units may nearly tie.
        room = case.text.shape[1] if case.num_anchors is None else None
        spans = select_spans(prior, mask, tokens, num_anchors=case.num_anchors, scales=case.scales,
                             max_anchors=room, anchors=case.anchors, backend=backend)  # fmt: skip
    return align(case.speech, case.text, spans, case.speech_mask, case.text_mask, case.speech_prior,
                 case.temperature, backend).unit  # fmt: skip


def check_loss(verdict: Verdict, case, backend: str, what: str) -> None:
    leaves = [x.detach().requires_grad_() for x in case[:2]]
    found = pad_loss(
        *leaves, *case[2:6], level=case.level, temperature=case.temperature, spans=case.spans,
        num_anchors=case.num_anchors, scales=case.scales, anchors=case.anchors, reduction=case.reduction,
        backend=backend,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(len(what))
    upstream = torch.randn(found.shape, generator=generator, dtype=torch.float64).float()
    grads = torch.autograd.grad(found, leaves, upstream.to(found.dtype))
    units = taken_units(case, backend) if truth.is_hard(case) and case.level != "global" else None
    value, *gradients, certain = truth.loss(case, upstream, units)
    dtype = case.speech.dtype
    verdict.expect(bool(found.isfinite().all()), f"{what}: {found}")
    verdict.close(found.detach(), value.value, value.scale, torch.float64 if dtype == torch.float64 else torch.float32,
                  f"{what} loss", of_scale(backend, dtype))  # fmt: skip
    for name, grad, correct, leaf in zip(("speech", "text"), grads, gradients, leaves):
        verdict.expect(grad.shape == leaf.shape and grad.dtype == dtype, f"{what} {name}: {grad.dtype} {grad.shape}")
        both = (torch.where(certain[:, None], x, 0) for x in (grad, correct.value))
        verdict.close(*both, correct.scale, dtype, f"{what} gradient of {name}", of_scale(backend, dtype))
        verdict.expect(bool((grad[correct.value.abs().sum(2) == 0] == 0).all() or correct.scale > 0),
                       f"{what} {name}: a gradient where nothing takes part")  # fmt: skip


def check_alignment(verdict: Verdict, case, backend: str, what: str) -> None:
    if case.level == "global":
        case = case._replace(level="token")
    arguments = (*case[:2], case.spans, *case[2:5], case.temperature, backend)
    found, matrix = align(*arguments), alignment_matrix(*arguments)
    dtype = case.speech.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bar, steep = of_scale(backend, dtype), steepness(case.temperature)
    for b in range(len(case.speech)):
        correct = truth.align(case, b)
        taking_part = torch.zeros(case.text.shape[1], dtype=torch.bool)
        if correct is not None:
            each, similarity, weights, normalizer, scores = correct
            taking_part[each.tokens] = True
            verdict.close(found.similarity[b, each.tokens], similarity, len(similarity) ** 0.5, wide, what, bar * steep)
            verdict.close(found.log_normalizer[b, each.tokens], normalizer, steep * len(similarity) ** 0.5, wide,
                          f"{what} log_normalizer", bar)  # fmt: skip
            units = found.unit[b, each.tokens]
            places = torch.searchsorted(each.units, units).clamp(max=len(each.units) - 1)
            verdict.expect(bool((each.units[places] == units).all()), f"{what}: units that take no part, {units}")
            short = scores.amax(1) - scores.gather(1, places[:, None])[:, 0]
            allowed = max(OF_SCALE[wide], bar) * 4 * (1 / case.temperature if case.temperature else 1.0)
            verdict.expect(
                bool((short <= allowed).all()), f"{what}: a unit that is {short.max():.3g} short of the best"
            )
            of_tokens = matrix[b, each.tokens]
            if case.temperature > 0:
                verdict.close(
                    of_tokens[:, each.units], weights, len(weights) ** 0.5, wide, f"{what} matrix", bar * steep
                )
            else:
                verdict.expect(bool((of_tokens.argmax(1) == units).all()), f"{what}: the matrix has other units")
            sums = of_tokens.double().sum(1)
            verdict.expect(bool(((sums - 1).abs() < 1e-5).all()), f"{what}: rows of the matrix sum to {sums}")
        nothing = ~taking_part
        verdict.expect(
            bool((found.unit[b, nothing] == -1).all() and (found.similarity[b, nothing] == 0).all()
                 and (matrix[b, nothing] == 0).all() and (found.log_normalizer[b, nothing] == 0).all()),
            f"{what}: tokens that take no part",
        )  # fmt: skip


def check_spans(verdict: Verdict, case, backend: str, what: str) -> None:
    start, end = select_spans(
        case.prior, case.mask, case.num_tokens, num_anchors=case.num_anchors, scales=case.scales, anchors=case.anchors,
        xi=case.xi, max_anchors=case.max_anchors, backend=backend,
    )  # fmt: skip
    batch, frames = (case.mask if case.prior is None else case.prior).shape
    for b in range(batch):
        tokens, wanted, xi = (x[b].item() if isinstance(x, torch.Tensor) else x
                              for x in (case.num_tokens, case.num_anchors, case.xi))  # fmt: skip
        wanted = tokens if wanted is None else wanted
        wanted = wanted if case.max_anchors is None else min(wanted, case.max_anchors)
        mask = [True] * frames if case.mask is None else (case.mask[b] != 0).tolist()
        prior = None if case.prior is None else case.prior[b].double().nan_to_num(0).tolist()
        expected = spans_of(prior, mask, tokens, wanted, case.scales, xi, case.anchors)
        found = list(zip(start[b].tolist(), end[b].tolist()))
        verdict.expect(found[: len(expected)] == expected and not any(s < e for s, e in found[len(expected) :]),
                       f"{what}: {found}, not {expected}")  # fmt: skip


def check_significance(verdict: Verdict, case, backend: str, what: str) -> None:
    scale = case.query.shape[3] ** -0.5 if case.scale is None else case.scale
    correct, normalizer, largest = truth.significance(case.query, case.key, case.mask, scale)
    lse = None if case.lse_dtype is None else normalizer.to(case.lse_dtype)
    found = significance(case.query, case.key, case.mask, scale=case.scale, lse=lse, backend=backend)
    dtype = torch.float64 if case.query.dtype == torch.float64 and case.lse_dtype != torch.float32 else torch.float32
    # The rounding of the scores is a factor of the attention.
    bar = (OF_SCALE[dtype] if backend != "triton" else 2 * OF_SCALE[dtype]) * (10 + largest)
    verdict.expect(bool(found.isfinite().all() and (found >= 0).all()), f"{what}: {found}")
    if bar < 0.1:
        verdict.close(found, correct, correct.norm(), dtype, f"{what} scores to {largest:.3g}", bar)
    sums = found.double().sum(1)
    verdict.expect(bool(((sums - correct.sum(1)).abs() < 1e-5).all()), f"{what}: sums {sums}")
    if case.mask is not None:
        verdict.expect(bool((found[case.mask == 0] == 0).all()), f"{what}: masked positions")


def check_maps(verdict: Verdict, case, what: str) -> None:
    batch, heads, length, _ = case.query.shape
    maps = torch.rand(3, batch, heads, length, length, generator=torch.Generator().manual_seed(len(what)))
    mask = torch.ones(batch, length, dtype=torch.bool) if case.mask is None else case.mask != 0
    both = mask[:, None, :, None] & mask[:, None, None]
    received = torch.where(both, maps.double(), 0).mean(2).sum(2)
    expected = (received / received.sum(2, keepdim=True).clamp(min=1e-300)).mean(0)
    found = significance_from_attentions(list(maps.masked_fill(~both, torch.nan)), case.mask)
    verdict.close(found, expected, 0, torch.float32, what)


def run(op: str, backend: str, numbers: range) -> Verdict:
    """The cases of an op with these seeds."""
    verdict = Verdict()
    for seed in numbers:
        what = f"seed {seed}"
        if op == "loss":
            case = cases.alignment(seed, INTERPRETED)
            check_loss(verdict, case, backend, f"{what} {case.level} {case.temperature} {str(case.speech.dtype)[6:]}")
        elif op == "align":
            case = cases.alignment(seed, INTERPRETED, for_loss=False)
            check_alignment(verdict, case, backend, f"{what} {case.temperature} {str(case.speech.dtype)[6:]}")
        elif op == "spans":
            check_spans(verdict, cases.select_spans(seed, INTERPRETED), backend, what)
        elif op == "significance":
            check_significance(verdict, cases.significance(seed, INTERPRETED), backend, what)
        else:
            check_maps(verdict, cases.significance(seed, INTERPRETED), what)
        verdict.cases += 1
    return verdict


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", SHARES)
def test_against_float64(op, backend):
    verdict = run(op, backend, seeds(op))
    print(f"{op}, {backend}: {verdict.cases} cases")
    verdict.check()


@pytest.mark.skipif(INTERPRETED, reason="runs there already")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_under_the_interpreter():
    """A smaller share, in a process of its own: the interpreter has to be chosen before triton is imported."""
    few = str(max(round(CASES * TRITON_SHARE), 20))
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-o", "addopts=", "-p", "no:cacheprovider", __file__]
    child = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1", "PAD_ATTACK_CASES": few},
                           capture_output=True, text=True)  # fmt: skip
    print("\n".join(line for line in child.stdout.splitlines() if "cases" in line))
    assert child.returncode == 0, child.stdout[-6000:] + child.stderr[-2000:]
