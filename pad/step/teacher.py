"""The frozen text encoder: token embeddings and priors of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from pad.priors.recorder import record_significance
from pad.step.teacher_cache import Key, TeacherCache, open_cache
from pad.tokenization import tokenize


class Teacher:
    """A frozen text encoder; its outputs carry no gradient.

    layer: which hidden state is the token embedding, -1 the last, 0 the input embeddings.
    cache: where to keep the outputs for each text: "memory", a folder, or "" for nowhere.
    """

    def __init__(self, model, tokenizer, with_prior: bool, layer: int = -1, cache: str = ""):
        self.model, self.tokenizer = model, tokenizer
        self.with_prior, self.layer = with_prior, layer
        self.mean: torch.Tensor | None = None
        self._cache: TeacherCache | None = open_cache(cache, model, f"layer {layer}, prior {with_prior}", with_prior)

    @torch.no_grad()
    def __call__(self, text_ids, text_attention_mask, text_mask):
        """(embeddings [B, N, D], prior [B, N] or None) of ids [B, N]; with the masks of the Collator.

        Positions count from the first token: padding on the left gives the embeddings of padding on the right.
        """
        order = text_attention_mask.long().argsort(dim=1, descending=True, stable=True)
        inputs = [tensor.gather(1, order) for tensor in (text_ids, text_attention_mask, text_mask)]
        embeddings, prior = self._run(*inputs) if self._cache is None else self._look_up(*inputs)
        embeddings = torch.empty_like(embeddings).scatter_(1, order[:, :, None].expand_as(embeddings), embeddings)
        prior = None if prior is None else torch.empty_like(prior).scatter_(1, order, prior)
        return embeddings if self.mean is None else embeddings - self.mean, prior

    def _run(self, text_ids, text_attention_mask, text_mask):
        inputs = {"input_ids": text_ids, "attention_mask": text_attention_mask}
        options = {"output_hidden_states": self.layer != -1}
        prior = None
        if self.with_prior:
            # [CLS] and [SEP] attract much of the attention: they are masked, and the rest is renormalized.
            with record_significance(self.model, text_mask) as record:
                outputs = self.model(**inputs, **options)
            prior = record.prior()
        else:
            outputs = self.model(**inputs, **options)
        return outputs.last_hidden_state if self.layer == -1 else outputs.hidden_states[self.layer], prior

    def _look_up(self, text_ids, text_attention_mask, text_mask):
        lengths = text_attention_mask.sum(dim=1).tolist()
        device = text_ids.device
        precision = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        keys = [
            Key(tuple(ids[:length]), tuple(real[:length]), str(precision))
            for ids, real, length in zip(text_ids.tolist(), text_mask.tolist(), lengths)
        ]
        found = [self._cache.get(key, device) for key in keys]
        missing = [number for number, entry in enumerate(found) if entry is None]
        if missing:
            embeddings, priors = self._run(text_ids[missing], text_attention_mask[missing], text_mask[missing])
            for row, number in enumerate(missing):
                length = lengths[number]
                prior = None if priors is None else priors[row, :length].clone()
                found[number] = (embeddings[row, :length].clone(), prior)
                self._cache.put(keys[number], *found[number])
        embeddings = _padded([embedding for embedding, _ in found], text_ids.shape[1])
        return embeddings, _padded([prior for _, prior in found], text_ids.shape[1]) if self.with_prior else None

    def write_cache(self) -> None:
        """Write what a cache in a folder has not written yet, as happens when the process ends; raises OSError."""
        if self._cache is not None:
            self._cache.write()

    @torch.no_grad()
    def center(self, transcripts: Sequence[str], device, batch_size: int = 64) -> torch.Tensor:
        """Subtract the mean token embedding [D] of these transcripts, which is returned, from all later outputs.

        The token embeddings of an encoder share a large common part, which a cosine counts as similarity.
        """
        self.mean = None
        total, count = torch.zeros((), dtype=torch.float64, device=device), 0
        for first in range(0, len(transcripts), batch_size):
            text, mask = tokenize(self.tokenizer, transcripts[first : first + batch_size])
            text, mask = text.to(device), mask.to(device)
            embeddings, _ = self(text["input_ids"], text["attention_mask"], mask)
            total = total + embeddings[mask].double().sum(dim=0)
            count += int(mask.sum())
        self.mean = (total / max(count, 1)).float()
        return self.mean


def _padded(rows: list[torch.Tensor], length: int) -> torch.Tensor:
    """Rows of the same width, with zeros up to this length."""
    padded = pad_sequence(rows, batch_first=True)
    missing = padded.new_zeros(len(rows), length - padded.shape[1], *padded.shape[2:])
    return torch.cat([padded, missing], dim=1)
