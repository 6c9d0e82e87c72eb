"""Bad input: a ValueError that names the argument, what it got and what it wants."""

from decimal import Decimal
from fractions import Fraction

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

SPEECH, TEXT = torch.randn(2, 6, 4), torch.randn(2, 3, 4)
SPANS = (torch.zeros(2, 5, dtype=torch.int32), torch.full((2, 5), 3, dtype=torch.int32))
PRIOR = torch.rand(2, 6)


def bad(call, *words):
    with pytest.raises(ValueError) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize("function", [pad_loss, align, alignment_matrix])
def test_embeddings(function):
    bad(lambda: function(SPEECH[0], TEXT), "speech: got a float32 tensor of shape (6, 4)", "[batch, length,")
    bad(lambda: function(None, TEXT), "speech: got None")
    bad(lambda: function(SPEECH.long(), TEXT), "speech: got a int64 tensor")
    bad(lambda: function(SPEECH, TEXT.tolist()), "text: got")
    bad(lambda: function(SPEECH, TEXT[:1]), "text: got", "(1, 3, 4)", "batch size of speech, 2")
    bad(lambda: function(SPEECH, TEXT[..., :3]), "text: got", "(2, 3, 3)", "width of speech, 4")
    bad(lambda: function(SPEECH[..., :0], TEXT[..., :0]), "text: got", "at least 1")
    bad(lambda: function(SPEECH, TEXT.double()), "speech and text: got torch.float32 and torch.float64")
    bad(lambda: function(SPEECH.half(), TEXT), "torch.float16 and torch.float32")
    bad(lambda: function(SPEECH, TEXT.to("meta")), "text: got", "on meta", "cpu")
    bad(lambda: function(SPEECH.to_sparse(), TEXT), "speech: got a sparse_coo float32 tensor")
    with pytest.raises(ValueError, match="speech: got") as caught:
        function([[0.5] * 1000] * 1000, TEXT)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("function", [pad_loss, align, alignment_matrix])
@pytest.mark.parametrize("name, length", [("speech_mask", 6), ("text_mask", 3)])
def test_masks(function, name, length):
    def call(mask):
        return lambda: function(SPEECH, TEXT, **{name: mask})

    bad(call(torch.ones(2, length + 1)), name, f"({2}, {length + 1})")
    bad(call(torch.ones(2, length)), name, "float32", "bool or integers 0 and 1")
    bad(call(torch.tensor([length, 1])), name, "(2,)", f"({2}, {length})")
    bad(call(torch.full((2, length), 3)), name, "values from 3 to 3", "0 and 1")
    bad(call(torch.full((2, length), -1)), name, "-1")
    bad(call([[1] * length] * 2), name, "[[1, 1")
    bad(call(torch.ones(2, length, dtype=torch.bool, device="meta")), name, "on meta", "cpu")


def test_priors():
    def call(prior, **more):
        return lambda: pad_loss(SPEECH, TEXT, speech_prior=prior, **more)

    bad(call(torch.rand(2, 5)), "speech_prior: got a float32 tensor of shape (2, 5)", "(2, 6)")
    bad(call(torch.ones(2, 6, dtype=torch.int64)), "speech_prior", "int64", "floating")
    bad(call(PRIOR - 2), "speech_prior: got -", "at least 0")
    bad(call(PRIOR * torch.nan), "speech_prior: got NaN")
    bad(call(PRIOR / 0), "speech_prior: got inf")
    bad(call(torch.full((2, 6), 1e38)), "speech_prior: got ", "e+37", "whose sum is a float32")
    bad(call(torch.full((2, 6), 1e39, dtype=torch.float64)), "speech_prior: got 1e+39")
    bad(call(torch.full((2, 6), 1e-46, dtype=torch.float64)), "speech_prior: got 1e-46")
    call(torch.zeros(2, 6))()
    bad(lambda: pad_loss(SPEECH, TEXT, text_prior=-torch.ones(2, 3)), "text_prior: got -1.0")
    bad(lambda: align(SPEECH, TEXT, speech_prior=-PRIOR), "speech_prior")
    bad(lambda: select_spans(-PRIOR, None, 3), "speech_prior")
    real = torch.arange(6).expand(2, 6) < 4
    call(torch.where(real, PRIOR, -1.0), speech_mask=real)()
    call(torch.where(real, PRIOR, torch.nan), speech_mask=real)()


