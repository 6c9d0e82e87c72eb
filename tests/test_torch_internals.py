"""What the package uses of torch's private parts still means what it relies on."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pad_kernels import torch_internals as internals

PLAIN = torch.ones(3)


class Subclass(torch.Tensor):
    """A tensor that is not plain."""


class Watch(TorchDispatchMode):
    """Sees every operator."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return function(*arguments, **(options or {}))


def test_plain_tensors_are_used_directly():
    assert internals.can_bypass_dispatcher(PLAIN, None, torch.nn.Parameter(PLAIN))
    assert not internals.can_bypass_dispatcher(PLAIN, PLAIN.as_subclass(Subclass))
    assert not internals.can_bypass_dispatcher(PLAIN.to("meta"))
    assert not internals.can_bypass_dispatcher(PLAIN, torch._neg_view(PLAIN))
    assert not internals.in_functorch()
    assert not internals.is_batched(PLAIN) and not internals.is_batched(3)
    assert not internals.is_differentiated_by_functorch(PLAIN) and not internals.has_tangent(PLAIN)
    assert not internals.in_forward_mode() and not internals.is_batch_of_gradients(PLAIN)


def test_watched_and_fake():
    with Watch():
        assert not internals.can_bypass_dispatcher(PLAIN)
    with FakeTensorMode():
        assert not internals.can_bypass_dispatcher(torch.ones(2))


@pytest.mark.filterwarnings("ignore")
def test_traced():
    seen = []

    def function(x):
        seen.append(internals.can_bypass_dispatcher(x))
        return x + 1

    torch.jit.trace(function, PLAIN, check_trace=False)
    assert seen == [False]


def test_traced_by_make_fx():
    from torch.fx.experimental.proxy_tensor import make_fx

    seen = []

    def function(x):
        seen.append(internals.is_traced())
        return x + 1

    for mode in ("real", "fake", "symbolic"):
        make_fx(function, tracing_mode=mode)(PLAIN)
    function(PLAIN)
    assert seen == [True] * 3 + [False]


def test_symbolic_numbers():
    torch.compiler.reset()

    def function(x, number):
        return x + 1 if internals.is_symbolic(number) else x + 2

    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert torch.equal(compiled(PLAIN, 0.5), PLAIN + 2)  # taken for a constant
    assert all(torch.equal(compiled(PLAIN, number), PLAIN + 1) for number in (0.6, 0.7))


def test_compiled():
    torch.compiler.reset()

    def function(x):
        return x + 1 if internals.can_bypass_dispatcher(x) or internals.in_functorch() else x + 2

    assert torch.equal(torch.compile(function, fullgraph=True, backend="eager")(PLAIN), PLAIN + 2)


def test_vmap():
    def function(x):
        assert internals.in_functorch() and internals.is_batched(x) and not internals.is_batched(PLAIN)
        assert not internals.can_bypass_dispatcher(PLAIN)
        return x

    torch.vmap(function)(PLAIN)


def test_torch_func_grad():
    def function(x):
        assert internals.is_differentiated_by_functorch(x) and not internals.is_differentiated_by_functorch(PLAIN)
        return x.sum()

    torch.func.grad(function)(PLAIN)


def test_forward_mode():
    def function(x):
        assert internals.in_forward_mode()
        assert internals.has_tangent(x) and not internals.has_tangent(PLAIN)
        return x

    torch.func.jvp(function, (PLAIN,), (PLAIN,))


def test_without_functorch():
    def function(x):
        seen = internals.without_functorch(lambda y: (internals.in_functorch(), 2 * y), PLAIN)
        assert not seen[0] and internals.in_functorch() and internals.is_batched(x)
        return x + seen[1].sum()

    assert torch.equal(torch.vmap(function)(PLAIN), PLAIN + 6)
    with pytest.raises(ZeroDivisionError):
        torch.vmap(lambda x: internals.without_functorch(lambda: 1 / 0))(PLAIN)
    assert not internals.in_functorch()


def test_a_batch_of_upstream_gradients():
    class Look(torch.autograd.Function):
        seen = []

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            batch = internals.is_batch_of_gradients(grad)
            Look.seen.append(batch)
            return grad

    x = PLAIN.clone().requires_grad_()
    torch.autograd.grad(Look.apply(x), x, torch.ones(4, 3), is_grads_batched=True)
    torch.autograd.grad(Look.apply(x), x, torch.ones(3))
    assert Look.seen == [True, False]
