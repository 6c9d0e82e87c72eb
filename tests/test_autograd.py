"""The gradient of each loss: batches of upstream gradients, second derivatives, functorch, and who computes it."""

import pytest
import torch
from inputs import misaligned, relative_error, strided
from test_loss import make
from torch.autograd.functional import hessian, jacobian

from pad_kernels import align, backends, pad_loss, select_spans, significance
from pad_kernels.backends.reference import ReferenceBackend

LEVELS = pytest.mark.parametrize("level", ["global", "token", "span"])


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@LEVELS
def test_a_batch_of_upstream_gradients(backend, level, reduction, temperature):
    speech, text, *rest = make(kind="some_empty")
    speech, text = speech.requires_grad_(), text.requires_grad_()
    loss = pad_loss(speech, text, *rest, level=level, temperature=temperature, reduction=reduction, backend=backend)
    upstream = torch.randn(5, *loss.shape, generator=torch.Generator().manual_seed(1))
    for wanted in ((speech, text), (speech,), (text,)):
        found = torch.autograd.grad(loss, wanted, upstream, is_grads_batched=True, retain_graph=True)
        each = [torch.autograd.grad(loss, wanted, grad, retain_graph=True) for grad in upstream]
        for one, others in zip(found, zip(*each)):
            assert torch.equal(one, torch.stack(others))


@LEVELS
def test_jacobian(backend, level):
    speech, text, *rest = make(kind="full")

    def losses(speech, text):
        return pad_loss(speech, text, *rest, level=level, reduction="none", backend=backend)

    found = jacobian(losses, (speech, text), vectorize=True)
    for one, other in zip(found, jacobian(losses, (speech, text))):
        assert one.shape == (3, *other.shape[1:]) and one.any() and torch.equal(one, other)


def test_jacobian_of_the_similarities(backend):
    speech, text, *_ = make(2, 11, 4, 8, kind="full")

    def similarity(speech):
        return align(speech, text, backend=backend).similarity

    assert torch.equal(jacobian(similarity, speech, vectorize=True), jacobian(similarity, speech))


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("which", [0, 1], ids=["speech", "text"])
@LEVELS
def test_a_hessian_is_refused(backend, level, which, vectorize):
    arguments = make(2, 6, 3, 8, kind="full")

    def loss(values):
        both = [values, arguments[1]] if which == 0 else [arguments[0], values]
        return pad_loss(*both, *arguments[2:], level=level, backend=backend)

    with pytest.raises(RuntimeError, match="can be differentiated once"):
        hessian(loss, arguments[which], vectorize=vectorize)


def test_a_hessian_of_the_pooled_distance_is_refused(backend):
    text, weights, token_weights = torch.randn(2, 3, 8), torch.rand(2, 6), torch.rand(2, 3)

    def distance(speech):
        return torch.ops.pad_kernels.pooled_distance_forward(speech, text, weights, token_weights, backend)[0].sum()

    with pytest.raises(RuntimeError, match="the pooling can be differentiated once"):
        hessian(distance, torch.randn(2, 6, 8))


@pytest.mark.parametrize("name", ["speech", "text", "speech_mask", "text_prior"])
@LEVELS
def test_vmap_over_any_argument_is_refused(level, name):
    names = ("speech", "text", "speech_mask", "text_mask", "speech_prior", "text_prior")
    arguments = dict(zip(names, make(kind="full")))
    batched = torch.stack([arguments[name]] * 4)
    with pytest.raises(RuntimeError, match="pad_loss does not take torch.vmap: it is batched already"):
        torch.vmap(lambda value: pad_loss(**{**arguments, name: value}, level=level))(batched)


@pytest.mark.parametrize("op", ["alignment_backward", "pooled_distance_backward"])
def test_a_batch_of_other_things_than_upstream_gradients_is_refused(op):
    speech, text, weights, token_weights = (
        torch.randn(4, 2, 6, 8),
        torch.randn(2, 3, 8),
        torch.rand(2, 6),
        torch.ones(2, 3),
    )
    if op == "alignment_backward":
        grad = torch.randn(2, 3)
        rest = (text, weights, token_weights > 0, None, None, 0.1, grad, grad.long(), grad, True, True, "reference")
    else:
        grad = torch.randn(2)
        rest = (text, weights, token_weights, torch.randn(2, 8), torch.rand(2, 2), True, True, "reference")
    with pytest.raises(RuntimeError, match=f"pad_kernels::{op} does not take torch.vmap"):
        torch.vmap(lambda speech: getattr(torch.ops.pad_kernels, op)(grad, speech, *rest))(speech)


def test_vmap_over_upstream_gradients_alone():
    """Of a backward op: what it gives for each."""
    sides = torch.randn(2, 6, 8), torch.randn(2, 3, 8), torch.rand(2, 6), torch.ones(2, 3)
    rest = (*sides, torch.randn(2, 8), torch.rand(2, 2), True, True, "reference")
    op, upstream = torch.ops.pad_kernels.pooled_distance_backward, torch.randn(4, 2)
    found = torch.vmap(lambda grad: op(grad, *rest))(upstream)
    for side, each in zip(found, zip(*(op(grad, *rest) for grad in upstream))):
        assert torch.equal(side, torch.stack(each))


@LEVELS
def test_a_constant_inside_a_functorch_transform(backend, level):
    """The transform is about something else: the loss is what it is outside."""
    speech, text, *rest = make()
    expected = pad_loss(speech, text, *rest, level=level, backend=backend)

    def weighted(weight):
        return weight * pad_loss(speech, text, *rest, level=level, backend=backend)

    assert relative_error(torch.func.grad(weighted)(torch.tensor(2.0)), expected) <= 1e-6
    assert relative_error(torch.vmap(weighted)(torch.tensor([1.0, 3.0])), expected * torch.tensor([1.0, 3.0])) <= 1e-6


