"""Calls of the Triton backend that are repeated from a recording, under the interpreter; test_triton.py runs this."""

import gc
import weakref

import pytest
import torch
from inputs import make_inputs, misaligned, relative_error, strided
from torch.utils._python_dispatch import TorchDispatchMode
from triton_interpreted_losses import LOSSES

from pad_kernels import pad_loss
from pad_kernels.backends import self_test
from pad_kernels.backends.triton import BACKEND, common, memory, recorded_calls
from pad_kernels.inputs import LEVELS, REDUCTIONS, LossOptions, LossRequest, Needed, Positions, SpanSelection

pytest_plugins = ("triton_interpreter",)
CALLS = 3  # one is seen, one recorded, the last repeated


@pytest.fixture(autouse=True)
def repeated(monkeypatch):
    """How often something was repeated, of nothing that another test has recorded."""
    count = []
    repeat = recorded_calls.Call.repeat
    monkeypatch.setattr(recorded_calls.Call, "repeat", lambda *given: count.append(1) or repeat(*given))
    recorded_calls.forget_calls()
    yield count
    recorded_calls.forget_calls()


def loss_and_gradients(arguments, sides=(0, 1), **options):
    """The loss, and the gradients of some of its sides."""
    leaves = [x.detach().requires_grad_(side in sides) for side, x in enumerate(arguments[:2])]
    loss = pad_loss(*leaves, *arguments[2:], backend="triton", **options)
    if not sides:
        return (loss,)
    grad = torch.linspace(1, 2, loss.numel()).view_as(loss)
    return loss.detach(), *torch.autograd.grad(loss, [leaves[side] for side in sides], grad)


