"""The frozen text encoder: token embeddings and priors of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from pad.errors import UserError
from pad.priors.recorder import record_significance
from pad.step.teacher_cache import TeacherCache, open_cache

# If more of the tokens than this are unknown, the tokenizer is of another language, or missing.
_UNKNOWN = 0.9


def tokenize(tokenizer, transcripts: Sequence[str]):
    """(the tokenizer's output, mask [B, N] bool of the tokens that are text) for texts padded to one length."""
    text = tokenizer(
        list(transcripts),
        padding=True,
        truncation=True,
        # A fast tokenizer may state a huge number where it has no limit.
        max_length=min(tokenizer.model_max_length, 512),
        return_special_tokens_mask=True,
        return_tensors="pt",
    )
    return text, text["attention_mask"].bool() & ~text["special_tokens_mask"].bool()


def check_tokens(tokenizer, transcripts: Sequence[str]) -> None:
    """Raise UserError if the tokenizer knows almost none of the words of these texts."""
    tokens = [token for text in transcripts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    unknown = sum(token == tokenizer.unk_token_id for token in tokens)
    if unknown > _UNKNOWN * len(tokens) or not tokens:
        raise UserError(
            f"teacher: its tokenizer knows {len(tokens) - unknown} of {len(tokens)} tokens of the transcripts, such as "
            f"{transcripts[0][:60]!r}; expected a tokenizer for their language and case, with all its files"
        )


class Teacher:
    """A frozen text encoder; its outputs carry no gradient.

    layer: which hidden state is the token embedding, -1 the last, 0 the input embeddings.
    cache: where to keep the outputs for each text: "memory", a folder, or "" for nowhere.
    """

    def __init__(self, model, tokenizer, with_prior: bool, layer: int = -1, cache: str = ""):
        self.model, self.tokenizer = model, tokenizer
        self.with_prior, self.layer = with_prior, layer
        self.mean: torch.Tensor | None = None
        self._cache: TeacherCache | None = open_cache(cache, model, f"layer {layer}, prior {with_prior}")

    @torch.no_grad()
    def __call__(self, text_ids, text_attention_mask, text_mask):
        """(embeddings [B, N, D], prior [B, N] or None) of ids [B, N]; with the masks of the Collator."""
        if self._cache is None:
            embeddings, prior = self._run(text_ids, text_attention_mask, text_mask)
        else:
            embeddings, prior = self._look_up(text_ids, text_attention_mask, text_mask)
        return embeddings if self.mean is None else embeddings - self.mean, prior

    def _run(self, text_ids, text_attention_mask, text_mask):
        inputs = {"input_ids": text_ids, "attention_mask": text_attention_mask}
        options = {"output_hidden_states": self.layer != -1}
        prior = None
        if self.with_prior:
            # [CLS] and [SEP] attract much of the attention: they are masked, and the rest is renormalised.
            with record_significance(self.model, text_mask) as record:
                outputs = self.model(**inputs, **options)
            prior = record.prior()
        else:
            outputs = self.model(**inputs, **options)
        return outputs.last_hidden_state if self.layer == -1 else outputs.hidden_states[self.layer], prior

    def _look_up(self, text_ids, text_attention_mask, text_mask):
        lengths = text_attention_mask.sum(dim=1).tolist()
        keys = [tuple(row[:length]) for row, length in zip(text_ids.tolist(), lengths)]
        found = [self._cache.get(key, text_ids.device) for key in keys]
        missing = [number for number, entry in enumerate(found) if entry is None]
        if missing:
            embeddings, priors = self._run(text_ids[missing], text_attention_mask[missing], text_mask[missing])
            for row, number in enumerate(missing):
                length = lengths[number]
                prior = None if priors is None else priors[row, :length].clone()
                found[number] = (embeddings[row, :length].clone(), prior)
                self._cache.put(keys[number], *found[number])
        embeddings = pad_sequence([embedding for embedding, _ in found], batch_first=True)
        if not self.with_prior:
            return embeddings, None
        return embeddings, pad_sequence([prior for _, prior in found], batch_first=True)

    @torch.no_grad()
    def centre(self, transcripts: Sequence[str], device, batch_size: int = 64) -> torch.Tensor:
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