@LEVELS
def test_a_batch_of_upstream_gradients_through_a_checkpoint(backend, level):
    """The loss is computed again, inside the vmap that autograd runs."""
    speech, text, *rest = make(kind="full")
    speech = speech.requires_grad_()

    def run(speech):
        return pad_loss(speech, text, *rest, level=level, reduction="none", backend=backend)

    recomputed = torch.utils.checkpoint.checkpoint(run, speech, use_reentrant=False)
    upstream = torch.eye(3)
    (found,) = torch.autograd.grad(recomputed, speech, upstream, is_grads_batched=True)
    (expected,) = torch.autograd.grad(run(speech), speech, upstream, is_grads_batched=True)
    assert relative_error(found, expected) <= 1e-6 and found.any()


@pytest.mark.parametrize("level", ["global", "token", "span"])
def test_a_backend_may_have_its_own_way_of_a_loss(monkeypatch, level):
    """Weights, forward and backward of a whole loss are asked of the backend, and of no one else."""
    calls = []

    class Own(ReferenceBackend):
        name = "own"

        def loss_weights(self, request):
            calls.append("weights")
            return super().loss_weights(request)

    def watch(step):
        def method(self, *arguments):
            calls.append(step)
            return getattr(ReferenceBackend, step)(self, *arguments)

        return method

    for kind in ("local", "global"):
        for way in ("forward", "backward"):
            setattr(Own, f"{kind}_loss_{way}", watch(f"{kind}_loss_{way}"))
    monkeypatch.setitem(backends.FASTEST_FIRST, "own", Own())
    backends.forget_candidates()
    arguments = make()
    speech = arguments[0].requires_grad_()
    loss = pad_loss(*arguments, level=level, backend="own")
    (grad,) = torch.autograd.grad(loss, speech)
    kind = "global" if level == "global" else "local"
    assert calls == ["weights", f"{kind}_loss_forward", f"{kind}_loss_backward"]
    expected = pad_loss(*arguments, level=level, backend="reference")
    assert torch.equal(loss, expected) and torch.equal(grad, torch.autograd.grad(expected, speech)[0])


@LEVELS
def test_saved_tensors_pass_through_the_hooks_of_autograd(backend, level):
    """As save_on_cpu and checkpoints rely on."""
    arguments = make()
    speech = arguments[0].requires_grad_()
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or x.clone(), lambda x: x):
        loss = pad_loss(*arguments, level=level, backend=backend)
    (found,) = torch.autograd.grad(loss, speech)
    assert any(x.data_ptr() == speech.data_ptr() for x in packed)
    (expected,) = torch.autograd.grad(pad_loss(*arguments, level=level, backend=backend), speech)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("hooks", [(strided, lambda x: x), (lambda x: x, strided), (lambda x: x, misaligned)])
@LEVELS
def test_hooks_that_lay_out_anew_what_was_saved(backend, level, hooks, temperature):
    """The same numbers in another order in memory, also where the registered ops take over."""
    arguments = make(kind="some_empty")
    speech, text = (value.requires_grad_() for value in arguments[:2])
    bounds = torch.arange(0, 36, 3).expand(3, -1)
    for spans in (None, (bounds, bounds + 4)) if level == "span" else (None,):
        options = dict(level=level, temperature=temperature, spans=spans, backend=backend)
        expected = torch.autograd.grad(pad_loss(*arguments, **options), (speech, text))
        with torch.autograd.graph.saved_tensors_hooks(*hooks):
            loss = pad_loss(*arguments, **options)
        found = torch.autograd.grad(loss, (speech, text), retain_graph=True)
        assert all(torch.equal(one, other) for one, other in zip(found, expected))
        found = torch.autograd.grad(loss, (speech, text), create_graph=True)
        assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-7) for one, other in zip(found, expected))


def negative_view(value):
    """The same numbers; torch holds their negatives, and a bit that says so, as in the imaginary part of a conj()."""
    return torch._neg_view(-value)


@pytest.mark.parametrize("level", ["global", "token", "span"])
def test_negative_views(backend, level):
    speech, text, speech_mask, text_mask, *priors = make(3, 50, 9, 16)
    masks = speech_mask, text_mask

    def near(one, other):  # the op by op form of a loss rounds otherwise
        return torch.allclose(one, other, rtol=1e-4, atol=1e-6)

    def run(*arguments, grad=None):
        speech, text, *others = (x.detach().requires_grad_(place < 2) for place, x in enumerate(arguments))
        loss = pad_loss(speech, text, *masks, *others, level=level, backend=backend)
        return loss, *torch.autograd.grad(loss, (speech, text), grad)

    plain = speech, text, *priors
    expected = run(*plain, grad=torch.tensor(2.0))
    for place in range(len(plain)):
        changed = [negative_view(x) if at == place else x for at, x in enumerate(plain)]
        assert all(map(near, run(*changed, grad=torch.tensor(2.0)), expected))
    assert all(map(near, run(*plain, grad=negative_view(torch.tensor(2.0))), expected))
    query, key = torch.randn(2, 3, 2, 40, 8)
    found = significance(negative_view(query), negative_view(key), backend=backend)
    assert torch.equal(found, significance(query, key, backend=backend))
    spans = [select_spans(prior, speech_mask, 5, backend=backend) for prior in (priors[0], negative_view(priors[0]))]
    assert all(map(torch.equal, *spans))
    aligned = [
        align(x, text, speech_mask=speech_mask, text_mask=text_mask, backend=backend)
        for x in (speech, negative_view(speech))
    ]
    assert torch.equal(aligned[0].similarity, aligned[1].similarity)
