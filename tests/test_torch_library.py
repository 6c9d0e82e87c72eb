"""The ops as torch sees them: opcheck, torch.compile, autocast, fake tensors, second derivatives."""

import pytest
import torch
from inputs import make_inputs, relative_error
from test_loss import make
from test_pooling import pooled_distance
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from pad_kernels import align, alignment_matrix, pad_loss, select_spans, significance

LEVELS = ["global", "token", "span"]
OPS = torch.ops.pad_kernels


def opcheck(op, arguments):
    torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("units", [None, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_alignment(backend, dtype, units, temperature):
    inputs = make_inputs(2, 12, 5, 8, kind="full", units=units, dtype=dtype)
    outputs = OPS.alignment_forward(*inputs, temperature, backend)
    speech, text = (x.detach().clone().requires_grad_() for x in inputs[:2])
    opcheck(OPS.alignment_forward.default, (speech, text, *inputs[2:], temperature, backend))
    backward = (torch.ones_like(outputs[0]), *inputs, temperature, *outputs)
    for needed in ((True, True), (True, False), (False, True)):
        opcheck(OPS.alignment_backward.default, (*backward, *needed, backend))


def test_opcheck_others(backend):
    speech, text = (torch.randn(2, length, 5, requires_grad=True) for length in (6, 3))
    weights, token_weights = torch.rand(2, 6), torch.rand(2, 3)
    opcheck(OPS.pooled_distance_forward.default, (speech, text, weights, token_weights, backend))
    for needed in ((True, True), (True, False), (False, True)):
        for dtype in (torch.float32, torch.bfloat16):
            inputs = (speech.detach().to(dtype), text.detach().to(dtype), weights, token_weights)
            backward = (torch.randn(2), *inputs, torch.randn(2, 5), torch.rand(2, 2), *needed, backend)
            opcheck(OPS.pooled_distance_backward.default, backward)
    query, key, mask = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 4), torch.rand(2, 6) < 0.7
    opcheck(OPS.significance.default, (query, key, mask, 0.5, None, backend))
    opcheck(OPS.significance.default, (query, key, None, 0.5, torch.randn(2, 3, 6), backend))
    counts = torch.tensor([3, 2])
    for xi in (None, torch.tensor([2.0, 3.0], dtype=torch.float64)):
        arguments = (weights, mask, counts, counts, 3, [0.5, 1.0], xi, "topk", backend)
        opcheck(OPS.select_spans.default, arguments)


def gradients(loss_function, arguments, **options):
    speech, text = (x.detach().requires_grad_() for x in arguments[:2])
    loss = loss_function(speech, text, *arguments[2:], **options)
    return loss, *torch.autograd.grad(loss, (speech, text))


def assert_compiles(arguments, how, **options):
    torch.compiler.reset()
    compiled = torch.compile(pad_loss, fullgraph=True, backend=how)
    found, expected = (gradients(function, arguments, **options) for function in (compiled, pad_loss))
    for one, other in zip(found, expected):
        assert relative_error(one, other) <= 1e-6


@pytest.mark.parametrize("level", LEVELS)
def test_torch_func_is_refused(backend, level):
    speech, text = torch.randn(2, 6, 8), torch.randn(2, 3, 8)
    with pytest.raises(RuntimeError, match="pad_kernels: no derivative by torch.func"):
        torch.func.grad(lambda x: pad_loss(x, text, level=level, backend=backend))(speech)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_who_watches_the_operators_sees_the_ops(backend, reduction, level):
    """And gets the same loss and gradients as where nobody watches, and the kernels are called directly."""

    class Watch(TorchDispatchMode):
        seen = set()

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            self.seen.add(str(function))
            return function(*arguments, **(options or {}))

    def loss(*arguments):
        return pad_loss(*arguments, level=level, reduction=reduction, backend=backend).sum()

    arguments = make(kind="some_empty")
    expected = gradients(loss, arguments)
    with Watch() as watch:
        found = gradients(loss, arguments)
    name = "pooled_distance" if level == "global" else "alignment"
    assert {f"pad_kernels.{name}_{way}.default" for way in ("forward", "backward")} <= watch.seen
    assert all(relative_error(one, other) <= 1e-6 for one, other in zip(found, expected))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("priors", [True, False])
def test_compile(backend, priors, level):
    assert_compiles(make(priors=priors), "aot_eager", level=level, backend=backend)


@pytest.mark.parametrize("level", LEVELS)
def test_compile_without_masks(level):
    assert_compiles((*make(kind="full")[:2],), "aot_eager", level=level)


def test_compile_with_inductor():
    assert_compiles(make(), "inductor", level="span", temperature=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("level", LEVELS)
def test_compile_every_level_with_inductor(level, temperature):
    assert_compiles(make(), "inductor", level=level, temperature=temperature)


@pytest.mark.parametrize("level", LEVELS)
def test_compile_with_dynamic_shapes(level):
    torch.compiler.reset()
    compiled = torch.compile(pad_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for frames, tokens in ((40, 9), (55, 12), (31, 7)):
        arguments = make(3, frames, tokens)
        found, expected = (gradients(f, arguments, level=level) for f in (compiled, pad_loss))
        assert all(relative_error(one, other) <= 1e-6 for one, other in zip(found, expected))


class Schedule:
    """Compiles a loss whose temperature changes, and counts how often that takes a compilation."""

    def __init__(self, function, level):
        torch.compiler.reset()
        self.function, self.level = function, level
        self.counter = CompileCounterWithBackend("aot_eager")
        self.compiled = torch.compile(self.loss, fullgraph=True, backend=self.counter)

    def loss(self, speech, text, temperature):
        if self.function is align:
            return align(speech, text, temperature=temperature).similarity.sum()
        return pad_loss(speech, text, level=self.level, temperature=temperature)

    def run(self, temperatures):
        for temperature in temperatures:
            arguments = make(kind="full")[:2]
            found = gradients(self.compiled, arguments, temperature=temperature)
            expected = gradients(self.loss, arguments, temperature=float(temperature))
            assert all(relative_error(one, other) <= 1e-6 for one, other in zip(found, expected))
        return self.counter.frame_count


@pytest.mark.parametrize("function, level", [*((pad_loss, level) for level in LEVELS), (align, "")])
def test_a_temperature_that_changes_compiles_once(function, level):
    """A tensor at once, a number from its second value on, or its third where no op gets it; more values than torch
    compiles a function for."""
    temperatures = [0.05 + 0.01 * step for step in range(11)]
    assert Schedule(function, level).run(map(torch.tensor, temperatures)) == 1
    assert Schedule(function, level).run(temperatures) == (3 if level == "global" else 2)


def test_a_wrong_temperature_of_a_compiled_loss(backend):
    schedule = Schedule(pad_loss, "token")
    schedule.run([torch.tensor(0.1)])
    with pytest.raises(ValueError, match="temperature: got -1.0"):
        schedule.compiled(*make(kind="full")[:2], torch.tensor(-1.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_temperature_as_a_tensor(backend, dtype):
    arguments = make()
    temperature = torch.tensor(0.125, dtype=dtype)
    found = gradients(pad_loss, arguments, temperature=temperature, backend=backend)
    expected = gradients(pad_loss, arguments, temperature=0.125, backend=backend)
    assert all(torch.equal(one, other) for one, other in zip(found, expected))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"num_anchors": 3}, {"anchors": "peaks"}], ids=str)
@pytest.mark.parametrize("given", [2, 4, 6])
def test_jit_trace_of_spans(given, options):
    """Sizes are tensors there."""
    arguments = make(3, 40, 7, kind="full")[:given]
    traced = torch.jit.trace(lambda *x: pad_loss(*x, **options), arguments)
    others = [x.flip(0).contiguous() for x in arguments]
    assert relative_error(traced(*others), pad_loss(*others, **options)) <= 1e-6


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_export_with_dynamic_lengths(level, strict):
    """Without masks, so that the number of tokens is a size."""

    class Loss(torch.nn.Module):
        def forward(self, speech, text):
            return pad_loss(speech, text, level=level)

    frames, tokens = torch.export.Dim("frames"), torch.export.Dim("tokens")
    shapes = {"speech": {1: frames}, "text": {1: tokens}}
    exported = torch.export.export(
        Loss(), make(2, 20, 5, kind="full")[:2], dynamic_shapes=shapes, strict=strict
    ).module()
    for lengths in ((33, 7), (8, 12)):
        arguments = make(2, *lengths, kind="full")[:2]
        assert relative_error(exported(*arguments), pad_loss(*arguments, level=level)) <= 1e-6


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("level", LEVELS)
def test_make_fx(level, mode):
    """Masks, priors and gradient; what is traced serves other values."""

    def run(speech, *arguments):
        speech = speech.detach().requires_grad_()
        loss = pad_loss(speech, *arguments, level=level)
        return loss, *torch.autograd.grad(loss, speech)

    def inputs(seed):
        return [x.float() if x.is_floating_point() else x.to(torch.int64) for x in make(seed=seed)]

    traced = make_fx(run, tracing_mode=mode)(*inputs(0))
    name = "pooled_distance_backward" if level == "global" else "alignment_backward"
    assert any(name in str(node.target) for node in traced.graph.nodes)
    for one, other in zip(traced(*inputs(1)), run(*inputs(1))):
        assert relative_error(one, other) <= 1e-6


def test_compile_the_other_functions():
    torch.compiler.reset()

    def everything(speech, text, prior, mask, query):
        spans = select_spans(prior, mask, torch.full((3,), 5), max_anchors=5)
        found = align(speech, text, spans, mask, speech_prior=prior)
        return found.similarity, found.unit, significance(query, query, mask)

    speech, text, mask, _, prior, _ = make()
    arguments = (speech, text[:, :5].nan_to_num(0), prior, mask, torch.randn(3, 2, 40, 8))
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(*arguments), everything(*arguments)):
        assert relative_error(one, other) <= 1e-6


@pytest.mark.parametrize("level", LEVELS)
def test_compile_inside_autocast(level):
    torch.compiler.reset()
    arguments = make()
    arguments = (arguments[0].bfloat16(), *arguments[1:])

    def loss(*arguments):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return pad_loss(*arguments, level=level)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for one, other in zip(gradients(compiled, arguments), gradients(loss, arguments)):
        assert relative_error(one, other) <= 1e-6


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_lower_the_precision(backend, dtype, level):
    arguments = make()
    expected = gradients(pad_loss, arguments, level=level, backend=backend)
    with torch.autocast("cpu", dtype=dtype):
        found = gradients(pad_loss, arguments, level=level, backend=backend)
    assert found[0].dtype == torch.float32
    for one, other in zip(found, expected):
        assert torch.equal(one, other)


@pytest.mark.parametrize("spans", [False, True])
def test_compile_the_matrix(spans):
    """One trace serves every temperature, as a number and as a tensor, inside autocast too."""
    inputs = make_inputs(2, 30, 7, 64, kind="full", seed=3)
    bounds = (torch.tensor([[0, 3, 9]] * 2), torch.tensor([[4, 9, 30]] * 2)) if spans else None

    def matrix(temperature):
        return alignment_matrix(
            inputs.speech, inputs.text, bounds, None, inputs.token_mask, inputs.frame_weights, temperature
        )

    torch.compiler.reset()
    compiled = torch.compile(matrix, fullgraph=True, backend="eager")
    for temperature in (0.0, 0.1, 0.02, 0.0):
        expected = matrix(temperature)
        for given in (temperature, torch.tensor(temperature)):
            torch.testing.assert_close(compiled(given), expected, rtol=1e-5, atol=1e-6)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                torch.testing.assert_close(compiled(given), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="temperature"):
        compiled(torch.tensor(float("nan")))


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_autocast_leaves_the_alignment_as_it_is(temperature):
    inputs = make_inputs(2, 30, 7, 64, kind="full", seed=3)
    for function in (lambda: alignment_matrix(*inputs[:2], temperature=temperature),
                     lambda: align(*inputs[:2], temperature=temperature).similarity):  # fmt: skip
        expected = function()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = function()
        assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize("level", LEVELS)
def test_autocast_promotes_the_narrower_dtype(backend, level):
    speech, text, *rest = make()
    narrow = speech.bfloat16()
    expected = gradients(pad_loss, (narrow.float(), text, *rest), level=level, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(pad_loss, (narrow, text, *rest), level=level, backend=backend)
    assert [x.dtype for x in found] == [torch.float32, torch.bfloat16, torch.float32]
    assert torch.equal(found[0], expected[0]) and torch.equal(found[2], expected[2])
    assert torch.equal(found[1], expected[1].bfloat16())


@pytest.mark.parametrize("level", LEVELS)
def test_double_backward_raises(backend, level):
    speech, text, *rest = make(kind="full")
    speech, weight = speech.requires_grad_(), torch.ones((), requires_grad=True)
    loss = weight * pad_loss(speech, text, *rest, level=level, backend=backend)
    (grad,) = torch.autograd.grad(loss, speech, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        grad.sum().backward()


def test_only_the_similarity_is_differentiable(backend):
    speech, text, *_ = make(kind="full")
    found = align(speech.requires_grad_(), text, backend=backend)
    assert found.similarity.requires_grad
    assert not found.log_normalizer.requires_grad and not found.unit.requires_grad


@pytest.mark.parametrize("level", LEVELS)
def test_fake_and_meta_tensors(level):
    """Shapes can be worked out without values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    speech, text, *rest = make()
    with FakeTensorMode() as mode:
        arguments = [mode.from_tensor(x) for x in (speech, text, *rest)]
        loss = pad_loss(*arguments, level=level)
        assert loss.shape == () and loss.dtype == torch.float32
    arguments = [x.to("meta") for x in (speech, text, *rest)]
    assert pad_loss(*arguments, level=level, reduction="none").shape == (3,)


def test_checkpointing(backend):
    speech, text, *rest = make()
    expected = gradients(pad_loss, (speech, text, *rest), backend=backend)

    def recomputed(*arguments, **options):
        return torch.utils.checkpoint.checkpoint(pad_loss, *arguments, use_reentrant=False, **options)

    found = gradients(recomputed, (speech, text, *rest), backend=backend)
    assert all(torch.equal(one, other) for one, other in zip(found, expected))


@pytest.mark.parametrize("needed", [(False, False), (True, False), (False, True)])
def test_pooled_distance_of_constants(backend, needed):
    values = [torch.randn(2, 3, 4, requires_grad=wanted) for wanted in needed]
    distance, _ = pooled_distance(*values, torch.rand(2, 3), torch.rand(2, 3), backend)
    assert distance.requires_grad == any(needed)
    if any(needed):
        distance.sum().backward()
    assert [value.grad is not None for value in values] == list(needed)


@pytest.mark.parametrize("loss", [*LEVELS, "align"])
def test_forward_mode_is_refused(loss):
    def run(speech):
        text = torch.randn(2, 4, 8)
        return align(speech, text)[0] if loss == "align" else pad_loss(speech, text, level=loss)

    speech = torch.randn(2, 9, 8)
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(run, (speech,), (torch.randn_like(speech),))
    with torch.autograd.forward_ad.dual_level():
        assert run(speech).isfinite().all()


@pytest.mark.parametrize("level", ["global", "token", "span"])
def test_vmap_is_refused(level):
    speech, text = torch.randn(2, 3, 9, 8), torch.randn(2, 3, 4, 8)
    with pytest.raises(RuntimeError, match="does not take torch.vmap: it is batched already"):
        torch.vmap(lambda one, other: pad_loss(one, other, level=level))(speech, text)
    with pytest.raises(RuntimeError, match="pad_kernels::significance does not take torch.vmap"):
        torch.vmap(significance)(torch.randn(2, 1, 1, 5, 4), torch.randn(2, 1, 1, 5, 4))