@pytest.mark.parametrize("function", [pad_loss, align, alignment_matrix])
def test_spans(function):
    start, end = SPANS

    def call(*spans):
        return lambda: function(SPEECH, TEXT, spans=spans)

    bad(call(start), "spans", "(start, end)")
    bad(lambda: function(SPEECH, TEXT, spans=start), "spans", "(start, end)")
    bad(call(start, end[:, :4]), "spans end", "(2, 4)", "(2, 5)")
    bad(call(start[:1], end[:1]), "spans start", "(1, 5)")
    bad(call(start[0], end[0]), "spans start", "(5,)")
    bad(call(start.float(), end), "spans start", "float32", "int32 or int64")
    bad(call(start.short(), end), "spans start", "int16")
    bad(call(start, None), "spans end", "None")
    bad(call(start, end + 4), "spans", "0 <= start <= end <= 6")
    bad(call(start - 1, end), "spans", "0 <= start")
    bad(call(end, start), "spans", "start <= end")


def test_options():
    bad(lambda: pad_loss(SPEECH, TEXT, level="word"), "level: got 'word'", "'global', 'token', 'span'")
    bad(lambda: pad_loss(SPEECH, TEXT, reduction="batchmean"), "reduction: got 'batchmean'", "'none'")
    bad(lambda: pad_loss(SPEECH, TEXT, anchors="random"), "anchors: got 'random'", "'peaks'")
    for temperature in (-0.1, 1e-39, float("nan"), float("inf"), "0.1", None, True, torch.tensor([0.1]),
                        torch.tensor(0.1, requires_grad=True)):  # fmt: skip
        bad(lambda: pad_loss(SPEECH, TEXT, temperature=temperature), "temperature: got")  # noqa: B023
        bad(lambda: align(SPEECH, TEXT, temperature=temperature), "temperature: got")  # noqa: B023
    for scales in ((), (1, 0), (-1,), (float("nan"),), 2, ("1",), (True,)):
        bad(lambda: pad_loss(SPEECH, TEXT, scales=scales), "scales: got")  # noqa: B023
    for level in ("token", "global"):
        bad(lambda: pad_loss(SPEECH, TEXT, level=level, spans=SPANS), "spans", f"level='{level}'")  # noqa: B023
        for count in ("3", -1, 2.0, True, 2**63):
            bad(lambda: pad_loss(SPEECH, TEXT, level=level, num_anchors=count), "num_anchors: got")  # noqa: B023
    for name in ("level", "temperature", "num_anchors", "reduction", "anchors", "backend"):
        bad(lambda: PADLoss(**{name: "x"}), f"{name}: got 'x'")  # noqa: B023


@pytest.mark.parametrize(
    "number",
    [10**400, -(10**400), 10**5000, float("inf"), Fraction(10**400, 3), Decimal("NaN"), 2j],
    ids=lambda number: type(number).__name__,
)
def test_numbers_that_no_float_holds(number):
    query = torch.randn(2, 3, 5, 4)
    bad(lambda: pad_loss(SPEECH, TEXT, temperature=number), "temperature: got")
    bad(lambda: align(SPEECH, TEXT, temperature=number), "temperature: got")
    bad(lambda: PADLoss(temperature=number), "temperature: got")
    bad(lambda: pad_loss(SPEECH, TEXT, scales=(1, number)), "scales: got")
    bad(lambda: significance(query, query, scale=number), "scale: got")
    bad(lambda: select_spans(PRIOR, None, 3, xi=number), "xi: got")
    bad(lambda: select_spans(PRIOR, None, number), "num_tokens: got")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([0.1]), torch.tensor(-0.1), torch.tensor(torch.nan), torch.tensor(1), torch.tensor(True),
        torch.tensor(0.1, device="meta"),
    ],
)  # fmt: skip
def test_temperatures_as_tensors(tensor):
    for call in (pad_loss, align, alignment_matrix):
        bad(lambda: call(SPEECH, TEXT, temperature=tensor), "temperature: got")  # noqa: B023


def _nested(value, layout):
    return torch.nested.nested_tensor(list(value), layout=layout)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "odd",
    [
        lambda x: _nested(x, torch.strided), lambda x: _nested(x, torch.jagged), lambda x: x.to_sparse(),
        lambda x: x[0].to_sparse_csr() if x.dim() == 3 else x.to_sparse_csr() if x.dim() == 2 else x.to_sparse(),
    ],
    ids=["nested", "jagged", "sparse", "csr"],
)  # fmt: skip
def test_tensors_without_strides(odd):
    """In place of every tensor of every function."""
    mask, query, maps = torch.ones(2, 6, dtype=torch.bool), torch.randn(2, 3, 5, 4), torch.rand(2, 5, 5)
    bad(lambda: pad_loss(odd(SPEECH), TEXT), "speech: got a ")
    bad(lambda: pad_loss(SPEECH, odd(TEXT)), "text: got a ")
    bad(lambda: pad_loss(SPEECH, TEXT, odd(mask)), "speech_mask: got a ")
    bad(lambda: pad_loss(SPEECH, TEXT, text_prior=odd(PRIOR[:, :3])), "text_prior: got a ")
    bad(lambda: pad_loss(SPEECH, TEXT, spans=tuple(map(odd, SPANS))), "spans start: got a ")
    bad(lambda: align(odd(SPEECH), TEXT), "speech: got a ")
    bad(lambda: alignment_matrix(SPEECH, odd(TEXT)), "text: got a ")
    bad(lambda: select_spans(odd(PRIOR), None, 3), "speech_prior: got a ")
    bad(lambda: select_spans(None, odd(mask), 3), "speech_mask: got a ")
    bad(lambda: significance(odd(query), query), "query: got a ")
    bad(lambda: significance(query, odd(query)), "key: got a ")
    bad(lambda: significance(query, query, odd(mask[:, :5])), "mask: got a ")
    bad(lambda: significance(query, query, lse=odd(query[..., 0])), "lse: got a ")
    bad(lambda: significance_from_attentions(odd(maps)), "attentions: got a ")
    bad(lambda: significance_from_attentions([maps, odd(maps)]), "attentions: got a ")


