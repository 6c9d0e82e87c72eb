"""Attention with dropout on a CPU: output, gradients and log-sum-exp by their definition, with the weights it drew."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend

pytest.importorskip("transformers")

from pad.priors import dropout as attention  # noqa: E402
from pad.priors.attention import _attend  # noqa: E402
from pad.priors.dropout import attend_with_dropout  # noqa: E402

MASKS = {
    "no mask": None,
    "ragged": torch.arange(150) < torch.tensor([[150], [70]]),
    "holes": torch.arange(150) % torch.tensor([[3], [2]]) > 0,
}


@pytest.fixture(params=[150 * 2 * 7, 2**20], ids=["chunks of 7", "chunks of 38"])
def chunks(request, monkeypatch):
    monkeypatch.setattr(attention, "_SCORES", request.param)


def make(dtype=torch.float64):
    tensors = torch.randn(4, 2, 150, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    *inputs, grad_output = (x.to(dtype).transpose(1, 2) for x in tensors)  # as a layer gives them: strided
    return [x.requires_grad_() for x in inputs], grad_output


def definition(query, key, value, mask, dropout, scale, seed):
    """The same with the whole map in memory."""
    torch.manual_seed(seed)
    chunks = attention._Chunks(query, key, mask, dropout, scale, int(torch.randint(2**63 - 1, ())))
    kept = torch.empty(*query.shape[:3], key.shape[2], dtype=torch.bool)
    for batch, rows in chunks:
        part = kept[batch, :, rows]
        kept[batch, :, rows] = chunks.kept(part.shape)
    scores = query @ key.transpose(-1, -2) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1) * kept / (1 - round(dropout * 2**16) / 2**16)
    return weights.to(value.dtype) @ value, scores.logsumexp(-1), kept


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_value_and_gradients(chunks, mask):
    inputs, grad_output = make()
    mask = None if mask is None else mask[:, None, None]
    torch.manual_seed(5)
    output, normalizer = attend_with_dropout(*inputs, mask, 0.3, 0.4)
    found = [output, normalizer, *torch.autograd.grad(output, inputs, grad_output)]
    output, normalizer, kept = definition(*inputs, mask, 0.3, 0.4, seed=5)
    wanted = [output, normalizer, *torch.autograd.grad(output, inputs, grad_output)]
    for one, other in zip(found, wanted):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)
    assert abs(kept.double().mean() - 0.7) < 0.01
    assert not found[1].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precision(dtype):
    inputs, grad_output = make(dtype)
    mask = MASKS["ragged"][:, None, None]
    torch.manual_seed(5)
    output, normalizer = attend_with_dropout(*inputs, mask, 0.1, 0.4)
    found = [output, *torch.autograd.grad(output, inputs, grad_output)]
    assert all(x.dtype == dtype for x in found) and normalizer.dtype == torch.float32
    inputs = [x.detach().double().requires_grad_() for x in inputs]
    output, _, _ = definition(*inputs, mask, 0.1, 0.4, seed=5)
    wanted = [output, *torch.autograd.grad(output, inputs, grad_output.double())]
    for one, other in zip(found, wanted):
        assert (one.double() - other).norm() < 4 * torch.finfo(dtype).eps * other.norm()


def test_without_dropout_it_is_attention():
    inputs, _ = make()
    mask = MASKS["holes"][:, None, None]
    plain, _ = attend_with_dropout(*inputs, mask, 1e-12, 0.4)
    assert torch.allclose(plain, torch.nn.functional.scaled_dot_product_attention(*inputs, mask, scale=0.4))


def test_each_call_draws_anew_and_a_seed_repeats_it():
    inputs, _ = make()
    torch.manual_seed(3)
    outputs = [attend_with_dropout(*inputs, None, 0.5, 0.4)[0] for _ in range(2)]
    torch.manual_seed(3)
    again = attend_with_dropout(*inputs, None, 0.5, 0.4)[0]
    assert torch.equal(outputs[0], again) and not torch.equal(*outputs)


def test_all_dropped_and_no_keys_give_zero():
    inputs, grad_output = make()
    mask = MASKS["ragged"].clone()
    mask[0] = False
    output, _ = attend_with_dropout(*inputs, mask[:, None, None], 0.2, 0.4)
    assert (output[0] == 0).all() and (output[1] != 0).any()
    assert all(x.isfinite().all() and (x[0] == 0).all() for x in torch.autograd.grad(output, inputs, grad_output))
    output, _ = attend_with_dropout(*inputs, None, 1.0, 0.4)
    assert (output == 0).all()
    assert all((x == 0).all() for x in torch.autograd.grad(output, inputs, grad_output))


def test_double_backward_is_refused():
    inputs, grad_output = make()
    output, _ = attend_with_dropout(*inputs, None, 0.2, 0.4)
    (first,) = torch.autograd.grad(output, inputs[0], grad_output.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("chosen", ["FLASH_ATTENTION", "CUDNN_ATTENTION"])
def test_the_chosen_attention_gives_the_log_sum_exp_where_no_mask_is(chosen, monkeypatch):
    """On tensors of a GPU that is not there: shapes and dtypes alone."""
    monkeypatch.setattr("pad.priors.attention._chosen", lambda *inputs: getattr(SDPBackend, chosen))
    with FakeTensorMode():
        query, key, value = (torch.empty(2, 4, 50, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        output, normalizer = _attend(query, key, value, None, 0.1, 0.125)
    assert output.shape == query.shape and output.dtype == torch.bfloat16
    assert normalizer.shape == (2, 4, 50) and normalizer.dtype == torch.float32


@pytest.mark.parametrize("chosen, dtype, capability", [
    ("MATH", torch.float32, (9, 0)),  # as where a user has switched the fused kernels off
    ("EFFICIENT_ATTENTION", torch.bfloat16, (7, 5)),
])  # fmt: skip
def test_without_a_fused_kernel_attention_is_torchs_own(chosen, dtype, capability, monkeypatch):
    monkeypatch.setattr("pad.priors.attention._chosen", lambda *inputs: getattr(SDPBackend, chosen))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *inputs, scale: "torch's own")
    with FakeTensorMode():
        query, key, value = (torch.empty(2, 4, 50, 64, device="cuda", dtype=dtype) for _ in range(3))
        assert _attend(query, key, value, None, 0.0, 0.125) == ("torch's own", None)
