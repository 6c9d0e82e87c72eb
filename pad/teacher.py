"""The frozen text encoder: token embeddings and priors of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pad.priors import text_prior


class Teacher:
    """Runs a frozen text encoder; what it gives carries no gradient.

    layer: which hidden state is the token embedding, -1 the last, 0 the input embeddings.
    cache: keep the result of each text in memory; the teacher is frozen, so an epoch's results hold for the
    next.
    """

    def __init__(self, model, tokenizer, with_prior: bool, layer: int = -1, cache: bool = False):
        self.model, self.tokenizer = model, tokenizer
        self.with_prior, self.layer = with_prior, layer
        self.mean: torch.Tensor | None = None
        self._cache: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor | None]] | None = (
            {} if cache else None
        )

    @torch.no_grad()
    def __call__(self, text_ids, text_attention_mask, text_mask):
        """(embeddings [B, N, D], prior [B, N] or None) of ids [B, N]; masks as the Collator gives them."""
        if self._cache is None:
            embeddings, prior = self._run(text_ids, text_attention_mask, text_mask)
        else:
            embeddings, prior = self._look_up(text_ids, text_attention_mask, text_mask)
        return embeddings if self.mean is None else embeddings - self.mean, prior

    def _run(self, text_ids, text_attention_mask, text_mask):
        outputs = self.model(
            input_ids=text_ids,
            attention_mask=text_attention_mask,
            output_hidden_states=self.layer != -1,
            output_attentions=self.with_prior,
        )
        embeddings = outputs.last_hidden_state if self.layer == -1 else outputs.hidden_states[self.layer]
        return embeddings, text_prior(outputs.attentions, text_mask) if self.with_prior else None

    def _look_up(self, text_ids, text_attention_mask, text_mask):
        lengths = text_attention_mask.sum(dim=1).tolist()
        keys = [tuple(row[:length]) for row, length in zip(text_ids.tolist(), lengths)]
        missing = [number for number, key in enumerate(keys) if key not in self._cache]
        if missing:
            embeddings, priors = self._run(
                text_ids[missing], text_attention_mask[missing], text_mask[missing]
            )
            for row, number in enumerate(missing):
                length = lengths[number]
                prior = None if priors is None else priors[row, :length].clone()
                self._cache[keys[number]] = (embeddings[row, :length].clone(), prior)
        found = [self._cache[key] for key in keys]
        embeddings = torch.nn.utils.rnn.pad_sequence([embedding for embedding, _ in found], batch_first=True)
        if not self.with_prior:
            return embeddings, None
        return embeddings, torch.nn.utils.rnn.pad_sequence([prior for _, prior in found], batch_first=True)

    @torch.no_grad()
    def centre(self, transcripts: Sequence[str], device, batch_size: int = 64) -> None:
        """From now on subtract the mean token embedding of these transcripts.

        Token embeddings of one encoder share a large common part, which a cosine mistakes for likeness.
        """
        self.mean = None
        total, count = 0.0, 0
        for first in range(0, len(transcripts), batch_size):
            text = self.tokenizer(
                list(transcripts[first : first + batch_size]),
                padding=True,
                truncation=True,
                max_length=min(self.tokenizer.model_max_length, 512),
                return_special_tokens_mask=True,
                return_tensors="pt",
            ).to(device)
            mask = text["attention_mask"].bool() & ~text["special_tokens_mask"].bool()
            embeddings, _ = self(text["input_ids"], text["attention_mask"], mask)
            total = total + embeddings[mask].double().sum(dim=0)
            count += int(mask.sum())
        self.mean = (total / max(count, 1)).float()
