"""The paper's objectives by name, computed by `pad_kernels.pad_loss`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor, nn

from pad.errors import UserError
from pad.priors.record import Record
from pad.priors.recorder import record_significance
from pad_kernels import Spans, pad_loss, select_spans


@dataclass(frozen=True)
class Objective:
    """The options of `pad_loss`; temperature 0 is the paper's hard alignment."""

    level: str
    temperature: float = 0.0
    speech_prior: bool = True
    text_prior: bool = True
    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchors: str = "topk"
    prior_layers: tuple[int, ...] | None = None  # of the student, for the speech prior; None: all, as in the paper
    prior_layer_weights: tuple[float, ...] | None = None  # of each of prior_layers; None: all the same
    prior_exponent: float = 1.0  # the speech prior to this power: below 1 it is flatter
    pooling_prior: bool = True  # whether the speech prior weighs the frames too, and not only chooses the anchors

    def __post_init__(self):
        weights = self.prior_layer_weights
        if weights is not None and len(weights) != len(self.prior_layers or ()):
            raise UserError(
                f"prior_layer_weights: got {weights} and prior_layers {self.prior_layers}, expected one for each layer"
            )

    @contextmanager
    def recording(self, student: nn.Module, frame_mask: Tensor | None = None) -> Iterator[Record | None]:
        """Record the speech prior while the student runs in this context; None where the objective uses none.

        frame_mask: [B, M] bool, the frames that count, None for all.
        """
        if not self.speech_prior:
            yield None
            return
        layers: Collection[int] | Mapping[int, float] | None = self.prior_layers
        if self.prior_layers is not None and self.prior_layer_weights is not None:
            layers = dict(zip(self.prior_layers, self.prior_layer_weights))
        with record_significance(student, frame_mask, layers=layers) as record:
            yield record

    def check_depth(self, layers: int) -> None:
        """Raise UserError where the prior is that of layers which a student of so many layers does not have."""
        if self.speech_prior and self.prior_layers is not None and max(self.prior_layers) >= layers:
            raise UserError(
                f"prior_layers: got {self.prior_layers}, expected layers of the student, which has {layers}, counted "
                "from 0; the preset slocal-soft needs none"
            )

    def __call__(self, speech, text, speech_mask, text_mask, speech_prior=None, text_prior=None):
        """Loss (scalar) of speech [B, M, D] and text [B, N, D]; masks bool, priors [B, M], [B, N] or None."""
        spans = None  # pad_loss chooses them
        if not self.speech_prior:
            speech_prior = None
        elif not self.pooling_prior or self.prior_exponent != 1:
            spans, speech_prior = self.units(speech_prior, speech_mask, text_mask.sum(dim=1), text_mask.shape[1])
        return pad_loss(
            speech,
            text,
            speech_mask,
            text_mask,
            speech_prior=speech_prior,
            text_prior=text_prior if self.text_prior else None,
            level=self.level,
            temperature=self.temperature,
            spans=spans,
            scales=self.scales,
            anchors=self.anchors,
        )

    def units(
        self,
        speech_prior: Tensor | None,
        speech_mask: Tensor,
        num_tokens: Tensor | int,
        most_tokens: int | None = None,
    ) -> tuple[Spans | None, Tensor | None]:
        """What `align` takes for this objective: the spans, None for single frames, and the prior of the frames.

        speech_prior: [B, M] as recorded, or None; num_tokens: real tokens of each utterance [B]; most_tokens: a bound
        on them, without which a GPU is waited for.
        """
        if speech_prior is not None and self.prior_exponent != 1:
            speech_prior = speech_prior.pow(self.prior_exponent)
        if self.level != "span":
            return None, speech_prior
        spans = select_spans(
            speech_prior,
            speech_mask,
            num_tokens,
            scales=self.scales,
            anchors=self.anchors,
            max_anchors=most_tokens,
        )
        return spans, speech_prior if self.pooling_prior else None


_GLOBAL, _TOKEN, _SPAN = Objective("global"), Objective("token"), Objective("span")


def _soft(objective: Objective) -> Objective:
    return replace(objective, temperature=0.1)


def _no_priors(objective: Objective) -> Objective:
    return replace(objective, speech_prior=False, text_prior=False)


def _early(objective: Objective) -> Objective:
    return replace(objective, text_prior=False, prior_layers=(0, 1, 2), prior_layer_weights=(0.4, 0.4, 0.2))


PRESETS: dict[str, Objective] = {
    # the paper's
    "pad-glob": _GLOBAL,
    "pad-tlocal": _TOKEN,
    "pad-slocal": _SPAN,
    # the same alignments, soft
    "pad-tlocal-soft": _soft(_TOKEN),
    "pad-slocal-soft": _soft(_SPAN),
    # baselines: no priors (without a speech prior the anchors of spans are evenly spaced)
    "glob": _no_priors(_GLOBAL),
    "tlocal": _no_priors(_TOKEN),
    "slocal": _no_priors(_SPAN),
    "tlocal-soft": _soft(_no_priors(_TOKEN)),
    "slocal-soft": _soft(_no_priors(_SPAN)),
    # the prior that helped Whisper tiny.en (docs/quality.md): of its early layers, which are no attention sinks
    "early-tlocal-soft": _early(_soft(_TOKEN)),
    "early-slocal-soft": replace(_early(_soft(_SPAN)), anchors="peaks"),
    # the paper's ablations of pad-slocal; without priors it is slocal, by the name that the ablation has there
    "no-prior": _no_priors(_SPAN),
    "no-span-pool": replace(_SPAN, scales=(1.0,)),
    "stride": replace(_SPAN, anchors="stride"),
}


def objective(
    preset: str,
    temperature: float | None = None,
    prior_layers: tuple[int, ...] = (),
    prior_layer_weights: tuple[float, ...] = (),
    anchors: str | None = None,
    text_prior: bool | None = None,
    prior_exponent: float = 1.0,
    pooling_prior: bool = True,
) -> Objective:
    """The objective of a preset with what is given changed; the settings of `pad distill` explain each.

    Raises UserError for an unknown name.
    """
    if preset not in PRESETS:
        raise UserError(f"preset: {preset!r} is unknown; expected one of {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    without_effect = {
        "temperature": temperature is not None and chosen.level == "global",
        "prior_layers": prior_layers and not chosen.speech_prior,
        "prior_layer_weights": prior_layer_weights and not chosen.speech_prior,
        "anchors": anchors and (chosen.level != "span" or not chosen.speech_prior and anchors != "stride"),
        "prior_exponent": prior_exponent != 1 and not chosen.speech_prior,
        "pooling_prior": not pooling_prior and (chosen.level != "span" or not chosen.speech_prior),
    }
    for name, useless in without_effect.items():
        if useless:
            prior = "a" if chosen.speech_prior else "no"
            raise UserError(
                f"{name}: has no effect with the preset {preset}, which is of the level {chosen.level!r} and has "
                f"{prior} speech prior; leave it out, or choose another preset"
            )
    return replace(
        chosen,
        temperature=chosen.temperature if temperature is None else temperature,
        prior_layers=tuple(prior_layers) or chosen.prior_layers,
        prior_layer_weights=tuple(prior_layer_weights) or (None if prior_layers else chosen.prior_layer_weights),
        anchors=anchors or chosen.anchors,
        text_prior=chosen.text_prior if text_prior is None else text_prior,
        prior_exponent=prior_exponent,
        pooling_prior=pooling_prior,
    )
