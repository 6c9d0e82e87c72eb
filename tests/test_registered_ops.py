"""The registered ops check what they get, whoever calls them: a wrong shape would have a kernel write beyond its
memory. And the compiled library takes its arguments by name."""

import pytest
import torch

OPS = torch.ops.pad_kernels
FLOAT, DOUBLE, HALF, BOOL, INT32, INT64 = (
    torch.float32, torch.float64, torch.float16, torch.bool, torch.int32, torch.int64,
)  # fmt: skip


def alignment_forward():
    return {
        "speech": torch.randn(2, 9, 8),
        "text": torch.randn(2, 4, 8),
        "frame_weights": torch.rand(2, 9),
        "token_mask": torch.ones(2, 4, dtype=BOOL),
        "start": torch.zeros(2, 5, dtype=INT32),
        "end": torch.full((2, 5), 3, dtype=INT32),
        "temperature": 0.1,
    }


def alignment_backward():
    arguments = {"grad_similarity": torch.randn(2, 4), **alignment_forward()}
    similarity, unit, log_normalizer = OPS.alignment_forward(**alignment_forward(), backend="reference")
    saved = {"similarity": similarity, "unit": unit, "log_normalizer": log_normalizer}
    return {**arguments, **saved, "need_speech": True, "need_text": True}


def pooled_distance_forward():
    return {
        "speech": torch.randn(2, 9, 8),
        "text": torch.randn(2, 4, 8),
        "frame_weights": torch.rand(2, 9),
        "token_weights": torch.rand(2, 4),
    }


def pooled_distance_backward():
    saved = {"difference": torch.randn(2, 8), "totals": torch.rand(2, 2)}
    needed = {"need_speech": True, "need_text": True}
    return {"grad": torch.randn(2), **pooled_distance_forward(), **saved, **needed}


def significance():
    return {
        "query": torch.randn(2, 3, 6, 4),
        "key": torch.randn(2, 3, 6, 4),
        "mask": torch.ones(2, 6, dtype=BOOL),
        "scale": 0.5,
        "lse": torch.randn(2, 3, 6),
    }


def select_spans():
    return {
        "frame_weights": torch.rand(2, 9),
        "frame_mask": torch.ones(2, 9, dtype=BOOL),
        "num_tokens": torch.tensor([3, 2]),
        "num_anchors": torch.tensor([3, 2]),
        "max_anchors": 3,
        "scales": [0.5, 1.0],
        "xi": torch.ones(2, dtype=DOUBLE),
        "anchors": "topk",
    }


ALIGNMENT = (alignment_forward, alignment_backward)
POOLING = (pooled_distance_forward, pooled_distance_backward)
MAKERS = (*ALIGNMENT, *POOLING, significance, select_spans)
TENSORS = [(make, name) for make in MAKERS for name, value in make().items() if isinstance(value, torch.Tensor)]
EACH_TENSOR = pytest.mark.parametrize("make, name", TENSORS, ids=lambda x: getattr(x, "__name__", x))


def refused(make, backend, name, value, *words):
    """The error names the argument and what came."""
    arguments = {**make(), name: value}
    with pytest.raises(ValueError) as caught:
        getattr(OPS, make.__name__)(**arguments, backend=backend)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_what_is_right_is_taken(backend):
    for make in MAKERS:
        getattr(OPS, make.__name__)(**make(), backend=backend)


@EACH_TENSOR
def test_another_batch_size(backend, make, name):
    """As a batch of 1 among others of 2, which once wrote beyond its memory."""
    value = make()[name]
    for other in (value[:1], torch.cat((value, value))):
        with pytest.raises(ValueError, match="got a .* tensor of shape"):
            getattr(OPS, make.__name__)(**{**make(), name: other.contiguous()}, backend=backend)


@EACH_TENSOR
def test_one_dimension_less(backend, make, name):
    with pytest.raises(ValueError, match="got a .* tensor of shape"):
        getattr(OPS, make.__name__)(**{**make(), name: make()[name][0]}, backend=backend)


