"""Whole losses of the Triton backend under the interpreter; test_triton.py runs this."""

import pytest
import torch
from inputs import KINDS, make_inputs, misaligned, relative_error, strided
from test_alignment import BAR
from triton.runtime.interpreter import InterpreterBuilder
from triton_interpreter import TEMPERATURES, turn

from pad_kernels import available_backends, pad_loss
from pad_kernels.backends import FASTEST_FIRST
from pad_kernels.inputs import ANCHORS, LEVELS, REDUCTIONS, AlignmentInputs, Needed

pytest_plugins = ("triton_interpreter",)
LOSSES = [("token", 0.0), ("token", 0.1), ("span", 0.0), ("span", 0.1), ("global", 0.0)]


def loss_and_gradients(level, temperature, reduction, arguments, name, upstream=1.0, **options):
    speech, text = (x.detach().requires_grad_() for x in arguments[:2])
    loss = pad_loss(speech, text, *arguments[2:], level=level, temperature=temperature, reduction=reduction,
                    backend=name, **options)  # fmt: skip
    grad = upstream * torch.arange(1.0, 1 + loss.numel()).view_as(loss)
    return loss.detach(), *torch.autograd.grad(loss, (speech, text), grad)


def loss_arguments(kind, dtype, priors, seed=0, width=24):
    inputs = make_inputs(3, 45, 9, width, kind=kind, dtype=dtype, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    speech_prior, text_prior = (torch.rand(3, length, generator=generator) for length in (45, 9))
    if kind == "zero_priors":
        speech_prior[:, ::3] = 0
    masks = inputs.frame_weights > 0, inputs.token_mask
    return inputs.speech, inputs.text, *masks, *((speech_prior, text_prior) if priors else (None, None))


def check_loss(place, level, temperature, kind, reduction):
    arguments = loss_arguments(kind, turn(place), priors=place % 2 == 0)
    wide = [x.double() if x is not None and x.is_floating_point() else x for x in arguments]
    found = loss_and_gradients(level, temperature, reduction, arguments, "triton")
    expected = loss_and_gradients(level, temperature, reduction, wide, "reference")
    for value, correct in zip(found, expected):
        assert value.isfinite().all() and value.shape == correct.shape
        assert relative_error(value, correct) <= BAR[arguments[0].dtype]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level, temperature", LOSSES)
def test_losses(level, temperature, kind):
    """Weights, spans, alignment and reduction in kernels, against the reference in float64."""
    place = KINDS.index(kind) + LOSSES.index((level, temperature))
    check_loss(place, level, temperature, kind, REDUCTIONS[place // 2 % len(REDUCTIONS)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level, temperature", LOSSES)
def test_losses_of_every_reduction_and_dtype(level, temperature, kind):
    for place in range(6):
        for reduction in REDUCTIONS:
            check_loss(place, level, temperature, kind, reduction)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1.0, 3e38])
@pytest.mark.parametrize("anchors", [None, *ANCHORS])
def test_priors_of_the_padding_do_not_count(anchors, value):
    """They are read, so that nothing waits for the mask."""
    arguments = loss_arguments("ragged", torch.float32, True)
    options = {} if anchors is None else {"anchors": anchors}
    level = "token" if anchors is None else "span"
    padded = [prior.masked_fill(~mask, value) for mask, prior in zip(arguments[2:4], arguments[4:])]
    expected = loss_and_gradients(level, 0.1, "mean", arguments, "triton", **options)
    found = loss_and_gradients(level, 0.1, "mean", (*arguments[:4], *padded), "triton", **options)
    for one, other in zip(found, expected):
        assert torch.equal(one, other) and one.isfinite().all()


@pytest.mark.parametrize("options", [
    {"anchors": "peaks"}, {"anchors": "stride", "num_anchors": 5}, {"num_anchors": 12, "scales": (1.0,)},
    {"num_anchors": torch.tensor([2, 0, 7])}, {"num_anchors": 0},
], ids=str)  # fmt: skip
def test_losses_with_other_spans(options):
    arguments = loss_arguments("ragged", torch.float32, True, seed=2)
    wide = [x.double() if x.is_floating_point() else x for x in arguments]
    found = loss_and_gradients("span", 0.1, "mean", arguments, "triton", **options)
    for value, correct in zip(found, loss_and_gradients("span", 0.1, "mean", wide, "reference", **options)):
        assert relative_error(value, correct) <= 1e-5


@pytest.mark.parametrize("level, temperature", LOSSES)
def test_one_gradient_of_a_loss_alone(level, temperature):
    arguments = loss_arguments("ragged", torch.float32, True)
    both = loss_and_gradients(level, temperature, "mean", arguments, "triton")
    for side in (0, 1):
        leaves = [x.detach().requires_grad_(i == side) for i, x in enumerate(arguments[:2])]
        loss = pad_loss(*leaves, *arguments[2:], level=level, temperature=temperature, backend="triton")
        loss.backward()
        assert torch.equal(leaves[side].grad, both[1 + side]) and leaves[1 - side].grad is None
    with torch.no_grad():
        loss = pad_loss(*arguments, level=level, temperature=temperature, backend="triton")
    assert torch.equal(loss, both[0])


@pytest.mark.parametrize("level", ["token", "span", "global"])
def test_a_loss_is_differentiated_once(level):
    arguments = loss_arguments("ragged", torch.float32, True)
    speech = arguments[0].nan_to_num(0).requires_grad_()
    loss = pad_loss(speech, *arguments[1:], level=level, backend="triton")
    (grad,) = torch.autograd.grad(loss, speech, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        grad.sum().backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("level", LEVELS)
def test_what_a_loss_keeps_serves_others(level, reduction):
    """Batches of upstream gradients, which another way of the backward takes; hooks that move what was kept."""
    inputs = make_inputs(3, 20, 4, 16)
    sides = inputs.frame_weights > 0, inputs.token_mask, inputs.frame_weights

    def gradients(name, hooks=None, batched=False):
        speech, text = (x.clone().requires_grad_() for x in inputs[:2])
        with torch.autograd.graph.saved_tensors_hooks(*hooks or [lambda x: x] * 2):
            loss = pad_loss(speech, text, *sides, level=level, reduction=reduction, backend=name)
        upstream = torch.randn(5, *loss.shape, generator=torch.Generator().manual_seed(0))
        upstream = upstream if batched else upstream[0]
        return torch.autograd.grad(loss, (speech, text), upstream, is_grads_batched=batched)

    expected = gradients("reference")
    for hooks in (None, (torch.clone, lambda x: x), (lambda x: x, misaligned), (lambda x: x, strided)):
        for one, other in zip(gradients("triton", hooks), expected):
            assert relative_error(one, other) <= 1e-5
    for one, other in zip(gradients("triton", batched=True), gradients("reference", batched=True)):
        assert relative_error(one, other) <= 1e-5


@pytest.mark.parametrize("level", LEVELS)
def test_programs_may_end_in_any_order(level, monkeypatch):
    """Whichever is the last merges the others' results, and gets the same bits."""
    arguments = loss_arguments("ragged", torch.bfloat16, True, width=520)

    def found():
        return [loss_and_gradients(level, temperature, "mean", arguments, "triton") for temperature in (0.0, 0.1)]

    expected = found()
    set_index = InterpreterBuilder.set_grid_idx
    for step in (-1, 7919):  # a prime that divides no number of programs: each runs once

        def in_another_order(self, x, y, z, step=step):
            set_index(self, (step * x + 3) % self.grid_dim[0], y, z)

        monkeypatch.setattr(InterpreterBuilder, "set_grid_idx", in_another_order)
        for one, other in zip(found(), expected):
            assert all(torch.equal(x, y) for x, y in zip(one, other))


@TEMPERATURES
@pytest.mark.parametrize("level", ["token", "span"])
@pytest.mark.parametrize("common", [0.0, 10.0])
def test_gradients_of_what_is_nearly_parallel(level, temperature, common):
    """Little is left of what is summed, of embeddings that are aligned or have a large mean in common."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(2, 6, 64, generator=generator) + common * torch.randn(64, generator=generator)
    speech = text.repeat_interleave(5, 1)
    speech = speech + (0.5 if common else 0.03) * torch.randn(speech.shape, generator=generator)
    sides = None, None, torch.rand(2, 30, generator=generator) + 0.1, None
    arguments = speech.to(torch.bfloat16), text.to(torch.bfloat16), *sides
    wide = [x if x is None else x.double() for x in arguments]
    found = loss_and_gradients(level, temperature, "mean", arguments, "triton")
    expected = loss_and_gradients(level, temperature, "mean", wide, "reference")
    for value, correct in zip(found[1:], expected[1:]):
        assert relative_error(value, correct) <= 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-36, 1e35])
@pytest.mark.parametrize("level", LEVELS)
def test_losses_with_priors_of_any_scale(level, scale, dtype):
    """Neither sums of priors and frames nor gradients over such sums leave the range."""
    arguments = loss_arguments("ragged", dtype, True)
    speech_prior = arguments[4] * scale
    arguments = *arguments[:4], speech_prior, arguments[5]
    wide = [x.double() if x.is_floating_point() else x for x in arguments]
    found = loss_and_gradients(level, 0.1, "mean", arguments, "triton", upstream=65536.0)
    expected = loss_and_gradients(level, 0.1, "mean", wide, "reference", upstream=65536.0)
    for value, correct in zip(found, expected):
        assert relative_error(value, correct) <= BAR[dtype]


@pytest.mark.parametrize("backend", ["triton", "native", "reference"])
def test_rounding_at_a_low_temperature(backend):
    """A log-normalizer one place lower is 64 lower at 1e-9: no posterior exceeds 1 for that."""
    if backend not in available_backends():
        pytest.skip(f"no {backend} backend here")
    run = FASTEST_FIRST[backend]
    inputs = AlignmentInputs(*make_inputs(2, 40, 7, 24, kind="full"), 1e-9)
    saved = run.alignment_forward(inputs)
    lower = saved._replace(log_normalizer=saved.log_normalizer.nextafter(torch.tensor(-torch.inf)))
    grad = torch.ones_like(saved.similarity)
    expected = run.alignment_backward(grad, inputs, saved, Needed(True, True))
    for found, correct in zip(run.alignment_backward(grad, inputs, lower, Needed(True, True)), expected):
        assert relative_error(found, correct) <= 1e-5


def test_an_utterance_of_more_numbers_than_are_counted_is_refused():
    speech, text = torch.zeros(1, 1, 2048).expand(1, 2**20, 2048), torch.zeros(1, 1, 2048)
    for level in ("token", "span"):
        with pytest.raises(
            ValueError, match="speech: got 1048576 rows of width 2048 in an utterance, expected at most"
        ):
            pad_loss(speech, text, level=level, backend="triton")