@pytest.mark.parametrize("device", [object, object(), 3.5, "nonsense", "cpu:x", ["cpu"], None])
def test_available_backends(device):
    bad(lambda: available_backends(device), "device: got")


@pytest.mark.parametrize("name", ["level", "anchors", "reduction", "backend"])
@pytest.mark.parametrize("value", [["span"], {"span"}, 3, b"span", torch.ones(2), object()])
def test_names_that_are_no_strings(name, value):
    bad(lambda: pad_loss(SPEECH, TEXT, **{name: value}), f"{name}: got")
    bad(lambda: PADLoss(**{name: value}), f"{name}: got")


@pytest.mark.parametrize(
    "count",
    [
        torch.tensor(3), torch.tensor([[1, 2]]), torch.tensor([1.5, 2]), torch.tensor([True, False]),
        torch.tensor([3, -1]), torch.tensor([2**40, 1]), torch.tensor([1, 2]).to_sparse(), 2.5, "3", -1, 2**20 + 1,
    ],
)  # fmt: skip
def test_numbers_of_anchors(count):
    """At the module's construction already."""
    bad(lambda: PADLoss(num_anchors=count), "num_anchors: got")
    bad(lambda: pad_loss(SPEECH, TEXT, num_anchors=count), "num_anchors: got")
    bad(lambda: select_spans(PRIOR, None, 3, num_anchors=count), "num_anchors: got")
    bad(lambda: select_spans(PRIOR, None, count), "num_tokens: got")


@pytest.mark.parametrize("level", ["token", "span", "global"])
@pytest.mark.parametrize("count", [torch.tensor([1, 2], device="meta"), torch.tensor([1, 2, 3]), torch.tensor([1])])
def test_numbers_of_anchors_of_other_batches(level, count):
    """No kernel may read its address."""
    bad(lambda: pad_loss(SPEECH, TEXT, level=level, num_anchors=count), "num_anchors: got a int64 tensor")
    bad(lambda: PADLoss(level, num_anchors=count)(SPEECH, TEXT), "num_anchors: got a int64 tensor")


@pytest.mark.parametrize("value", [[[0.123456789] * 50] * 50, {str(n): [n] * 9 for n in range(99)}, "x" * 10**6])
def test_messages_stay_short(value):
    for name in ("speech", "temperature", "level", "scales"):
        with pytest.raises(ValueError, match=f"{name}: got ") as caught:
            pad_loss(**{"speech": SPEECH, "text": TEXT} | {name: value})
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("most", [torch.tensor(3), torch.tensor([3, 3]), [3], 2.0, None.__class__])
def test_max_anchors(most):
    bad(lambda: select_spans(PRIOR, None, 3, max_anchors=most), "max_anchors: got")


def test_options_are_checked_after_equal_ones_were_taken():
    pad_loss(SPEECH, TEXT, num_anchors=1, scales=(1, 2), temperature=1)
    for wrong in ({"num_anchors": True}, {"num_anchors": 1.0}, {"scales": (True, 2)}, {"temperature": True}):
        options = {"num_anchors": 1, "scales": (1, 2), "temperature": 1} | wrong
        bad(lambda: pad_loss(SPEECH, TEXT, **options), f"{next(iter(wrong))}: got")  # noqa: B023


