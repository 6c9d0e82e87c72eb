"""Objectives: what a preset is, and what a run may change of it."""

import pytest
import torch

pytest.importorskip("transformers")

from pad.align.config import AlignConfig  # noqa: E402
from pad.cli import main  # noqa: E402
from pad.distill.config import DistillConfig  # noqa: E402
from pad.errors import UserError  # noqa: E402
from pad.step.objective import PRESETS, objective  # noqa: E402
from pad_kernels import pad_loss, select_spans  # noqa: E402


@pytest.fixture
def batch():
    """speech, text, masks and priors of two utterances of different lengths."""
    generator = torch.Generator().manual_seed(0)
    speech, text = (torch.randn(2, length, 6, generator=generator) for length in (19, 4))
    speech_mask, text_mask = (torch.arange(longest) < torch.tensor([[longest], [longest - 2]]) for longest in (19, 4))
    priors = [torch.rand(mask.shape, generator=generator) * mask for mask in (speech_mask, text_mask)]
    return speech, text, speech_mask, text_mask, *(prior / prior.sum(dim=1, keepdim=True) for prior in priors)


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_given_is_the_preset(preset):
    assert objective(preset) == PRESETS[preset]


def test_an_unknown_preset_is_refused():
    with pytest.raises(UserError, match="preset: 'pad' is unknown; expected one of pad-glob"):
        objective("pad")


def test_what_is_given_replaces_the_preset():
    goal = objective("pad-slocal", 0.2, (0, 2), (0.7, 0.3), "peaks", False, 0.5, False)
    assert (goal.temperature, goal.prior_layers, goal.anchors, goal.text_prior) == (0.2, (0, 2), "peaks", False)
    assert goal.prior_layer_weights == (0.7, 0.3)
    assert (goal.prior_exponent, goal.pooling_prior, goal.speech_prior) == (0.5, False, True)


@pytest.mark.parametrize(
    "preset, options",
    [
        ("slocal-soft", {"prior_layers": (0,)}), ("no-prior", {"prior_layer_weights": (1.0,)}),
        ("glob", {"prior_exponent": 0.5}), ("slocal", {"anchors": "peaks"}), ("slocal", {"pooling_prior": False}),
        ("pad-glob", {"temperature": 0.1}), ("pad-glob", {"anchors": "topk"}), ("pad-glob", {"pooling_prior": False}),
        ("pad-tlocal", {"anchors": "stride"}), ("early-tlocal-soft", {"pooling_prior": False}),
    ],
)  # fmt: skip
def test_what_would_have_no_effect_is_refused(preset, options):
    (name,) = options
    with pytest.raises(UserError, match=f"{name}: has no effect with the preset {preset}, which is of the level"):
        objective(preset, **options)


def test_a_preset_without_priors_takes_what_it_uses():
    goal = objective("slocal", temperature=0.3, anchors="stride", text_prior=True)
    assert (goal.temperature, goal.anchors, goal.text_prior) == (0.3, "stride", True)


def test_commands_begin_with_the_preset_that_won():
    assert DistillConfig("s", "t", "d", "o").preset == AlignConfig("s", "t", "a").preset == "early-slocal-soft"


def test_layers_of_a_preset_give_way_with_their_weights():
    early = PRESETS["early-slocal-soft"]
    assert objective("early-slocal-soft") == early and early.prior_layer_weights is not None
    goal = objective("early-slocal-soft", prior_layers=(0, 1))
    assert (goal.prior_layers, goal.prior_layer_weights) == ((0, 1), None)
    goal = objective("early-slocal-soft", prior_layers=(1, 0), prior_layer_weights=(2.0, 1.0))
    assert (goal.prior_layers, goal.prior_layer_weights) == ((1, 0), (2.0, 1.0))
    for preset in ("pad-slocal-soft", "early-slocal-soft"):
        with pytest.raises(UserError, match=r"prior_layer_weights: got \(1.0, 2.0\) and prior_layers"):
            objective(preset, prior_layer_weights=(1.0, 2.0))
    early.check_depth(3)
    with pytest.raises(UserError, match=r"prior_layers: got \(0, 1, 2\), expected layers of the student, which has 2"):
        early.check_depth(2)


@pytest.mark.parametrize("preset", ["pad-slocal-soft", "pad-tlocal-soft", "pad-glob"])
def test_an_exponent_flattens_the_prior(preset, batch):
    speech, text, speech_mask, text_mask, speech_prior, text_prior = batch
    changed = {} if preset == "pad-glob" else {"temperature": 0.3}
    found = objective(preset, prior_exponent=0.5, **changed)(*batch)
    goal = PRESETS[preset]
    expected = pad_loss(
        speech, text, speech_mask, text_mask, speech_prior.sqrt(), text_prior, level=goal.level, temperature=0.3
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    assert float(found) != pytest.approx(float(objective(preset, **changed)(*batch)), rel=1e-4)


def test_a_prior_for_anchors_alone_weighs_no_frame(batch):
    speech, text, speech_mask, text_mask, speech_prior, text_prior = batch
    goal = objective("pad-slocal-soft", anchors="peaks", text_prior=False, pooling_prior=False)
    spans = select_spans(speech_prior, speech_mask, text_mask.sum(dim=1), anchors="peaks")
    expected = pad_loss(speech, text, speech_mask, text_mask, spans=spans, temperature=0.1)
    assert float(goal(*batch)) == pytest.approx(float(expected), rel=1e-6)
    assert float(goal(*batch)) != pytest.approx(float(objective("slocal-soft")(*batch)), rel=1e-4)


@pytest.mark.parametrize("preset, options", [("pad-slocal-soft", {}), ("slocal-soft", {}), ("pad-tlocal", {}),
                                             ("pad-slocal", {"pooling_prior": False, "anchors": "peaks"})])  # fmt: skip
def test_units_are_those_of_the_loss(preset, options, batch):
    speech, text, speech_mask, text_mask, speech_prior, text_prior = batch
    goal = objective(preset, **options)
    spans, prior = goal.units(speech_prior if goal.speech_prior else None, speech_mask, text_mask.sum(dim=1))
    expected = pad_loss(
        speech, text, speech_mask, text_mask, prior, text_prior if goal.text_prior else None, level=goal.level,
        temperature=goal.temperature, spans=spans,
    )  # fmt: skip
    assert float(goal(*batch)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--prior-exponent", "0"], "prior_exponent: expected a number above 0, at most 10, got 0.0"),
        (["--prior-exponent", "nan"], "prior_exponent: expected a number above 0"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, options, message):
    required = ["--student", "a", "--teacher", "b", "--data", "c", "--output", str(tmp_path / "run")]
    assert main(["distill", *required, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
