# ruff: noqa: F811
"""The heads of `pad evaluate`: what they are fed, and how they are trained."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

from superb_miniatures import config_of, corpora, models, waves  # noqa: E402, F401

from pad.evaluate import run  # noqa: E402
from pad.evaluate.config import EvaluateConfig  # noqa: E402
from pad.evaluate.corpora import durations, fluent_speech_commands  # noqa: E402
from pad.evaluate.encoder import Encoder  # noqa: E402
from pad.evaluate.features import all_states, means  # noqa: E402
from pad.evaluate.heads import SlotHead, UtteranceHead, spec_augment  # noqa: E402
from pad.evaluate.run import evaluate  # noqa: E402
from pad.evaluate.snips import snips  # noqa: E402
from pad.evaluate.tasks import (  # noqa: E402
    PUBLISHED_EVAL_EVERY,
    PUBLISHED_STEPS,
    Sentences,
    Split,
    Task,
    slot_task,
)
from pad.evaluate.training import Schedule, train  # noqa: E402
from pad.students import load_student  # noqa: E402


@pytest.mark.parametrize("name", ["group", "layer", "wavlm"])
def test_padding_changes_nothing(models, name):
    encoder = Encoder(models[name], "student")
    alone, together = waves(0.2, 0.5, 0.31), waves(0.2, 0.5, 0.31)
    torch.manual_seed(0)
    intents = UtteranceHead(encoder.layers, encoder.width, (4, 3)).eval()
    slots = SlotHead(encoder.layers, encoder.width, 11, hidden=8).eval()
    states, lengths = encoder(together)
    pooled = states.sum(dim=2) / lengths[:, None, None]
    assert states.shape[:2] == (3, 3) and lengths.tolist() == [8, 23, 14]
    for row, wave in enumerate(alone):
        lonely, (length,) = encoder([wave])
        torch.testing.assert_close(states[row, :, :length], lonely[0], rtol=1e-3, atol=1e-4)
        assert not states[row, :, length:].any()
        for one, many in zip(intents(lonely.mean(dim=2)), intents(pooled)):
            torch.testing.assert_close(one[0], many[row], rtol=1e-3, atol=1e-4)
        one = slots(lonely, lengths[row : row + 1])[0]
        torch.testing.assert_close(one, slots(states, lengths)[row, :length], rtol=1e-3, atol=1e-4)


def test_states_are_those_of_the_checkpoint(models):
    """Every layer, the encoder's normalized output last, no randomness though the checkpoint has some."""
    (wave,) = waves(0.4)
    encoder = Encoder(models["layer"], "student")
    student = load_student(models["layer"])
    model = student.encoder
    inputs = student.front_end.extractor(wave, sampling_rate=16000, return_tensors="pt")["input_values"]
    with torch.no_grad():
        outputs = model.eval()(inputs, output_hidden_states=True)
    states, _ = encoder([wave])
    assert states.shape[1] == encoder.layers == model.config.num_hidden_layers + 1
    expected = torch.stack([*outputs.hidden_states[:-1], outputs.last_hidden_state], dim=1)
    torch.testing.assert_close(states, expected, rtol=1e-3, atol=1e-4)
    assert not encoder.model.training and not any(item.requires_grad for item in encoder.model.parameters())
    assert torch.equal(encoder([wave])[0], states)


def test_mean_first_is_mean_last():
    torch.manual_seed(0)
    head = UtteranceHead(layers=3, width=5, classes=(4,))
    head.layer_sum.scores.data = torch.tensor([0.3, -1.0, 2.0])
    states = torch.randn(2, 3, 7, 5)
    weights = head.layer_sum.scores.softmax(dim=0)
    summed = sum(weight * states[:, layer] for layer, weight in enumerate(weights))
    expected = head.classifiers[0](head.projection(summed).mean(dim=1))
    torch.testing.assert_close(head(states.mean(dim=2))[0], expected)


def test_means_and_kept_states(models, corpora, tmp_path, monkeypatch):
    splits, _ = fluent_speech_commands(Path(corpora["ic"]))
    encoder, seconds = Encoder(models["group"], "student"), durations(splits.train, 0.1)
    found = means(encoder, splits.train, seconds, tmp_path, "", batch_size=3)
    kept = all_states(encoder, splits.train, seconds, "", batch_size=3)
    assert found.shape == (8, 3, 32) and kept[0].dtype == torch.float16
    for row, states in zip(found, kept):
        torch.testing.assert_close(row, states.float().mean(dim=1), rtol=0, atol=2e-3)
    monkeypatch.setattr(Encoder, "__call__", None)
    assert torch.equal(means(encoder, splits.train, seconds, tmp_path, "", batch_size=3), found)
    with pytest.raises(TypeError):
        means(encoder, splits.train[::-1], seconds, tmp_path, "", batch_size=3)


