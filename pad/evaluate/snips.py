"""Audio SNIPS in s3prl's layout: sentences as characters, with tags around the values of slots."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from pad.data import AUDIO_SUFFIXES
from pad.errors import UserError
from pad.evaluate.corpora import Example, Splits, read_lines
from pad.evaluate.slots import slots_of
from pad.progress import say

SPEAKERS = {
    "train": ("Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"),
    "valid": ("Aditi", "Amy", "Geraint", "Nicole"),
    "test": ("Brian", "Emma", "Raveena", "Russell"),
}
_PUNCTUATION = "?!.,;-–…"


def _spell(word: str) -> str:
    if word == "&":
        return "AND"
    if all(character in _PUNCTUATION for character in word):
        return ""
    plain = unicodedata.normalize("NFKD", word).upper().replace('"', "")
    return "".join(character for character in plain if not unicodedata.combining(character))


def spell_with_tags(words: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    """The characters of words separated by spaces, with B-slot before and E-slot after the value of each slot.

    labels: one per word, a slot or O; adjacent words of one slot form one value. Punctuation is left out.
    """
    spelt = [(_spell(word), label) for word, label in zip(words, labels, strict=True)]
    spelt = [(word, label) for word, label in spelt if word]
    tokens: list[str] = []
    for place, (word, label) in enumerate(spelt):
        inside = label != "O"
        if inside and (place == 0 or spelt[place - 1][1] != label):
            tokens.append(f"B-{label}")
        tokens.extend(word)
        last = place == len(spelt) - 1
        if inside and (last or spelt[place + 1][1] != label):
            tokens.append(f"E-{label}")
        if not last:
            tokens.append(" ")
    return tuple(tokens)


def _loses_a_slot(tokens: Sequence[str]) -> bool:
    """Whether there is a slot in whose value no character is one of those that are decoded."""
    return len(slots_of(tokens)) < sum(token.startswith("B-") for token in tokens)


def _parse(line: str, where: str) -> tuple[str, list[str], list[str]]:
    sentence, tab, labels = line.partition("\t")
    words, tags = sentence.split(" "), labels.strip().split(" ")
    # The name comes before BOS; the intent takes the place of the label of EOS.
    framed = len(words) > 3 and words[1] == "BOS" and words[-1] == "EOS"
    if not tab or not framed or len(tags) != len(words) - 1:
        raise UserError(
            f"{where}: expected NAME BOS WORD ... EOS, a tab, O, a label for each word, and the intent; got {line!r}"
        )
    return words[0], words[2:-1], tags[1:-1]


def _known_slots(path: Path) -> list[str] | None:
    if not path.is_file():
        return None
    return sorted({line.strip() for line in read_lines(path, "sf")} - {"", "O"})


def snips(folder: Path) -> tuple[Splits, list[str]]:
    """The splits of SUPERB's speakers, and the slots, in alphabetical order.

    FOLDER/all.iob.snips.txt has the sentences; the audio of NAME, which is SPEAKER-snips-SPLIT-NUMBER, is
    anywhere below FOLDER/SPLIT; the slots are those of FOLDER/slots.txt or, without it, those that occur. A label is
    the result of `spell_with_tags`. Raises UserError for what is missing or malformed, and for an unknown slot.
    """
    listing = folder / "all.iob.snips.txt"
    known = _known_slots(folder / "slots.txt")
    audio = {
        split: {
            path.stem: path
            for path in sorted((folder / split).rglob("*"))
            if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")
        }
        for split in SPEAKERS
    }
    examples: dict[str, list[Example]] = {split: [] for split in SPEAKERS}
    occurring: set[str] = set()
    for number, line in enumerate(read_lines(listing, "sf"), start=1):
        if not line.strip():
            continue
        where = f"{listing}:{number}"
        name, words, labels = _parse(line, where)
        speaker, _, rest = name.partition("-")
        split = next((split for split in SPEAKERS if rest.startswith(f"snips-{split}-")), None)
        if split is None:
            raise UserError(f"{where}: expected SPEAKER-snips-{{train,valid,test}}-NUMBER, got {name!r}")
        if speaker not in SPEAKERS[split]:
            continue
        if name not in audio[split]:
            raise UserError(f"{where}: no audio file {name}.wav below {folder / split}")
        for label in set(labels) - {"O"}:
            if known is not None and label not in known:
                raise UserError(f"{where}: unknown slot {label!r}; {folder / 'slots.txt'} does not list it")
            occurring.add(label)
        examples[split].append(Example(audio[split][name], spell_with_tags(words, labels), where))
    for split, found in examples.items():
        if not found:
            expected = ", ".join(SPEAKERS[split])
            raise UserError(f"{listing}: no sentence of the split {split}; expected the speakers {expected}")
    lost = [example.where for found in examples.values() for example in found if _loses_a_slot(example.label)]
    if lost:
        say(f"sf: {len(lost)} sentences, the first of {lost[0]}, have slots whose value has none of the letters A to "
            "Z; they count as sentences without these slots")  # fmt: skip
    slots = sorted(occurring) if known is None else known
    return Splits(examples["train"], examples["valid"], examples["test"]), slots
