"""The recorder and `pad distill` on a GPU; run with `pytest -m gpu`."""

import pytest
import torch
from gpu_device import DEVICE, DRY_RUN, GPU, few, needs_gpu

pytest.importorskip("transformers")

pytest.importorskip("soundfile")

from audio_files import write_chapter  # noqa: E402
from test_pad_distill import STUDENT, losses, save_teacher  # noqa: E402
from test_pad_significance import from_maps, speech_batch, speech_model  # noqa: E402
from torch.nn.attention import SDPBackend  # noqa: E402
from transformers import BertConfig, BertModel, Wav2Vec2Config, Wav2Vec2Model  # noqa: E402

from pad import record_significance  # noqa: E402
from pad.cli import main  # noqa: E402
from pad.priors.attention import _attend  # noqa: E402

pytestmark = needs_gpu
SENTENCES = ("NORTHANGER ABBEY", "THIS WORK WAS FINISHED IN THE YEAR", "AND INTENDED FOR", "IMMEDIATE PUBLICATION")
# Heads of 64, as the models in use have, and of 12, which the device's fast attention does not take.
HEADS = pytest.mark.parametrize("width, heads", few([(256, 4), (48, 4)]), ids=lambda value: str(value))


@HEADS
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize("norm", few(["group", "layer"]))
def test_speech(norm, masked, width, heads):
    model = speech_model(hidden_size=width, num_attention_heads=heads, feat_extract_norm=norm).to(DEVICE)
    values, mask, frames = (x.to(DEVICE) for x in speech_batch())
    options = {"attention_mask": mask} if masked else {}
    with torch.no_grad():
        expected, output = from_maps(model, frames, values, **options)
        with record_significance(model, frames) as record:
            found = model(values, **options).last_hidden_state
    assert torch.allclose(record.prior(), expected, rtol=1e-4, atol=1e-6)
    assert torch.allclose(found[frames], output[frames], rtol=1e-3, atol=1e-4)


@HEADS
def test_text_without_special_tokens(width, heads):
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=60, hidden_size=width, num_hidden_layers=3, num_attention_heads=heads,
                                 intermediate_size=64)).eval().to(DEVICE)  # fmt: skip
    ids = torch.randint(5, 60, (3, 17), device=DEVICE)
    mask = torch.arange(17, device=DEVICE) < torch.tensor([[17], [9], [3]], device=DEVICE)
    text = mask.clone()
    text[:, 0] = False
    with torch.no_grad():
        expected, output = from_maps(model, text, ids, attention_mask=mask.long())
        with record_significance(model, text) as record:
            found = model(ids, attention_mask=mask.long()).last_hidden_state
    assert torch.allclose(record.prior(), expected, rtol=1e-4, atol=1e-6)
    assert torch.allclose(found[mask], output[mask], rtol=1e-3, atol=1e-4)


@HEADS
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
def test_gradients_are_those_of_the_model_alone(masked, width, heads):
    values, mask, frames = (x.to(DEVICE) for x in speech_batch())
    options = {"attention_mask": mask} if masked else {}
    gradients = []
    for recorded in (False, True):
        model = speech_model(hidden_size=width, num_attention_heads=heads, attention_dropout=0.0, hidden_dropout=0.0,
                             activation_dropout=0.0, feat_proj_dropout=0.0).train().to(DEVICE)  # fmt: skip
        if recorded:
            with record_significance(model, frames):
                output = model(values, **options).last_hidden_state
        else:
            output = model(values, **options).last_hidden_state
        output[frames].square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[0].norm()


@pytest.mark.parametrize("dtype", few([torch.float16, torch.bfloat16]), ids=str)
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize("chosen", few(["CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "FLASH_ATTENTION"]))
def test_attention_in_half_precision_and_its_log_sum_exp(masked, dtype, chosen, monkeypatch):
    monkeypatch.setattr("pad.priors.attention._chosen", lambda *inputs: getattr(SDPBackend, chosen))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 4, 50, 64, generator=generator).to(DEVICE, dtype).requires_grad_() for _ in range(3)]
    mask = (torch.arange(50) < torch.tensor([[50], [31]])).to(DEVICE)[:, None, None] if masked else None
    output, normalizer = _attend(*inputs, mask, 0.0, 0.125)
    found = torch.autograd.grad(output.double().square().sum(), inputs)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    scores = exact[0] @ exact[1].transpose(-1, -2) * 0.125
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    expected = scores.softmax(-1) @ exact[2]
    wanted = torch.autograd.grad(expected.square().sum(), exact)
    for one, other in zip((output, *found), (expected, *wanted)):
        assert (one.double() - other).norm() <= 1e-2 * other.norm()
    if normalizer is not None:
        assert torch.allclose(normalizer.double(), scores.logsumexp(-1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", few([torch.float16, torch.bfloat16]), ids=str)
def test_autocast_in_training(dtype):
    values, mask, frames = (x.to(DEVICE) for x in speech_batch())
    model = speech_model(hidden_size=256, attention_dropout=0.1).train().to(DEVICE)
    with torch.autocast(DEVICE, dtype), record_significance(model, frames) as record:
        output = model(values, attention_mask=mask).last_hidden_state
    output[frames].float().square().sum().backward()
    prior = record.prior()
    assert prior.dtype == torch.float32 and torch.allclose(prior.sum(1), torch.ones(3, device=DEVICE), atol=1e-3)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_no_array_of_frames_by_frames():
    """Peak memory of the attention layers, forward and backward, far below one layer's attention map."""
    length = 60 if DRY_RUN else 3000
    model = speech_model(hidden_size=256, attention_dropout=0.1).train().to(DEVICE)
    hidden = torch.randn(2, length, 256, device=DEVICE, requires_grad=True)
    frames = torch.arange(length, device=DEVICE) < torch.tensor([[length], [length * 2 // 3]], device=DEVICE)

    def step():
        with record_significance(model, frames) as record:
            output = model.encoder(hidden.clone(), attention_mask=frames)[0]  # it clears the padding in place
        output.sum().backward()
        assert record.prior().shape == (2, length)

    step()  # compiles kernels
    assert GPU.peak_bytes(step) < 2 * 4 * length * length * 4


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A folder of short recordings, made here: a machine with a GPU may have no network."""
    folder = tmp_path_factory.mktemp("speech")
    write_chapter(folder / "train", texts=SENTENCES)
    return folder / "train"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Checkpoints of a student and a teacher with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    Wav2Vec2Model(Wav2Vec2Config(**STUDENT)).save_pretrained(folder / "student")
    words = " ".join(SENTENCES).lower().split()
    return {"student": str(folder / "student"), "teacher": str(save_teacher(folder / "teacher", words, 64))}


@pytest.mark.parametrize("preset", few(["pad-slocal", "pad-tlocal-soft", "pad-glob"]))
@pytest.mark.parametrize("precision", few(["float32", "bfloat16"]))
def test_distillation(models, speech, tmp_path, preset, precision):
    """The same first losses as on the CPU; random draws differ between devices."""
    found = {}
    for device in ("cpu", "auto"):
        output = tmp_path / device
        arguments = [
            "distill", "--student", models["student"], "--teacher", models["teacher"], "--data", str(speech),
            "--output", str(output), "--batch-size", "2", "--device", device, "--max-steps", "4", "--log-every", "1",
            "--learning-rate", "1e-4", "--preset", preset, "--precision", precision,
        ]  # fmt: skip
        assert main(arguments) == 0
        found[device] = losses(output)
    assert found["auto"] == pytest.approx(found["cpu"], rel=0.1)
