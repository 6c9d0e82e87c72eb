"""Wrong calls of the API: a ValueError that names the argument, every time; never a crash, or a number in its place."""

import functools
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from pad_kernels import (
    PADLoss,
    align,
    alignment_matrix,
    available_backends,
    pad_loss,
    select_spans,
    significance,
    significance_from_attentions,
)

pytestmark = pytest.mark.slow

B, M, N, D = 2, 9, 4, 8
GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(shape, generator=GENERATOR)


SPEECH, TEXT, QUERY = normal(B, M, D), normal(B, N, D), normal(B, 3, M, D)
START = torch.tensor([[0, 2, 4], [1, 0, 5]], dtype=torch.int32)
MAPS = torch.rand(B, 3, M, M, generator=GENERATOR)


def nested(value, layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor(list(value), layout=layout)


def csr(value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return value.reshape(len(value), -1).to_sparse_csr()


NO_TENSORS = (
    None,
    3,
    0.5,
    "speech",
    b"speech",
    [[0.5]],
    (),
    {},
    object(),
    torch.Tensor,
    np.ones((B, M)),
    2j,
    True,
    lambda: 1,
)


def not_this_tensor(value, floating=True):
    """Everything that is no tensor like this one."""
    yield from NO_TENSORS[1:]
    yield value.numpy()
    yield value.tolist()
    yield from (value[0], value[None], value[..., None], value[:, :-1], value[..., :-1], value[:0])
    yield from (torch.cat((value, value)), torch.tensor(1.0), value.flatten())
    dtypes = [torch.complex64, torch.float8_e4m3fn] if value.is_floating_point() else [torch.complex64, torch.float32]
    for dtype in (*dtypes, *((torch.int64, torch.bool, torch.uint8, torch.int8) if floating else ())):
        yield value.to(dtype)
    yield value.to_sparse()
    yield csr(value)
    yield nested(value, torch.strided)
    yield nested(value, torch.jagged)
    if value.is_floating_point():
        yield value.to_mkldnn()
        yield torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)
    yield value.to("meta")


def unless_lengths_are_free(values, allowed):
    """Without those that are right: another length is."""
    for value in values:
        if not (
            isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_nested and allowed(value)
        ):
            yield value


def embeddings(value):
    free = lambda x: x.dim() == 3 and x.shape[::2] == (B, D) and x.dtype == torch.float32 and x.device.type == "cpu"  # noqa: E731
    yield None
    yield from unless_lengths_are_free(not_this_tensor(value), free)
    yield from (value.double(), value.half(), value.bfloat16(), value[..., :5], value[..., :0])


def masks(length):
    mask = torch.ones(B, length, dtype=torch.bool)
    yield from not_this_tensor(mask, floating=False)
    yield from (mask.float(), mask.double(), mask.long() * 2, -mask.long(), mask.to(torch.int8) - 2, torch.full((B,
                length), 255, dtype=torch.uint8),
                torch.tensor([length, 1]), mask.T, mask.sum(1))  # fmt: skip


def priors(length, optional=True):
    prior = torch.rand(B, length, generator=GENERATOR) + 0.1
    yield from not_this_tensor(prior)
    for bad in (-1.0, -1e-30, torch.nan, torch.inf, -torch.inf, 3e38):
        yield prior.index_fill(1, torch.tensor(1), bad)
    yield torch.full((B, length), 1e200, dtype=torch.float64)
    yield torch.full((B, length), 1e-60, dtype=torch.float64)


def spans_given():
    end = START + 3
    yield from (START, (START,), (START, end, end), {}, "spans", 5, [], ([[0]], [[1]]), (None, None), (START, None))
    yield from (
        (START, end[:, :2]),
        (START[:1], end[:1]),
        (START[0], end[0]),
        (START.float(), end),
        (START, end.short()),
    )
    yield from ((START, end + 20), (START - 9, end), (end, START), (START, torch.full_like(end, 2**31 - 1)))
    yield from (
        (START.to("meta"), end),
        (START.to_sparse(), end),
        (START, nested(end, torch.strided)),
        (START.bool(), end),
    )
    yield from (
        (START.long() - 2**40, end.long()),
        (START.long(), end.long() + 2**40),
        (START[..., None], end[..., None]),
    )


NUMBERS = (
    None, "0.1", b"1", [0.1], (0.1,), {}, object(), 2j, True, False, float("nan"), float("inf"), -float("inf"),
    -0.1, 10**400,
    -(10**400), Fraction(10**400, 3), Decimal("NaN"), np.array([0.1]), np.array("x"), torch.tensor([0.1]),
    torch.tensor(-1.0),
    torch.tensor(torch.nan), torch.tensor(1), torch.tensor(True), torch.tensor(0.5, device="meta"),
    torch.tensor(1j), lambda: 1,
)  # fmt: skip
TEMPERATURES = (*NUMBERS, 1e-39, 5e-324, 1e-300, torch.tensor(torch.inf))
COUNTS = (
    "3", b"3", 2.0, 2.5, -1, True, 2j, [3], (3, 3), {}, object(), 2**63, 10**400, 2**21, float("nan"), np.array([1,
                                                                                                                2]),
    torch.tensor(3), torch.tensor([1]), torch.tensor([1, 2, 3]), torch.tensor([[1, 2]]), torch.tensor([1.0, 2.0]),
    torch.tensor([True, False]), torch.tensor([1, -1]), torch.tensor([1, 2**40]), torch.tensor([1, 2]).to_sparse(),
    torch.tensor([1, 2], device="meta"), torch.tensor([1j, 2]),
)  # fmt: skip
SCALES = ((), [], (0,), (1, -1), (float("nan"),), (float("inf"),), ("1",), (None,), (True,), 2, 0.5, "12", {1: 2},
          {1, 2},
          (10**400,), (1j,), ((1,),), torch.tensor([1.0]), np.array([1.0]), (torch.tensor(1.0),),
          object())  # fmt: skip
NAMES = ("", "Span", "span ", "spans", "none", "MEAN", "cuda", 3, None, b"span", ["span"], ("span",), {"span"},
         object(), True,
         torch.ones(2), "\0", "é", str)  # fmt: skip
LOSSES = {f"pad_loss {level}": functools.partial(pad_loss, level=level) for level in ("token", "span", "global")}
ALIGNMENTS = {"align": align, "alignment_matrix": alignment_matrix}


def module(speech, text, **arguments):
    """The loss as a module; what it is told at construction apart from the tensors."""
    at_call = {name: arguments.pop(name) for name in tuple(arguments) if name in
               ("speech_mask", "text_mask", "speech_prior", "text_prior", "spans")}  # fmt: skip
    return PADLoss(**arguments)(speech, text, **at_call)


def calls():
    """(function, arguments, name of the wrong one)."""
    every = LOSSES | ALIGNMENTS | {"PADLoss": module}
    both = {"speech": SPEECH, "text": TEXT}
    for label, function in every.items():
        for name in both:
            for wrong in embeddings(both[name]):
                yield label, function, both | {name: wrong}, name
        for name, length in (("speech_mask", M), ("text_mask", N)):
            for wrong in masks(length):
                yield label, function, both | {name: wrong}, name
        for wrong in priors(M):
            yield label, function, both | {"speech_prior": wrong}, "speech_prior"
        if label not in ALIGNMENTS:
            for wrong in priors(N):
                yield label, function, both | {"text_prior": wrong}, "text_prior"
        for wrong in TEMPERATURES:
            yield label, function, both | {"temperature": wrong}, "temperature"
        if label in ("align", "pad_loss span", "PADLoss"):
            for wrong in spans_given():
                yield label, function, both | {"spans": wrong}, "spans"
    for label in ("pad_loss span", "PADLoss"):
        for wrong in COUNTS:
            yield label, every[label], both | {"num_anchors": wrong}, "num_anchors"
        for wrong in SCALES:
            yield label, every[label], both | {"scales": wrong}, "scales"
    for label in ("pad_loss token", "pad_loss global"):
        yield label, every[label], both | {"spans": (START, START + 1)}, "spans"
    for name in ("level", "anchors", "reduction"):
        for wrong in NAMES:
            if not (name == "reduction" and wrong == "none"):
                yield "pad_loss", pad_loss, both | {name: wrong}, name
    for wrong in (name for name in NAMES if name not in ("", None)):
        for label in ("pad_loss span", *ALIGNMENTS):
            yield label, every[label], both | {"backend": wrong}, "backend"
        yield "significance", significance, {"query": QUERY, "key": QUERY, "backend": wrong}, "backend"
        yield "select_spans", select_spans, chosen(backend=wrong), "backend"
    for wrong in priors(M):
        if not is_a_prior(wrong):
            yield "select_spans", select_spans, chosen(speech_prior=wrong), "speech_prior"
    for wrong in masks(M):
        yield "select_spans", select_spans, chosen(speech_mask=wrong), "speech_mask"
    for wrong in COUNTS:
        if not is_large(wrong):
            yield "select_spans", select_spans, chosen(num_tokens=wrong), "num_tokens"
        yield "select_spans", select_spans, chosen(num_anchors=wrong), "num_anchors"
        yield "select_spans", select_spans, chosen(max_anchors=wrong), "max_anchors"
    for wrong in SCALES:
        yield "select_spans", select_spans, chosen(scales=wrong), "scales"
    for wrong in NAMES:
        yield "select_spans", select_spans, chosen(anchors=wrong), "anchors"
    for wrong in NUMBERS[1:]:
        yield "select_spans", select_spans, chosen(xi=wrong), "xi"
        if not (isinstance(wrong, float) and wrong == -0.1):
            yield "significance", significance, {"query": QUERY, "key": QUERY, "scale": wrong}, "scale"
    for name in ("query", "key"):
        for wrong in (None, *not_this_tensor(QUERY)):
            if not (name == "query" and isinstance(wrong, torch.Tensor) and wrong.dim() == 4):
                yield "significance", significance, {"query": QUERY, "key": QUERY} | {name: wrong}, name
    for wrong in masks(M):
        yield "significance", significance, {"query": QUERY, "key": QUERY, "mask": wrong}, "mask"
    lse = (QUERY @ QUERY.mT / D**0.5).logsumexp(3)
    for wrong in (*not_this_tensor(lse), lse.half(), lse * torch.nan, lse + torch.inf):
        yield "significance", significance, {"query": QUERY, "key": QUERY, "lse": wrong}, "lse"
    for wrong in (None, [], (), 3, "maps", {}, [None], [MAPS, 3], iter([MAPS]), MAPS[0, 0], MAPS[..., :4],
                  MAPS.long(), MAPS.numpy(),
                  [MAPS, MAPS[..., :4, :4]], [MAPS, MAPS[:1]], MAPS[:, :0], MAPS.to_sparse(),
                  MAPS.to(torch.complex64),
                  nested(MAPS, torch.strided), [[MAPS]], MAPS.tolist(), torch.Tensor, [MAPS,
                                                                                       MAPS.to("meta")]):  # fmt: skip
        yield "significance_from_attentions", significance_from_attentions, {"attentions": wrong}, "attentions"
    for wrong in masks(M):
        yield "significance_from_attentions", significance_from_attentions, {"attentions": MAPS, "mask": wrong}, "mask"
    for wrong in (None, 3.5, "gpu?", "", "cpu:x", object, object(), ["cpu"], torch.float32, 2j, "cuda:-1", "é"):
        yield "available_backends", available_backends, {"device": wrong}, "device"


def is_a_prior(value):
    """Of other sizes, for all that anybody knows; the values of a meta tensor nobody can read."""
    strided = isinstance(value, torch.Tensor) and not value.is_nested and value.layout == torch.strided
    if not strided or value.dim() != 2 or value.dtype not in (torch.float32, torch.float64):
        return False
    return (
        value.is_meta
        or not value.numel()
        or bool((value >= 0).all() and value.max() < torch.finfo(value.dtype).max / M)
    )


def is_large(value):
    """A number of tokens may be any int64."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63


def chosen(**arguments):
    return {"speech_prior": torch.full((B, M), 0.1), "speech_mask": None, "num_tokens": 3} | arguments


def outcome(function, arguments, name) -> str | None:
    """What is wrong with the answer to a wrong call; None: it was refused as it should be."""
    try:
        found = function(**arguments)
    except ValueError as error:
        message = str(error)
        parts = message.split(":")[0].replace(" and ", " ").split()
        if name not in parts and not any(part.startswith(name) for part in parts):
            # The two embeddings are compared: either may be blamed.
            if not (name in ("speech", "text") and parts[0] in ("speech", "text")):
                return f"a ValueError that does not name it: {message[:200]}"
        if len(message) > 500 or "\n" in message:
            return f"a message of {len(message)} characters: {message[:300]}"
        return None
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return f"taken: {str(found)[:80]}"


def test_each_is_refused_by_name():
    failures, number = [], 0
    for label, function, arguments, name in calls():
        number += 1
        found = outcome(function, arguments, name)
        if found:
            wrong = arguments[name]
            is_plain = isinstance(wrong, torch.Tensor) and not wrong.is_nested
            shown = f"{tuple(wrong.shape)} {wrong.dtype} {wrong.layout}" if is_plain else repr(wrong)[:60]
            failures.append(f"{label}({name}={shown}): {found}")
    print(f"{number} wrong calls")
    assert number >= 800
    assert not failures, f"{len(failures)} of {number}:\n" + "\n".join(failures[:40])


@pytest.mark.parametrize("function", [pad_loss, align, alignment_matrix, select_spans, significance, PADLoss])
def test_names_that_nobody_knows(function):
    with pytest.raises(TypeError, match="unexpected keyword"):
        function(speach=SPEECH)
    if function is not PADLoss:
        with pytest.raises(TypeError, match="missing"):
            function()


class Subclass(torch.Tensor):
    """A tensor like any other."""


@pytest.mark.parametrize(
    "kind", [lambda x: x.as_subclass(Subclass), torch.nn.Parameter, lambda x: x.requires_grad_(), lambda x: x.conj()]
)
@pytest.mark.parametrize("backend", available_backends())
def test_odd_tensors_that_are_right(kind, backend):
    plain = pad_loss(SPEECH, TEXT, level="token", backend=backend)
    found = pad_loss(kind(SPEECH.clone()), kind(TEXT.clone()), level="token", backend=backend)
    assert abs(found.item() - plain.item()) < 1e-6


@pytest.mark.parametrize("level", ["token", "span", "global"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
@pytest.mark.parametrize("backend", available_backends())
def test_values_that_no_sum_holds_show(level, value, backend):
    """Of a real position: the loss is no plausible number. A norm that overflows is a cosine of 0, as in PyTorch."""
    speech, text = SPEECH.clone(), TEXT.abs()  # whose product with a frame of such values overflows
    speech[:, 4] = value
    loss = pad_loss(speech, text, level=level, backend=backend)
    if value != 3e38:
        assert not loss.isfinite()
    elif level == "global":
        expected = pad_loss(speech.double(), text.double(), level=level, backend="reference")
        assert not loss.isfinite() or abs(loss / expected - 1) < 1e-5
    else:
        if level == "token":
            speech[:, 4] = 0
        assert abs(loss - pad_loss(speech, text, level=level, backend="reference")) < 1e-5
