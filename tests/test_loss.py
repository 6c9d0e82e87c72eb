"""pad_loss and PADLoss: what masks, priors, options and empty utterances mean."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inputs import KINDS, make_mask, relative_error

from pad_kernels import PADLoss, Spans, pad_loss, select_spans

LEVELS = ["global", "token", "span"]
BAR = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def make(batch=3, frames=40, tokens=9, width=24, kind="ragged", dtype=torch.float32, seed=0, priors=True):
    """The six arguments; NaN at masked positions of the embeddings and the priors."""
    generator = torch.Generator().manual_seed(seed)
    tensors, masks, weights = [], [], []
    for length in (frames, tokens):
        mask = make_mask(kind, batch, length, generator)
        values = torch.randn(batch, length, width, generator=generator, dtype=torch.float64).to(dtype)
        tensors.append(values.masked_fill(~mask[..., None], torch.nan))
        prior = torch.rand(batch, length, generator=generator).masked_fill(~mask, torch.nan)
        weights.append(prior if priors else None)
        masks.append(mask)
    return *tensors, *masks, *weights


def run(arguments, **options):
    """Loss, and gradients of speech and text for a loss scaled by 3."""
    speech, text = (x.detach().requires_grad_() for x in arguments[:2])
    loss = pad_loss(speech, text, *arguments[2:], **options)
    return loss, *torch.autograd.grad(3 * loss.sum(), (speech, text))


def double(arguments):
    return [x if x is None or not x.is_floating_point() else x.double() for x in arguments]


def check(arguments, backend, **options):
    bar = BAR[arguments[0].dtype]
    found = run(arguments, backend=backend, **options)
    expected = run(double(arguments), backend="reference", **options)
    assert found[0].dtype == (torch.float64 if arguments[0].dtype == torch.float64 else torch.float32)
    for name, value, correct in zip(("loss", "speech", "text"), found, expected):
        assert value.isfinite().all(), name
        assert relative_error(value, correct) <= bar, name


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("priors", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", BAR, ids=str)
def test_value_and_gradients(backend, dtype, kind, priors, level, temperature):
    check(make(kind=kind, dtype=dtype, priors=priors), backend, level=level, temperature=temperature)


@settings(max_examples=100, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    st.integers(1, 4), st.integers(1, 90), st.integers(1, 40), st.integers(8, 60), st.sampled_from(KINDS),
    st.booleans(), st.sampled_from(LEVELS), st.sampled_from([0.0, 0.1]),
    st.sampled_from(["topk", "peaks", "stride"]), st.sampled_from(["mean", "sum", "none"]),
    st.integers(0, 1000),
)  # fmt: skip
def test_any_shape(backend, batch, frames, tokens, width, kind, priors, level, temperature, anchors, reduction, seed):
    arguments = make(batch, frames, tokens, width, kind, priors=priors, seed=seed)
    check(arguments, backend, level=level, temperature=temperature, anchors=anchors, reduction=reduction)


@pytest.mark.parametrize("level", LEVELS)
def test_batch_mean_is_over_the_utterances_that_count(backend, level):
    speech, text, speech_mask, text_mask, speech_prior, text_prior = make(5, kind="full")
    speech_mask[1] = False
    text_mask[2] = False
    speech_prior[3] = 0
    text_prior[4] = 0
    arguments = (speech, text, speech_mask, text_mask, speech_prior, text_prior)
    each = pad_loss(*arguments, level=level, reduction="none", backend=backend)
    assert each[0] > 0 and (each[1:] == 0).all()
    mean, grad_speech, grad_text = run(arguments, level=level, backend=backend)
    assert torch.allclose(mean, each[0])
    assert (grad_speech[1:] == 0).all() and (grad_text[1:] == 0).all() and grad_speech[0].any()
    assert torch.allclose(pad_loss(*arguments, level=level, reduction="sum", backend=backend), each[0])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(3, 8, 4), (0, 8, 4), (2, 0, 4), (2, 8, 0)])
def test_a_batch_without_anything_is_zero(backend, level, shape):
    loss, grad_speech, grad_text = run(make(*shape, kind="all_empty"), level=level, backend=backend)
    assert loss == 0 and not grad_speech.any() and not grad_text.any()


@pytest.mark.parametrize("level", LEVELS)
def test_prior_zero_is_as_good_as_masked(backend, level):
    speech, text, _, _, speech_prior, text_prior = make(kind="full")
    speech_real, text_real = (make_mask("ragged", 3, n, torch.Generator().manual_seed(1)) for n in (40, 9))
    speech_prior, text_prior = speech_prior * speech_real, text_prior * text_real
    spans = select_spans(speech_prior, speech_real, text_real.sum(1)) if level == "span" else None
    options = dict(level=level, spans=spans, backend=backend)
    masked = run((speech, text, speech_real, text_real, speech_prior, text_prior), **options)
    speech = speech.masked_fill(~speech_real[..., None], torch.nan)
    text = text.masked_fill(~text_real[..., None], torch.nan)
    weighed = run((speech, text, None, None, speech_prior, text_prior), **options)
    for one, other in zip(masked, weighed):
        assert torch.equal(one, other)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_integer_masks(backend, level, dtype):
    arguments = make()
    integers = (*arguments[:2], *(mask.to(dtype) for mask in arguments[2:4]), *arguments[4:])
    options = dict(level=level, backend=backend)
    assert torch.equal(pad_loss(*arguments, **options), pad_loss(*integers, **options))


@pytest.mark.parametrize("level", LEVELS)
def test_scale_of_the_priors_does_not_matter(backend, level):
    arguments = make()
    scaled = (*arguments[:4], arguments[4] * 1000, arguments[5] * 1e-20)
    options = dict(level=level, backend=backend)
    assert torch.allclose(pad_loss(*arguments, **options), pad_loss(*scaled, **options), rtol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_priors_get_no_gradient(backend, level):
    arguments = make(kind="full")
    priors = [prior.requires_grad_() for prior in arguments[4:]]
    speech = arguments[0].requires_grad_()
    pad_loss(*arguments, level=level, backend=backend).backward()
    assert speech.grad is not None and all(prior.grad is None for prior in priors)


@pytest.mark.parametrize("level", LEVELS)
def test_only_the_gradient_asked_for(backend, level):
    speech, text, *rest = make()
    pad_loss(speech.requires_grad_(), text, *rest, level=level, backend=backend).backward()
    assert speech.grad is not None and text.grad is None
    assert not pad_loss(speech.detach(), text, *rest, level=level, backend=backend).requires_grad


def test_spans_of_ones_own(backend):
    arguments = make()
    selected = select_spans(*arguments[4:1:-2], arguments[3].sum(1), max_anchors=9, backend=backend)
    expected = pad_loss(*arguments, backend=backend)
    for spans in (selected, tuple(selected), Spans(*(bound.long() for bound in selected))):
        assert torch.equal(pad_loss(*arguments, spans=spans, backend=backend), expected)


def test_spans_of_single_frames_are_the_token_level(backend):
    arguments = make()
    start = torch.arange(40, dtype=torch.int32).expand(3, 40)
    for temperature in (0.0, 0.1):
        options = dict(temperature=temperature, backend=backend)
        token = pad_loss(*arguments, level="token", **options)
        span = pad_loss(*arguments, level="span", spans=(start, start + 1), **options)
        assert torch.allclose(token, span, rtol=1e-5)


@pytest.mark.parametrize("wanted", [4, torch.tensor([3, 4, 2])])
def test_number_of_anchors(backend, wanted):
    arguments = make()
    spans = select_spans(arguments[4], arguments[2], arguments[3].sum(1), num_anchors=wanted, backend=backend)
    found = pad_loss(*arguments, num_anchors=wanted, backend=backend)
    assert torch.equal(found, pad_loss(*arguments, spans=spans, backend=backend))


def test_identical_embeddings_have_no_loss(backend):
    text = torch.randn(2, 7, 16)
    speech = text.repeat_interleave(3, 1)
    assert pad_loss(speech, text, level="token", temperature=0.0, backend=backend).abs() <= 1e-6
    assert pad_loss(speech, text, level="global", backend=backend) <= 1e-4


def test_module(backend):
    arguments = make()
    module = PADLoss("token", 0.05, reduction="sum", backend=backend)
    options = dict(level="token", temperature=0.05, reduction="sum", backend=backend)
    assert torch.equal(module(*arguments), pad_loss(*arguments, **options))
    spans = select_spans(arguments[4], arguments[2], 3, backend=backend)
    module = PADLoss(backend=backend)
    assert torch.equal(module(*arguments, spans=spans), pad_loss(*arguments, spans=spans, backend=backend))
    assert "level='span'" in repr(module) and "anchors='topk'" in repr(module)
    assert not list(module.parameters()) and not module.state_dict()


@pytest.mark.parametrize("with_prior", [False, True])
def test_masked_frames_in_a_span_do_not_matter(backend, with_prior):
    """Spans that reach into the padding, or over a hole, are spans of their real frames."""
    speech, text = make(1, 6, 3, 8, kind="full")[:2]
    prior = torch.tensor([[0.1, 0.3, 0.0, 0.2, 0.3, 0.1]]) if with_prior else None
    spans = torch.tensor([[0, 2, 4]]), torch.tensor([[3, 6, 6]])
    expected = pad_loss(speech, text, speech_prior=prior, spans=spans, backend=backend)
    place = torch.tensor([0, 1, 3, 4, 7, 8])  # holes at 2, 5, 6, padding from 9 on
    spread = torch.full((1, 12, 8), torch.nan).index_copy(1, place, speech)
    mask = torch.zeros(1, 12, dtype=torch.bool).index_fill(1, place, True)
    spread_prior = None if prior is None else torch.full((1, 12), torch.nan).index_copy(1, place, prior)
    wider = torch.tensor([[0, 3, 5]]), torch.tensor([[4, 12, 11]])
    found = pad_loss(spread, text, mask, speech_prior=spread_prior, spans=wider, backend=backend)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_frames_that_no_span_covers_take_no_part(backend, temperature):
    speech, text = make(2, 12, 3, 8, kind="full")[:2]
    spans = torch.tensor([[0, 3, 8]] * 2), torch.tensor([[3, 5, 12]] * 2)  # not 5 to 7
    plain, broken = speech.clone(), speech.clone()
    broken[0, 6], broken[1, 5] = torch.nan, torch.inf
    found, expected = (x.requires_grad_() for x in (broken, plain))
    losses = [pad_loss(x, text, spans=spans, temperature=temperature, backend=backend) for x in (found, expected)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss, x in zip(losses, (found, expected))))


@pytest.mark.parametrize("level", ["token", "span"])
@pytest.mark.parametrize("temperature", [1e-38, 1e-30, 1e-15, 1e-9, 1e-6, 9e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_very_low_temperature_is_nearly_hard(backend, level, temperature, dtype):
    speech, text = (x.to(dtype).requires_grad_() for x in make(2, 30, 7, 64, kind="full")[:2])
    found = pad_loss(speech, text, level=level, temperature=temperature, backend=backend)
    expected = pad_loss(speech, text, level=level, temperature=0, backend=backend)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    gradients = (torch.autograd.grad(loss, (speech, text)) for loss in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