def test_spec_augment_only_in_training():
    torch.manual_seed(0)
    masked = spec_augment(torch.ones(8, 100, 400)) == 0
    assert masked.any() and 0 < masked.double().mean() < 0.5
    whole_frames, whole_features = masked.all(dim=2), masked.all(dim=1)
    assert whole_frames.any() and whole_features.any()
    assert torch.equal(masked, whole_frames[:, :, None] | whole_features[:, None, :])
    assert torch.equal(spec_augment(torch.ones(1, 3, 2)), torch.ones(1, 3, 2))
    head = SlotHead(2, 400, 5, hidden=4)
    states, lengths = torch.randn(2, 2, 100, 400), torch.tensor([100, 60])
    assert torch.equal(head.eval()(states, lengths), head(states, lengths))
    head.train().dropout.p = head.recurrent.dropout = 0.0
    assert not torch.equal(head(states, lengths), head(states, lengths))
    head.spec_augment = False
    assert torch.equal(head(states, lengths), head(states, lengths))


def test_best_weights_on_dev_are_tested(tmp_path):
    """A head whose weight falls by its learning rate at each step, best on dev in the middle."""

    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))
            self.layer_sum = type("", (), {"weights": torch.ones(1)})()

    values = list(range(4))
    task = Task(
        "goodness",
        *(Split(values, [1.0] * 4) for _ in range(3)),
        build=Counter,
        loss=lambda head, items: 1000 * head.weight,
        answers=lambda head, items: [head.weight.item(), head.weight.grad.item()],
        scores=lambda answers: {
            "goodness": -abs(answers[0] + 4.4),
            "weight": answers[0],
            "gradient": answers[1],
        },
    )
    trial = train(task, Schedule(10, 2, 100, 4, 1.0, 0), 1.0, tmp_path, "", torch.device("cpu"))
    assert trial["best_step"] == 4 and trial["test"]["weight"] == pytest.approx(-4, abs=1e-3)
    assert [entry["step"] for entry in trial["history"]] == [2, 4, 6, 8, 10]
    assert trial["dev"]["gradient"] == pytest.approx(1.0)


def test_published_settings():
    assert PUBLISHED_STEPS == {"ic": 200_000, "er": 30_000, "sf": 200_000}
    assert PUBLISHED_EVAL_EVERY == {"ic": 4000, "er": 1000, "sf": 2000}
    config = EvaluateConfig(student="student", output="run", ic="corpus")
    config.check()
    assert (config.lr_sweep, config.batch_size, config.max_grad_norm) == ((1e-4,), 32, 1.0)
    with torch.device("meta"):
        intents, slots = UtteranceHead(13, 768, (6, 14, 4)), SlotHead(13, 768, 100, config.slot_width)
    assert intents.projection.out_features == 256 and slots.projection.out_features == 1024
    layers = slots.recurrent
    assert (layers.num_layers, layers.hidden_size, layers.bidirectional) == (2, 1024, True)


def test_sentence_longer_than_its_audio_costs_nothing(models, corpora):
    encoder = Encoder(models["group"], "student")
    splits, slots = snips(Path(corpora["sf"]))
    examples = [replace(splits.train[0], label=("A",) * 500)]
    split = Split(Sentences(examples, encoder.sampling_rate), [1.0])
    task = slot_task(encoder, [split] * 3, slots, hidden=8, spec_augment=False)
    assert task.loss(task.build(), [split.items[0]]).item() == 0.0


def test_heads_learn_what_is_audible(models, corpora, tmp_path):
    options = {"max_steps": 60, "eval_every": 20}
    result = evaluate(config_of(models, tmp_path / "uttered", ic=corpora["ic"], er=corpora["er"], **options))
    assert result["results"]["ic"]["student"]["metrics"] == {"accuracy": 1.0}
    emotion = result["results"]["er"]["student"]
    folds = [fold["test"]["accuracy"] for fold in emotion["folds"]]
    assert len(folds) == 5 and emotion["metrics"]["accuracy"] == pytest.approx(sum(folds) / 5)
    assert emotion["metrics"]["accuracy"] > 0.9

    options = {"max_steps": 300, "eval_every": 300, "slot_width": 48, "cache_features": True}
    result = evaluate(config_of(models, tmp_path / "spelt", sf=corpora["sf"], **options))
    metrics = result["results"]["sf"]["student"]["metrics"]
    assert metrics["slot_type_f1"] == 1.0 and metrics["slot_value_cer"] < 0.2


def test_encoder_stays_as_it_was(models, corpora, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(run, "Encoder", lambda *args: used.append(Encoder(*args)) or used[-1])
    evaluate(config_of(models, tmp_path / "out", sf=corpora["sf"], max_steps=3))
    before = load_student(models["group"]).encoder
    assert not used[0].model.training
    for old, new in zip(before.parameters(), used[0].model.parameters(), strict=True):
        assert torch.equal(old, new) and new.grad is None
