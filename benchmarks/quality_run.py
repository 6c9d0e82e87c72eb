"""One run of the quality benchmark: distill with a configuration and a seed, and score the encoder on a split."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from benchmarks.quality_configurations import Configuration, can_run
from benchmarks.quality_corpus import Speech, inputs_of, joined
from benchmarks.quality_objective import Aligned, loss, priors, recorded_layers
from benchmarks.quality_recipe import Recipe, split_of
from pad.demo.corpus import SAMPLING_RATE
from pad.demo.intervals import Counts
from pad.demo.probe import linear_probe, mean_states
from pad.demo.scores import found_intents, found_sentences, found_words
from pad.demo.sentences import INTENTS
from pad.demo.student import random_copy
from pad.demo.words import Encoded
from pad.step.collate import LengthBucketSampler
from pad.students import load_student

HOP = 320  # samples from one of Whisper's frames to the next
_GATE = 2.5  # of log10: 25 dB


class Bench:
    """The speech and the pretrained encoder."""

    def __init__(self, speech: dict[str, Speech], checkpoint: str, recipe: Recipe):
        self.speech, self.checkpoint, self.recipe = speech, checkpoint, recipe

    def run(self, configuration: Configuration, seed: int) -> dict:
        """Distill and score; the result as JSON. Raises ValueError where it would be scored on what it has heard."""
        if not can_run(configuration, seed):
            raise ValueError(f"seed: got {seed}; training on prompts of dev is scored on test, expected 100 or more")
        started = time.perf_counter()
        student = load_student(self.checkpoint)
        random_weights = configuration.weights == "random"
        encoder = random_copy(student, seed) if random_weights else student.encoder
        student.freeze_convolutions()
        losses = self.distill(encoder, configuration, seed) if configuration.distilled else []
        trained = time.perf_counter()
        scores = self.score(encoder, split_of(seed))
        return {
            "seed": seed,
            "split": split_of(seed),
            "recipe": asdict(self.recipe),
            "scores": {name: {part: values.tolist() for part, values in asdict(counts).items()}
                       for name, counts in scores.items()},
            "rates": {name: round(counts.rate, 4) for name, counts in scores.items()},
            "loss": {"first": sum(losses[:5]) / 5, "last": sum(losses[-20:]) / 20} if losses else None,
            "seconds": {"training": round(trained - started, 1), "scoring": round(time.perf_counter() - trained, 1)},
        }  # fmt: skip

    def distill(self, encoder: PreTrainedModel, configuration: Configuration, seed: int) -> list[float]:
        """Train the encoder in place, as `pad distill` does; returns the loss of each step."""
        recipe, objective = self.recipe, configuration.objective
        objective = replace(objective, prior_layers=recorded_layers(configuration))
        random_source = random.Random(seed)
        speech, numbers = self._training(configuration.training, random_source)
        texts = dict(
            zip(numbers, random_source.sample(numbers, len(numbers)) if configuration.pairs == "shuffled" else numbers)
        )
        weights = [weight for weight in encoder.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, recipe.learning_rate, weight_decay=0.0, fused=True)
        warm_up = round(recipe.steps * recipe.warm_up)
        schedule = get_linear_schedule_with_warmup(optimizer, warm_up, recipe.steps)
        undistilled = copy.deepcopy(encoder) if configuration.prior == "undistilled" else None
        encoder.train()
        losses = []
        for batch in self._batches(speech, numbers, seed):
            inputs, mask = inputs_of(speech, batch)
            features = inputs["input_features"]
            recorded = objective.recording(encoder, mask) if configuration.prior == "attention" else nullcontext()
            with torch.autocast("cpu", torch.bfloat16):
                with recorded as record:
                    frames = encoder(**inputs).last_hidden_state.float()
                if undistilled is not None:
                    with torch.no_grad(), objective.recording(undistilled, mask) as record:
                        undistilled(**inputs)
            prior, anchor_prior = priors(configuration, record)
            if configuration.prior == "energy":
                prior = energy(features)
            counted = mask & voiced(features) if configuration.without_silence else mask
            text = [speech.tokens[texts[number]] for number in batch]
            text_prior = pad_sequence([speech.text_prior[texts[number]] for number in batch], batch_first=True)
            lengths = torch.tensor([len(row) for row in text])
            text_mask = torch.arange(int(lengths.max())) < lengths[:, None]
            aligned = Aligned(
                frames, pad_sequence(text, batch_first=True), counted, text_mask, prior, anchor_prior, text_prior
            )
            value = loss(configuration, aligned, len(losses) / recipe.steps)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(weights, recipe.largest_norm)
            optimizer.step()
            schedule.step()
            losses.append(value.item())
        return losses

    def _training(self, kind: str, source: random.Random) -> tuple[Speech, list[int]]:
        """The speech to train on, and which of it; of both kinds as many utterances, the prompts again and again."""
        synthetic, prompts, count = self.speech["free-train"], self.speech["prompts-dev"], self.recipe.sentences
        if kind == "prompts":
            return prompts, list(range(len(prompts.items)))
        if kind == "synthetic":
            return synthetic, source.sample(range(len(synthetic.items)), count)
        first, again = len(synthetic.items), range(count // 2)
        numbers = source.sample(range(first), count // 2)
        return joined(synthetic, prompts), numbers + [first + number % len(prompts.items) for number in again]

    def _batches(self, speech: Speech, numbers: list[int], seed: int) -> Iterator[list[int]]:
        recipe = self.recipe
        sampler = LengthBucketSampler([speech.items[n].duration for n in numbers], recipe.batch_size, seed)
        left = recipe.steps
        while left:
            order = [numbers[place] for place in sampler]
            starts = range(0, len(order) // recipe.batch_size * recipe.batch_size, recipe.batch_size)
            for first in starts[:left]:
                yield order[first : first + recipe.batch_size]
            left -= min(left, len(starts))
            sampler.set_epoch(sampler.epoch + 1)

    def score(self, encoder: PreTrainedModel, split: str) -> dict[str, Counts]:
        """Counts of each measure on a split: words and sentences found, intents heard."""
        encoder.eval()
        scores = {}
        sources = {"synthetic": f"free-{split}", "prompts": f"prompts-{split}", "librivox": f"librivox-{split}"}
        for source, name in sources.items():
            if name not in self.speech:
                continue
            speech = self.speech[name]
            heard, items = encode(encoder, speech), speech.items
            words = [speech.words[number] for number in range(len(items))]
            scores[f"words, {source}"] = found_words(heard, [item.words for item in items], words)
            if source != "librivox":  # of five sentences the right one is too easily found
                scores[f"sentences, {source}"] = found_sentences(heard, words, [item.transcript for item in items])
        labeled = {name: self._labeled(encoder, name) for name in {"train", "dev", split}}
        probe = linear_probe(labeled["train"], labeled["dev"], labeled[split])
        scores["intents, synthetic"] = found_intents(probe, len(INTENTS))
        return scores

    def _labeled(self, encoder: PreTrainedModel, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        speech, intents = self.speech[f"commands-{split}"], list(INTENTS)
        labels = torch.tensor([intents.index(str(item.intent)) for item in speech.items])
        return mean_states(encode(encoder, speech)), labels


def energy(features: torch.Tensor) -> torch.Tensor:
    """The energy of each frame [B, M], from log-mel features [B, 80, 2 M], relative to the loudest one."""
    power = (4 * features).mul(torch.log(torch.tensor(10.0))).exp().sum(dim=1).unflatten(1, (-1, 2)).mean(dim=2)
    return power / power.amax(dim=1, keepdim=True)


def voiced(features: torch.Tensor) -> torch.Tensor:
    """Bool [B, M]: the frames less than 25 dB below the loudest."""
    return energy(features).log10() > -_GATE


@torch.no_grad()
def encode(encoder: PreTrainedModel, speech: Speech, batch_size: int = 64) -> list[Encoded]:
    """The frames of each utterance."""
    order = sorted(range(len(speech.items)), key=lambda number: len(speech.features[number]))
    encoded: dict[int, Encoded] = {}
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        inputs, mask = inputs_of(speech, numbers)
        with torch.autocast("cpu", torch.bfloat16):
            states = torch.stack(encoder(**inputs, output_hidden_states=True).hidden_states).float()
        means = torch.einsum("lbmd,bm->bld", states, mask / mask.sum(dim=1, keepdim=True))
        for row, number in enumerate(numbers):
            frames = int(mask[row].sum())
            centers = torch.arange(frames, dtype=torch.float64) * HOP / SAMPLING_RATE
            encoded[number] = Encoded(states[-1, row, :frames].clone(), centers, means[row].clone())
    return [encoded[number] for number in range(len(order))]
