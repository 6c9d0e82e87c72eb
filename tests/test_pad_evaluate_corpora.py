# ruff: noqa: F811
"""The corpora of `pad evaluate`, and the slots of its slot filling: what is read, what is refused, how it is scored."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

from superb_miniatures import corpora, replace_in, write_commands, write_iemocap, write_snips  # noqa: E402, F401
from torchmetrics.functional.text import edit_distance  # noqa: E402

from pad.errors import UserError  # noqa: E402
from pad.evaluate.corpora import durations, fluent_speech_commands, iemocap, leave_one_session_out  # noqa: E402
from pad.evaluate.slots import Vocabulary, slot_type_f1, slot_value_cer, slots_of  # noqa: E402
from pad.evaluate.snips import snips, spell_with_tags  # noqa: E402


def test_fluent_speech_commands(corpora):
    splits, classes = fluent_speech_commands(Path(corpora["ic"]))
    assert classes == (2, 2, 1)
    assert [len(split) for split in (splits.train, splits.dev, splits.test)] == [8, 4, 4]
    assert [example.label for example in splits.dev] == [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)]
    assert splits.train[5].audio == Path(corpora["ic"]) / "wavs/speakers/train/5.wav"
    assert splits.train[5].where.endswith("train_data.csv:7")
    assert durations(splits.train, 0.1)[2] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("file", "before", "after", "message"),
    [
        ("train", ",action,", ",deed,", "train_data.csv:1: the column action is missing"),
        ("test", "bring,shoes", "bring,cows", "test_data.csv:5: unknown object 'cows'; .* lights, shoes"),
        ("valid", "activate,shoes", "shoes", "valid_data.csv:3: expected 7 columns, got 6"),
        (
            "valid",
            "wavs/speakers/valid/1",
            "gone",
            "valid_data.csv:3: the audio file .*gone.wav does not exist",
        ),
    ],
)
def test_fluent_speech_commands_refused(tmp_path, file, before, after, message):
    folder = write_commands(tmp_path / "fluent")
    path = folder / "data" / f"{file}_data.csv"
    replace_in(path, before, after)
    with pytest.raises(UserError, match=message):
        splits, _ = fluent_speech_commands(folder)
        durations(splits.dev, 0.1)


def test_missing_corpora(tmp_path):
    for read, message in (
        (fluent_speech_commands, "ic: cannot read .*train_data.csv"),
        (iemocap, "er: no evaluation .*Session1"),
        (snips, "sf: cannot read .*all.iob.snips.txt"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path)


def test_iemocap(corpora):
    sessions = iemocap(Path(corpora["er"]))
    assert [[example.label[0] for example in session] for session in sessions] == [[0, 1, 1, 2, 3]] * 5
    first = sessions[2][0]
    assert first.audio.is_file() and first.where.endswith("Ses03F_impro01.txt:3")


def test_five_folds_leave_one_session_out(corpora):
    sessions = iemocap(Path(corpora["er"]))
    folds = leave_one_session_out(sessions, seed=0)
    assert [fold.test for fold in folds] == sessions
    for fold in folds:
        parts = [set(fold.train), set(fold.dev), set(fold.test)]
        assert len(set.union(*parts)) == sum(map(len, parts)) == 25
        assert len(fold.dev) == 4
    assert leave_one_session_out(sessions, seed=0) == folds != leave_one_session_out(sessions, seed=1)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("\tsad\t", "\tglad\t", r"Ses04F_impro01.txt:12: unknown emotion 'glad'; expected one of ang"),
        ("[3.29 - 3.95]", "[3.29 3.95]", r"Ses04F_impro01.txt:12: expected \[START - END\]"),
    ],
)
def test_iemocap_refused(tmp_path, before, after, message):
    path = write_iemocap(tmp_path) / "Session4" / "dialog" / "EmoEvaluation" / "Ses04F_impro01.txt"
    replace_in(path, before, after)
    with pytest.raises(UserError, match=message):
        iemocap(tmp_path)


def test_snips(corpora):
    splits, slots = snips(Path(corpora["sf"]))
    assert slots == ["artist", "genre"]
    assert [len(split) for split in (splits.train, splits.dev, splits.test)] == [3, 3, 3]
    assert splits.train[0].label == (*"PLAY ", "B-artist", *"ADELE", "E-artist")
    assert splits.test[2].label == tuple("BOOK IT")
    assert splits.test[0].where.endswith("all.iob.snips.txt:7")


def test_spelling():
    words = ["Play", ",", "Beyoncé", "&", "Jay", "Z's", "song", "?"]
    labels = ["O", "O", "artist", "artist", "artist", "artist", "album", "album"]
    spelt = spell_with_tags(words, labels)
    artist = ("B-artist", *"BEYONCE AND JAY Z'S", "E-artist")
    assert spelt == (*"PLAY ", *artist, " ", "B-album", *"SONG", "E-album")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("EOS\tO O artist", "EOS O O artist", "snips.txt:1: expected NAME BOS WORD"),
        ("EOS\tO O artist", "EOS\tO O O artist", "snips.txt:1: expected NAME BOS WORD"),
        (
            "Ivy-snips-train-1 ",
            "Ivy-snips-train-9 ",
            "snips.txt:2: no audio file Ivy-snips-train-9.wav below",
        ),
        ("Ivy-snips-train-1 ", "Ivy-train-1 ", "snips.txt:2: expected SPEAKER-snips-"),
        ("Amy-snips", "Nobody-snips", "snips.txt: no sentence of the split valid; .*Aditi, Amy"),
    ],
)
def test_snips_refused(tmp_path, before, after, message):
    path = write_snips(tmp_path) / "all.iob.snips.txt"
    replace_in(path, before, after)
    with pytest.raises(UserError, match=message):
        snips(tmp_path)


def test_snips_list_of_slots(tmp_path):
    write_snips(tmp_path)
    (tmp_path / "slots.txt").write_text("O\nyear\ngenre\nartist")
    assert snips(tmp_path)[1] == ["artist", "genre", "year"]
    (tmp_path / "slots.txt").write_text("O\ngenre\n")
    with pytest.raises(UserError, match="snips.txt:1: unknown slot 'artist'; .*slots.txt"):
        snips(tmp_path)


def test_greedy_decoding_keeps_doubled_letters():
    vocabulary = Vocabulary(["artist"])
    path = ["B-artist", *"AAL", "<blank>", *"LL", "<blank>", "E-artist", "E-artist"]
    numbers = [vocabulary.tokens.index(token) for token in path]
    logits = torch.nn.functional.one_hot(torch.tensor(numbers), len(vocabulary))
    assert vocabulary.decode(logits) == ["B-artist", *"ALL", "E-artist"]
    assert vocabulary.encode(("A", "E-artist", "%")) == [4, len(vocabulary) - 1, 1]


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("PLAY <a THE  BAND a>", [("a", "THE BAND")]),
        ("<a X a> <b Y b> <a Z a>", [("a", "X"), ("b", "Y"), ("a", "Z")]),
        ("<a X <b Y a> b>", [("a", "X Y")]),
        ("<a X <b Y b>", [("b", "Y")]),
        ("X a> <a", []),
        ("<a a>", []),
    ],
)
def test_slots_of(text, slots):
    """<a stands for B-a, a> for E-a."""
    tokens = text.replace("<a", "1").replace("a>", "2").replace("<b", "3").replace("b>", "4")
    tags = {"1": "B-a", "2": "E-a", "3": "B-b", "4": "E-b"}
    assert slots_of([tags.get(token, token) for token in tokens]) == slots


def test_slot_type_f1():
    references = [[("a", "X"), ("b", "Y")], [("a", "X")], [], [], [("a", "X"), ("a", "Z")]]
    hypotheses = [[("a", "Q"), ("c", "Y"), ("d", "")], [], [], [("a", "X")], [("a", "X")]]
    assert slot_type_f1(hypotheses[:1], references[:1]) == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    scores = [slot_type_f1([found], [true]) for found, true in zip(hypotheses, references)]
    assert scores[1:] == [0.0, 1.0, 0.0, 1.0]
    assert slot_type_f1(hypotheses, references) == pytest.approx(sum(scores) / 5)


def test_slot_value_cer():
    references = [[("a", "HELLO"), ("b", "XY")], [("a", "ABC")]]
    hypotheses = [[("a", "ZZZZZ"), ("a", "HELO"), ("c", "JUNK")], [("a", "ABC"), ("a", "AB")]]
    assert slot_value_cer(hypotheses, references) == pytest.approx((1 + 2 + 0) / 10)
    assert slot_value_cer([[]], [[]]) == 0.0


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("", "AB", 2), ("KITTEN", "SITTING", 3), ("FLAW", "LAWN", 2), ("ABC", "ABC", 0)],
)
def test_edit_distance(first, second, distance):
    assert edit_distance(first, second) == edit_distance(second, first) == distance
