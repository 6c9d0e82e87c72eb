"""What the quality benchmark compares: each configuration with the hypothesis that it tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.quality_recipe import split_of
from pad.step.objective import PRESETS, Objective

EARLY = (0, 1, 2)  # of tiny.en's four layers; the last is an attention sink


@dataclass(frozen=True)
class Configuration:
    """One way to distill.

    prior: where the speech prior comes from: "attention" of the encoder as it trains, of the "undistilled" encoder, or
    the frames' "energy"; anchor_layers: whose prior chooses the anchors, None for the same; largest_prior: what is
    above so many times the mean of an utterance is cut; prior_warm_up: share of the steps in which the prior grows out
    of a uniform one.
    anchors_per_token: 1 as in the paper; weighed_similarity: the similarity itself is weighed by the prior, before the
    maximum or the softmax; without_silence: frames 25 dB below the loudest take no part.
    training: "synthetic" speech, the "prompts" of dev, or "both", for seeds of the test split alone.
    pairs: "real" or, as a control, "shuffled"; weights: "pretrained" or "random"; distilled: False for the encoder as
    it is.
    """

    hypothesis: str
    objective: Objective = PRESETS["slocal-soft"]
    prior: str = "attention"
    anchor_layers: tuple[int, ...] | None = None
    largest_prior: float | None = None
    prior_warm_up: float = 0.0
    anchors_per_token: int = 1
    weighed_similarity: bool = False
    without_silence: bool = False
    training: str = "synthetic"
    pairs: str = "real"
    weights: str = "pretrained"
    distilled: bool = True


_SPAN, _TOKEN, _GLOBAL = PRESETS["slocal-soft"], PRESETS["tlocal-soft"], PRESETS["glob"]
_PEAKS = replace(_SPAN, speech_prior=True, prior_layers=EARLY, anchors="peaks")
# The same, weighed by the mean prior of voiced frames over that of silent ones before distillation: 1.5, 1.4 and 1.1,
# and below 1 in the last layer (prior_layers.py).
_WEIGHED_PEAKS = PRESETS["early-slocal-soft"]
_EARLY_TOKEN = replace(_TOKEN, speech_prior=True, prior_layers=EARLY)

CONFIGURATIONS: dict[str, Configuration] = {
    # controls
    "undistilled": Configuration("the pretrained encoder as it is", distilled=False),
    "shuffled": Configuration("pairs that do not belong together teach nothing", pairs="shuffled"),
    "random": Configuration("without pretraining as few steps teach little", weights="random"),
    # the question: a prior against none, and against what needs no attention
    "span": Configuration("baseline: spans around evenly spaced anchors, no prior"),
    "span paper": Configuration("the paper's priors help: all layers, topk anchors, both priors",
                                PRESETS["pad-slocal-soft"]),
    "span early peaks": Configuration("early layers are no sinks, peaks do not cluster, no text prior", _PEAKS),
    "span early peaks, anchors only": Configuration("it is the choice of anchors that helps",
                                                    replace(_PEAKS, pooling_prior=False)),
    "span early stride": Configuration("it is the weights of frames that help", replace(_PEAKS, anchors="stride")),
    "span energy peaks": Configuration("control: the frames' amplitude does what attention does",
                                       replace(_PEAKS, prior_exponent=0.5), prior="energy"),
    "span without silence": Configuration("control: leaving out silence does what a prior does", without_silence=True),
    "span early peaks, tempered": Configuration("a flatter prior, p^0.5, keeps more of the speech",
                                                replace(_PEAKS, prior_exponent=0.5)),
    "span undistilled peaks": Configuration("a prior that does not drift as the encoder trains is better",
                                            _PEAKS, prior="undistilled"),
    "span early peaks, cut": Configuration("columns that soak up attention are cut at twice the mean", _PEAKS,
                                           largest_prior=2.0),
    "span early peaks, warm-up": Configuration("the prior should grow as the encoder learns", _PEAKS,
                                               prior_warm_up=0.5),
    "span early peaks, two a token": Configuration("more anchors cover more of the speech", _PEAKS,
                                                   anchors_per_token=2),
    "span weighed layers": Configuration("layers weighed by how much more voiced frames receive than silent ones",
                                         _WEIGHED_PEAKS),
    "span weighed layers, two a token": Configuration("the two that helped the first seed of dev most, together",
                                                      _WEIGHED_PEAKS, anchors_per_token=2),
    "span early peaks, sharpened": Configuration("the prior is nearly even: p^2 says more",
                                                 replace(_PEAKS, prior_exponent=2.0)),
    "span first layer's anchors": Configuration("the first layer knows best where speech is, later ones how much it "
                                                "matters", _PEAKS, anchor_layers=(0,)),
    "span early peaks, weighed similarity": Configuration("the prior weighs the similarities, as the paper's words say",
                                                          _PEAKS, weighed_similarity=True),
    # other speech to train on
    "span on prompts": Configuration("a few minutes of real speech teach more than hours of synthetic speech",
                                     training="prompts"),
    "span on both": Configuration("a few minutes of real speech help beside synthetic speech", training="both"),
    "span early peaks on both": Configuration("a prior matters more where speech is real", _PEAKS, training="both"),
    # which part of the paper's choice hurts
    "span early topk": Configuration("anchors of topk cluster", replace(_PEAKS, anchors="topk")),
    "span all peaks": Configuration("late layers are attention sinks", replace(_PEAKS, prior_layers=None)),
    "span text prior": Configuration("the text prior helps alone", replace(_SPAN, text_prior=True)),
    "span early peaks, text prior": Configuration("the text prior helps beside a good speech prior",
                                                  replace(_PEAKS, text_prior=True)),
    # the other levels
    "token": Configuration("baseline: single frames, no prior", _TOKEN),
    "token paper": Configuration("the paper's priors help single frames", PRESETS["pad-tlocal-soft"]),
    "token early": Configuration("early layers help single frames", _EARLY_TOKEN),
    "token energy": Configuration("control: the frames' amplitude does what attention does",
                                  replace(_TOKEN, speech_prior=True, prior_exponent=0.5), prior="energy"),
    "token without silence": Configuration("control: leaving out silence does what a prior does", _TOKEN,
                                           without_silence=True),
    "token weighed layers": Configuration("layers weighed by how much more voiced frames receive than silent ones",
                                          PRESETS["early-tlocal-soft"]),
    "token early, weighed similarity": Configuration("the prior weighs the similarities, as the paper's words say",
                                                     _EARLY_TOKEN, weighed_similarity=True),
    "global": Configuration("baseline: means of frames and tokens, no prior", _GLOBAL),
    "global paper": Configuration("the paper's priors help the means", PRESETS["pad-glob"]),
    "global early": Configuration("early layers help the means",
                                  replace(_GLOBAL, speech_prior=True, prior_layers=EARLY)),
}  # fmt: skip

# What to run first; the rest by name.
FIRST = (
    "undistilled", "span", "span early peaks", "span paper", "span energy peaks", "span early peaks, anchors only",
)  # fmt: skip
# Need no attention: what a prior of the level has to beat.
CONTROLS = {
    "span": ("span energy peaks", "span without silence"), "token": ("token energy", "token without silence"),
}  # fmt: skip


def can_run(configuration: Configuration, seed: int) -> bool:
    """Whether what it trains on is not what the seed's split scores."""
    return configuration.training == "synthetic" or split_of(seed) == "test"


def against(name: str) -> tuple[str, ...]:
    """What a configuration is compared with: its level without priors and, for a prior of attention, the controls."""
    level = name.split()[0]
    if level not in ("span", "token", "global"):
        return ("span",)
    if CONFIGURATIONS[name].training != "synthetic":
        return tuple(baseline for baseline in ("span", "span on both") if baseline != name)
    uses_attention = CONFIGURATIONS[name].objective.speech_prior and CONFIGURATIONS[name].prior != "energy"
    baselines = (level, *CONTROLS.get(level, ())) if uses_attention else (level,)
    return tuple(baseline for baseline in baselines if baseline != name)