@EACH_TENSOR
def test_another_length(backend, make, name):
    """All but the batch: every other dimension one longer."""
    value = make()[name]
    for dimension in range(1, value.dim()):
        longer = torch.cat((value, value.narrow(dimension, 0, 1)), dimension)
        with pytest.raises(ValueError, match="got a .* tensor of shape"):
            getattr(OPS, make.__name__)(**{**make(), name: longer}, backend=backend)


@EACH_TENSOR
def test_another_kind_of_numbers(backend, make, name):
    value = make()[name]
    other = INT64 if value.is_floating_point() else FLOAT
    with pytest.raises(ValueError, match="got a .* tensor of shape"):
        getattr(OPS, make.__name__)(**{**make(), name: value.to(other)}, backend=backend)


@pytest.mark.parametrize(
    "make, name, dtype",
    [
        (alignment_forward, "text", HALF),
        (alignment_forward, "token_mask", torch.uint8),
        (alignment_forward, "start", torch.int16),
        (alignment_backward, "similarity", DOUBLE),
        (alignment_backward, "log_normalizer", HALF),
        (alignment_backward, "unit", INT32),
        (pooled_distance_forward, "text", DOUBLE),
        (pooled_distance_backward, "difference", DOUBLE),
        (pooled_distance_backward, "totals", HALF),
        (significance, "key", HALF),
        (significance, "mask", torch.uint8),
        (significance, "lse", HALF),
        (select_spans, "frame_mask", INT64),
        (select_spans, "num_tokens", INT32),
        (select_spans, "num_anchors", INT32),
        (select_spans, "xi", FLOAT),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_a_dtype_that_would_be_misread(backend, make, name, dtype):
    refused(make, backend, name, make()[name].to(dtype), f"{name}: got a {str(dtype)[6:]} tensor" if name != "start"
            else "spans start: got a int16 tensor")  # fmt: skip


@pytest.mark.parametrize("unit", [-2, 5, 2**40])
@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_units_that_are_not_there(backend, unit, temperature):
    arguments = {**alignment_backward(), "temperature": temperature}
    arguments["unit"] = torch.full((2, 4), unit)
    with pytest.raises(ValueError, match=f"unit: got values from {unit} to {unit}, expected -1 to 4"):
        OPS.alignment_backward(**arguments, backend=backend)


def test_options(backend):
    for temperature in (-1.0, float("nan"), float("inf"), 1e-39):
        refused(alignment_forward, backend, "temperature", temperature, "temperature: got")
    refused(alignment_forward, backend, "end", None, "spans end: got None")
    refused(select_spans, backend, "max_anchors", -1, "max_anchors: got -1")
    refused(select_spans, backend, "max_anchors", 2**40, "max_anchors: got 1099511627776")
    refused(select_spans, backend, "scales", [], "scales: got []")
    refused(select_spans, backend, "scales", [1.0, -1.0], "scales: got [1.0, -1.0]")
    refused(select_spans, backend, "anchors", "random", "anchors: got 'random'")


def test_counts_beyond_the_room_are_cut(backend):
    counts = torch.tensor([2**40, -7])
    start, end = OPS.select_spans(**{**select_spans(), "num_anchors": counts}, backend=backend)
    assert start.shape == (2, 6) and (end[0] > start[0]).all() and (end[1] == start[1]).all()
    assert (start >= 0).all() and (end <= 9).all()


def test_arguments_of_the_compiled_library_have_names(native):
    """Two pointers cannot be taken for one another, nor one be forgotten."""
    from pad_kernels import _native

    start = torch.zeros(3, dtype=INT32)
    arguments = {"start": start.data_ptr(), "end": start.data_ptr(), "count": 3, "frames": 1}
    assert _native.spans_fit(**arguments)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _native.spans_fit(*arguments.values())
    with pytest.raises(TypeError, match="missing argument: end"):
        _native.spans_fit(**{name: value for name, value in arguments.items() if name != "end"})
    with pytest.raises(TypeError, match="does not know"):
        _native.spans_fit(**arguments, begin=0)
