"""The teacher's tokenizer: texts to batches of tokens, and what is wrong with a tokenizer for some texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tokenizers import normalizers

from pad.errors import UserError
from pad.progress import say

# If more of the tokens than this are unknown, the tokenizer is of another language, or missing.
_UNKNOWN = 0.9
# If lower case saves more of the pieces than this, the tokenizer is of lower-case or mixed text.
_SAVED = 0.1
# Texts that are read at once.
_TEXTS = 1000


def most_tokens(tokenizer) -> int:
    """How many tokens of a text the teacher reads, special ones among them."""
    # A fast tokenizer may state a huge number where it has no limit.
    return min(tokenizer.model_max_length, 512)


def _read(tokenizer, texts: Sequence[str], **options):
    """The tokenizer's output. In a transcript [SEP] is no special token, but spelled as any other text.

    Tokenizers without the library `tokenizers` would then forget the words that were added to them too.
    """
    return tokenizer(list(texts), split_special_tokens=tokenizer.is_fast, **options)


def tokenize(tokenizer, transcripts: Sequence[str]):
    """(the tokenizer's output, mask [B, N] bool of the tokens that are text) for texts padded to one length.

    Padding is on the right, whatever the tokenizer's padding_side: positions count from the first token.
    """
    text = _read(
        tokenizer,
        transcripts,
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=most_tokens(tokenizer),
        return_special_tokens_mask=True,
        return_tensors="pt",
    )
    return text, text["attention_mask"].bool() & ~text["special_tokens_mask"].bool()


class Fault(NamedTuple):
    """Why a text cannot be used, and the kind of fault."""

    message: str
    reason: str


def fault_of_text(tokenizer, transcripts: Sequence[str]) -> Iterator[Fault | None]:
    """For each text what is wrong: no token that the teacher knows, or more than it reads; None if nothing is."""
    limit, unknown = most_tokens(tokenizer), tokenizer.unk_token_id
    for first in range(0, len(transcripts), _TEXTS):
        texts = list(transcripts[first : first + _TEXTS])
        found = _read(tokenizer, texts, return_special_tokens_mask=True, verbose=False)
        for text, ids, special in zip(texts, found["input_ids"], found["special_tokens_mask"]):
            if all(special):
                message = f"the teacher's tokenizer finds no token in {ascii(text[:40])}; expected the words that are"
                yield Fault(f"{message} spoken", "no token in transcript")
            elif {token for token, other in zip(ids, special) if not other} == {unknown}:
                message = f"the teacher's tokenizer knows no token of {ascii(text[:40])}; expected a tokenizer for the"
                yield Fault(f"{message} language and case, with all its files", "no known token in transcript")
            elif len(ids) > limit:
                message = f"{len(ids)} tokens in {ascii(text[:40])} and what follows, the teacher reads {limit}"
                yield Fault(message, "transcript too long")
            else:
                yield None


def check_tokens(tokenizer, transcripts: Sequence[str]) -> None:
    """Raise UserError if the tokenizer knows almost none of the words of these texts."""
    tokens = [token for ids in _read(tokenizer, transcripts, add_special_tokens=False)["input_ids"] for token in ids]
    unknown = sum(token == tokenizer.unk_token_id for token in tokens)
    if unknown > _UNKNOWN * len(tokens) or not tokens:
        raise UserError(
            f"teacher: its tokenizer knows {len(tokens) - unknown} of {len(tokens)} tokens of the transcripts, such as "
            f"{transcripts[0][:60]!r}; expected a tokenizer for their language and case, with all its files"
        )


def lower_case(tokenizer) -> None:
    """Make the tokenizer read all text in lower case; raises UserError if it has no normalizer to do so."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"lowercase: the tokenizer {type(tokenizer).__name__} has no normalizer; lower the transcripts themselves"
        )
    steps = [normalizers.Lowercase(), backend.normalizer]
    backend.normalizer = normalizers.Sequence([step for step in steps if step is not None])


def warn_of_case(tokenizer, transcripts: Sequence[str]) -> None:
    """Say so if the tokenizer cuts these texts into more pieces than the same texts in lower case."""

    def pieces(texts):
        return sum(len(tokens) for tokens in _read(tokenizer, texts, add_special_tokens=False)["input_ids"])

    found, lower = pieces(transcripts), pieces(text.lower() for text in transcripts)
    if lower < (1 - _SAVED) * found:
        say(
            f"teacher: its tokenizer is cased, and cuts {len(transcripts)} transcripts such as {transcripts[0][:40]!r} "
            f"into {found} pieces, in lower case into {lower}; --lowercase lowers them"
        )
