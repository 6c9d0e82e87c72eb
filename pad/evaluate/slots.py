"""Slots in decoded characters and tags, and their scores against the reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchmetrics.functional.text import edit_distance

CHARACTERS = " 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Slots = list[tuple[str, str]]


class Vocabulary:
    """Numbers for characters and tags; 0 is the CTC blank, 1 stands for any other character."""

    def __init__(self, slots: Sequence[str]):
        tags = [f"{side}-{slot}" for slot in slots for side in "BE"]
        self.tokens = ["<blank>", "<unknown>", *CHARACTERS, *tags]
        self._numbers = {token: number for number, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, tokens: Sequence[str]) -> list[int]:
        """The number of each token."""
        return [self._numbers.get(token, 1) for token in tokens]

    def decode(self, logits: torch.Tensor) -> list[str]:
        """Greedy CTC decoding of [frames, tokens]: each frame's best token, repeats merged, then blanks dropped."""
        best = torch.unique_consecutive(logits.argmax(dim=-1))
        return [self.tokens[number] for number in best.tolist() if number != 0]


def slots_of(tokens: Sequence[str]) -> Slots:
    """(slot, value) of every B-slot that an E-slot of the same slot follows, left to right, not overlapping.

    Tags within a value are left out, and an empty value is no slot.
    """
    found, place = [], 0
    while place < len(tokens):
        if tokens[place].startswith("B-"):
            slot = tokens[place][2:]
            for end in range(place + 1, len(tokens)):
                if tokens[end] == f"E-{slot}":
                    value = "".join(token for token in tokens[place + 1 : end] if token in CHARACTERS)
                    if value := " ".join(value.split()):
                        found.append((slot, value))
                        place = end
                        break
        place += 1
    return found


def slot_type_f1(hypotheses: Sequence[Slots], references: Sequence[Slots]) -> float:
    """Mean over utterances of the F1 of the set of slots found, values and counts aside, in [0, 1].

    An utterance without slots scores 1 if none is found, else 0.
    """
    scores = []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        found, true = {slot for slot, _ in hypothesis}, {slot for slot, _ in reference}
        scores.append(2 * len(found & true) / (len(found) + len(true)) if found or true else 1.0)
    return sum(scores) / max(len(scores), 1)


def slot_value_cer(hypotheses: Sequence[Slots], references: Sequence[Slots]) -> float:
    """Character errors in the values of the reference's slots, over the number of their characters.

    Each reference value is compared with the closest value found for its slot in that utterance, or with "" if there
    is none; further values cost nothing. 0 if the references have no slot.
    """
    errors, characters = 0, 0
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        for slot, value in reference:
            found = [text for other, text in hypothesis if other == slot] or [""]
            errors += int(edit_distance(found, [value] * len(found), reduction="none").min())
            characters += len(value)
    return errors / max(characters, 1)