def unrecorded(arguments, **options):
    """The same, without a recording."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded_calls, "call", lambda run, kind, inputs: run())
        return loss_and_gradients(arguments, **options)


def check_calls(of_seed, repeated, kinds, **options):
    """Calls of other values each have the bits of calls that are not recorded. kinds: how many are repeated."""
    repeated.clear()
    for seed in range(CALLS):
        arguments = of_seed(seed)
        found = loss_and_gradients(arguments, **options)
        for one, other in zip(found, unrecorded(arguments, **options), strict=True):
            assert torch.equal(one, other) and other.isfinite().all()
    assert len(repeated) == kinds * (CALLS - 2)


def ragged(seed, dtype=torch.float32, priors=True, frames=15):
    """Speech, text, their masks and their priors."""
    inputs = make_inputs(2, frames, 4, 16, dtype=dtype, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    both = [torch.rand(2, length, generator=generator) for length in (frames, 4)] if priors else [None, None]
    return inputs.speech, inputs.text, inputs.frame_weights > 0, inputs.token_mask, *both


@pytest.mark.parametrize("level, temperature", LOSSES)
def test_repeated_calls(level, temperature, repeated):
    place = LOSSES.index((level, temperature))
    priors = place % 2 == 0
    dtype = (torch.float32, torch.bfloat16, torch.float16)[place % 3]
    options = {"level": level, "temperature": temperature, "reduction": REDUCTIONS[place % 3]}
    check_calls(lambda seed: ragged(seed, dtype, priors), repeated, 2, **options)


@pytest.mark.parametrize("level", ["span", "global"])
def test_repeated_calls_without_masks(level, repeated):
    check_calls(lambda seed: [x.nan_to_num(1) for x in ragged(seed)[:2]], repeated, 2, level=level)


@pytest.mark.parametrize("level, temperature, sides", [
    ("token", 0.0, ()), ("token", 0.1, (1,)), ("span", 0.0, (0,)), ("span", 0.1, (1,)), ("span", 0.1, ()),
    ("global", 0.0, (0,)),
])  # fmt: skip
def test_repeated_calls_of_fewer_gradients(level, temperature, sides, repeated):
    options = {"level": level, "temperature": temperature, "sides": sides}
    check_calls(ragged, repeated, len(sides) + 1, **options)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_repeated_calls_of_given_spans(temperature, repeated):
    def of_seed(seed):
        inputs = make_inputs(2, 21, 4, 16, units=7, seed=seed)
        return inputs.speech, inputs.text, inputs.frame_weights > 0, inputs.token_mask, inputs.start, inputs.end

    repeated.clear()
    for seed in range(CALLS):
        *arguments, start, end = of_seed(seed)
        options = {"temperature": temperature, "spans": (start, end)}
        found = loss_and_gradients(arguments, **options)
        wide = [x.double() if x.is_floating_point() else x for x in arguments]
        leaves = [x.requires_grad_() for x in wide[:2]]
        loss = pad_loss(*leaves, *wide[2:], backend="reference", **options)
        for one, other in zip(found, (loss, *torch.autograd.grad(loss, leaves)), strict=True):
            assert relative_error(one, other) <= 1e-5
    assert len(repeated) == 2 * (CALLS - 2)


def test_repeated_calls_of_as_many_anchors_as_a_tensor_says(repeated):
    """And none of those tensors is kept."""
    numbers = []
    for seed in range(CALLS):
        number = torch.tensor([seed, 3])
        numbers.append(weakref.ref(number))
        given = loss_and_gradients(ragged(seed), num_anchors=number), unrecorded(ragged(seed), num_anchors=number)
        assert all(map(torch.equal, *given))
    del number
    assert len(repeated) == 2 * (CALLS - 2) and not any(kept() is not None for kept in numbers)


@pytest.mark.parametrize("level, change", [
    ("span", lambda x: x.repeat_interleave(2, 1)[:, ::2]),
    ("token", lambda x: torch.cat((x, x), 2)[:, :, :16]),
    ("global", misaligned),
], ids=["rows", "columns", "misaligned"])  # fmt: skip
def test_repeated_calls_of_other_layouts(level, change, repeated):
    check_calls(lambda seed: (*map(change, ragged(seed)[:2]), *ragged(seed)[2:]), repeated, 2, level=level)


@pytest.mark.parametrize("level", ["token", "global"])
def test_what_is_copied_first_is_not_repeated(level, repeated):
    """But a backward is that reads no copy."""
    of_seed = lambda seed: (*ragged(seed)[:2], *map(strided, ragged(seed)[2:]))  # noqa: E731
    check_calls(of_seed, repeated, 1, level=level)
    of_seed = lambda seed: (*map(strided, ragged(seed)[:2]), *ragged(seed)[2:])  # noqa: E731
    check_calls(of_seed, repeated, 1 if level == "global" else 0, level=level)


def test_one_tensor_in_two_places(repeated):
    """What is recorded of two tensors serves where they are one; of one nothing is recorded."""
    one = torch.randn(2, 9, 16)
    others = [(torch.randn(2, 9, 16), torch.randn(2, 9, 16)) for _ in range(4)]
    for first, second, expected in (others, [(one, one)] * 2, 4), ([(one, one)] * 2, others, 0):
        recorded_calls.forget_calls()
        repeated.clear()
        for inputs in first + second:
            loss = pad_loss(*inputs, backend="triton")
            wide = pad_loss(*(x.double() for x in inputs), backend="reference")
            assert abs(loss - wide) <= 1e-5
        assert len(repeated) == expected


def test_calls_that_differ_in_one_thing(repeated):
    """None is taken for another, whatever has been recorded."""
    plain = {"level": "span", "temperature": 0.1}
    cases = [
        plain, {"temperature": 0.2}, {"temperature": 0.0}, {"level": "token"}, {"level": "global"},
        {"reduction": "sum"}, {"reduction": "none"}, {"anchors": "peaks"}, {"scales": (1.0,)}, {"num_anchors": 3},
        {"sides": (0,)}, {"sides": ()},
    ]  # fmt: skip
    arguments = ragged(0, frames=21)
    found = []
    for _ in range(CALLS):
        repeated.clear()
        found.append([loss_and_gradients(arguments, **{**plain, **case}) for case in cases])
    assert len(repeated) == 2 * len(cases) - 1  # without sides there is no backward
    for later in found[1:]:
        for one, other in zip(found[0], later, strict=True):
            assert all(map(torch.equal, one, other))
    losses = [tuple(case[0].flatten().tolist()) for case in found[0][:10]]
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize("level", ["token", "global"])
def test_layouts_are_told_apart(level, repeated):
    """Calls of one shape by turns: none takes the strides or the dtype of another."""
    changes = [
        lambda speech, text, *sides: (speech, text, *sides),
        lambda speech, text, *sides: (speech.repeat_interleave(2, 1)[:, ::2], text, *sides),
        lambda speech, text, *sides: (speech, torch.cat((text, text), 2)[:, :, :16], *sides),
        lambda speech, text, *sides: (*(x.nan_to_num(0)[:1].expand_as(x) for x in (speech, text)), *sides),
        lambda *tensors: (*tensors[:4], tensors[4].double(), tensors[5]),
        lambda *tensors: (*tensors[:3], None, *tensors[4:]),
    ]
    arguments = [x.nan_to_num(0) if x.is_floating_point() else x for x in ragged(0)]
    expected = [unrecorded(change(*arguments), level=level) for change in changes]
    for _ in range(CALLS):
        for change, correct in zip(changes, expected):
            assert all(map(torch.equal, loss_and_gradients(change(*arguments), level=level), correct))
    assert len(repeated) >= len(changes) * (CALLS - 2)


@pytest.mark.parametrize("hooks", [(torch.clone, lambda x: x), (lambda x: x, misaligned), (lambda x: x, strided)])
@pytest.mark.parametrize("level", LEVELS)
def test_repeated_calls_whose_saved_tensors_are_moved(level, hooks, repeated):
    expected = loss_and_gradients(ragged(1), level=level)
    for call in range(CALLS):
        with torch.autograd.graph.saved_tensors_hooks(*(hooks if call % 2 else (lambda x: x, lambda x: x))):
            found = loss_and_gradients(ragged(1), level=level)
        assert all(map(torch.equal, found, expected))


def test_few_calls_are_kept(monkeypatch, repeated):
    """Sizes that change at each step: nothing is recorded, and what is remembered has an end."""
    monkeypatch.setattr(recorded_calls, "MOST_CALLS", 8)
    for frames in range(10, 40):
        pad_loss(torch.randn(2, frames, 8), torch.randn(2, 3, 8), level="global", backend="triton")
        assert len(recorded_calls._calls) <= 8
    assert not repeated and set(recorded_calls._calls.values()) == {None}


class Operators(TorchDispatchMode):
    """The operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names.add(function.name())
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("priors", [True, False], ids=["priors", "uniform"])
@pytest.mark.parametrize("level, temperature", LOSSES)
def test_what_can_be_repeated_runs_no_operator(level, temperature, priors, monkeypatch):
    """Besides those that allocate or view memory; a launch is all else that there is to repeat."""
    monkeypatch.setattr(common, "_launch", lambda *arguments: None)
    grad, (speech, text, speech_mask, text_mask, speech_prior, text_prior) = torch.ones(()), ragged(0, priors=priors)
    options = LossOptions(level, temperature, "mean", SpanSelection(None, (0.5, 1.0, 2.0), "peaks"))
    sides = Positions("speech_prior", speech, speech_mask, speech_prior), Positions("", text, text_mask, text_prior)
    monkeypatch.setattr(memory, "torch", torch)  # what fills fresh memory is set aside
    with Operators() as operators:
        loss, record = BACKEND.loss_forward(LossRequest(*sides, None, options))
        BACKEND.loss_backward(grad, record, Needed(True, True))
    assert "aten::empty.memory_format" in operators.names
    assert operators.names <= {"aten::empty.memory_format", "aten::empty_strided"}