def test_select_spans():
    bad(lambda: select_spans(None, None, 3), "speech_mask: got None")
    bad(lambda: select_spans(PRIOR[0], None, 3), "speech_prior", "(6,)", "[batch, frames]")
    bad(lambda: select_spans(PRIOR, torch.ones(2, 5, dtype=torch.bool), 3), "speech_mask", "(2, 5)", "(2, 6)")
    bad(lambda: select_spans(PRIOR, None, torch.tensor([1, 2, 3])), "num_tokens", "(3,)", "(2,)")
    bad(lambda: select_spans(PRIOR, None, torch.tensor([1.0, 2.0])), "num_tokens", "float32")
    bad(lambda: select_spans(PRIOR, None, torch.tensor([1, -2])), "num_tokens", "negative")
    bad(lambda: select_spans(PRIOR, None, -1), "num_tokens: got -1")
    bad(lambda: select_spans(PRIOR, None, 2.5), "num_tokens: got 2.5")
    bad(lambda: select_spans(PRIOR, None, True), "num_tokens: got True")
    bad(lambda: select_spans(PRIOR, None, 3, num_anchors="4"), "num_anchors: got '4'")
    bad(lambda: select_spans(PRIOR, None, 3, max_anchors=-1), "max_anchors: got -1")
    bad(lambda: select_spans(PRIOR, None, 3, max_anchors=2.0), "max_anchors: got 2.0")
    bad(lambda: select_spans(PRIOR, None, 3, max_anchors=True), "max_anchors: got True")
    bad(lambda: select_spans(PRIOR, None, 3, num_anchors=2**31), "num_anchors: got 2147483648")
    bad(lambda: select_spans(PRIOR, None, 2**63, num_anchors=2), "num_tokens: got", "int64")
    bad(lambda: select_spans(PRIOR, None, 3, xi=True), "xi: got True")
    bad(lambda: select_spans(PRIOR, None, 3, xi=-1.0), "xi: got -1.0")
    bad(lambda: select_spans(PRIOR, None, 3, xi=torch.tensor([1.0, torch.nan])), "xi", "NaN")
    bad(lambda: select_spans(PRIOR, None, 3, scales=[0]), "scales: got [0]")
    bad(lambda: select_spans(PRIOR, None, 3, anchors="top"), "anchors: got 'top'")


def test_significance():
    query = torch.randn(2, 3, 5, 4)
    bad(lambda: significance(query[0], query), "query", "(3, 5, 4)", "[B, H, T, d]")
    bad(lambda: significance(query, query[:, :, :4]), "key", "(2, 3, 4, 4)", "(2, 3, 5, 4)")
    bad(lambda: significance(query, query.double()), "key", "float64", "float32")
    bad(lambda: significance(query[:, :0], query[:, :0]), "query", "at least one head")
    bad(lambda: significance(query, query, torch.ones(2, 4)), "mask", "(2, 4)")
    bad(lambda: significance(query, query, scale="1"), "scale: got '1'")
    bad(lambda: significance(query, query, scale=float("nan")), "scale: got nan")
    bad(lambda: significance(query, query, scale=True), "scale: got True")
    bad(lambda: significance(query, query, lse=torch.randn(2, 3, 4)), "lse", "(2, 3, 4)", "(2, 3, 5)")
    bad(lambda: significance(query, query, backend="fast"), "backend: got 'fast'")


def test_significance_from_attentions():
    maps = torch.rand(2, 3, 5, 5)
    bad(lambda: significance_from_attentions([]), "attentions", "empty")
    bad(lambda: significance_from_attentions(None), "attentions: got None")
    bad(lambda: significance_from_attentions(maps[:, :0]), "attentions", "(2, 0, 5, 5)")
    bad(lambda: significance_from_attentions(maps[..., :4]), "attentions", "(2, 3, 5, 4)")
    bad(lambda: significance_from_attentions(maps[0, 0]), "attentions", "(5, 5)")
    bad(lambda: significance_from_attentions([maps, maps[..., :4, :4]]), "attentions", "(2, 3, 4, 4)")
    bad(lambda: significance_from_attentions([maps, None]), "attentions: got None")
    bad(lambda: significance_from_attentions([maps, maps.to("meta")]), "attentions", "on meta", "device for all layers")
    bad(lambda: significance_from_attentions(maps, torch.ones(2, 4)), "mask", "(2, 4)")


@pytest.fixture
def distribute():
    """Makes DTensors, in a group of this process alone."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    yield lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)])
    torch.distributed.destroy_process_group()


def test_distributed_tensors_are_refused_by_name(distribute):
    speech, text, prior, query = torch.randn(2, 9, 8), torch.randn(2, 3, 8), torch.rand(2, 9), torch.randn(2, 1, 9, 16)
    mask, one = prior > 0.1, torch.ones(2, 1, dtype=torch.int32)
    calls = {
        "speech": lambda: pad_loss(distribute(speech), text),
        "text": lambda: align(speech, distribute(text)),
        "speech_mask": lambda: pad_loss(speech, text, distribute(mask)),
        "speech_prior": lambda: select_spans(distribute(prior), mask, 3),
        "spans start": lambda: align(speech, text, (distribute(one), one)),
        "num_anchors": lambda: pad_loss(speech, text, num_anchors=distribute(one[:, 0])),
        "query": lambda: significance(distribute(query), query),
        "attentions": lambda: significance_from_attentions(distribute(query.softmax(-1))[..., :9]),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name}: got a DTensor of shape .*, expected"):
            call()