def test_memory_is_free_once_nothing_reads_it(monkeypatch):
    made, alive = [], []

    def run():
        first, second, out = (memory.empty((size,), torch.float32, given.device) for size in (300, 200, 100))
        for pair in ((given, first), (first, second), (second, out)):
            if memory.thread.recorder is not None:
                memory.thread.recorder.launched(start, [*map(memory.operand, pair)], takes_buffers=False)
        return (out,), "constant"

    def start(*pointers):
        gc.collect()
        alive.append([size for size, tensor in made if tensor() is not None])

    def empty_strided(shape, strides, **options):
        tensor = allocate(shape, strides, **options)
        made.append((shape[0], weakref.ref(tensor)))
        return tensor

    given, allocate = torch.zeros(5), torch.empty_strided
    monkeypatch.setattr(torch, "empty_strided", empty_strided)
    for _ in range(3):
        outputs, constant = recorded_calls.call(run, "kind", [given])
        assert constant == "constant" and [x.shape for x in outputs] == [(100,)]
    assert alive == [[300, 200, 100], [300, 200, 100], [200, 100]]


@pytest.mark.parametrize("level", LEVELS)
def test_the_self_test_repeats_calls(level, monkeypatch, repeated):
    """What a GPU repeats wrongly is found at its first use."""
    monkeypatch.setattr(self_test, "_found", {})
    assert self_test.failure(BACKEND, "alignment_forward", torch.device("cpu"), torch.float32, level) is None
    assert len(repeated) >= 2 * (1 if level == "global" else 2)  # forward and backward, hard and soft


def test_kinds_of_one_hash(repeated):
    """Neither is taken for the other, and the one that is recorded is repeated."""

    class Kind(str):
        def __hash__(self):
            return 0

    given, ran = torch.zeros(5), []

    def run(kind):
        ran.append(kind)
        out = memory.empty((3,), torch.float32, given.device)
        if memory.thread.recorder is not None:
            memory.thread.recorder.launched(lambda *pointers: None, [memory.operand(out), 1], takes_buffers=False)
        return (out,), kind

    for _ in range(CALLS):
        for kind in ("one", "other"):
            assert recorded_calls.call(lambda kind=kind: run(kind), Kind(kind), [given])[1] == kind
    assert len(repeated) == CALLS - 1 and ran == ["one", "other"] + ["one"] * (CALLS - 1)
