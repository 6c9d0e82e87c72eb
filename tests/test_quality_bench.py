"""The quality benchmark: every configuration trains and is scored, runs are kept and compared by pairs."""

import json
import random

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("espeakng_loader")

from matplotlib import image  # noqa: E402
from student_models import WIDTH, new_student  # noqa: E402

from benchmarks import plot, quality_bench, quality_drawings, quality_run  # noqa: E402
from benchmarks.quality_comparison import compare, read_runs  # noqa: E402
from benchmarks.quality_configurations import CONFIGURATIONS, CONTROL, against  # noqa: E402
from benchmarks.quality_corpus import Flat, Speech, inputs_of  # noqa: E402
from benchmarks.quality_recipe import Recipe, split_of  # noqa: E402
from pad.demo.corpus import SpokenSentence, SpokenWord  # noqa: E402
from pad.demo.sentences import INTENTS  # noqa: E402
from pad.students import load_student  # noqa: E402

RECIPE = Recipe(steps=3, batch_size=4, sentences=10)


def speech(seed, count=10, intents=(None,)):
    """Noise as features, words of a fifth of a second with random embeddings."""
    source, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    counts = [source.randint(2, 4) for _ in range(count)]
    items = []
    for number, words in enumerate(counts):
        spoken = tuple(SpokenWord(f"w{seed}-{number}-{w}", w / 5, (w + 1) / 5, True) for w in range(words))
        text = " ".join(word.text for word in spoken)
        items.append(SpokenSentence("", text, words / 5, words=spoken, intent=intents[number % len(intents)]))
    features = Flat.of([torch.randn(20 * words, 20, generator=generator).half() for words in counts])
    text = Flat.of([torch.randn(words, WIDTH, generator=generator) for words in counts])
    prior = Flat.of([torch.full((words,), 1 / words) for words in counts])
    return Speech(items, features, tokens=text, token_prior=prior, words=text)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "whisper"
    checkpoint = str(new_student("whisper", encoder_layers=3).save(folder))
    names = ("free-train", "free-dev", "free-test", "prompts-dev", "prompts-test", "librivox-test")
    corpus = {name: speech(number) for number, name in enumerate(names)}
    corpus |= {f"commands-{split}": speech(9, 24, list(INTENTS)) for split in ("train", "dev", "test")}
    return quality_run.Bench(corpus, checkpoint, RECIPE)


QUICK = (
    "undistilled", "shuffled", "random", "span paper", "span energy peaks", "span without silence",
    "span undistilled peaks", "global early",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGURATIONS]
)
def test_every_configuration_runs(bench, name):
    found = bench.run(CONFIGURATIONS[name], seed=0)
    assert set(found["scores"]) == {
        "words, synthetic", "sentences, synthetic", "words, prompts", "sentences, prompts", "intents, synthetic",
    }  # fmt: skip
    assert found["split"] == "dev" and np.isfinite(list(found["rates"].values())).all()
    assert (found["loss"] is None) == (name == "undistilled")


def test_a_seed_gives_one_run_and_test_seeds_are_scored_on_test(bench):
    first, again, other = (bench.run(CONFIGURATIONS["span"], seed) for seed in (100, 100, 101))
    assert first["scores"] == again["scores"] and first["loss"] == again["loss"] != other["loss"]
    assert first["split"] == "test" and "words, librivox" in first["scores"]
    assert (split_of(99), split_of(100)) == ("dev", "test")


def test_training_changes_the_layers_and_not_the_convolutions(bench):
    student, before = load_student(bench.checkpoint), load_student(bench.checkpoint).encoder.state_dict()
    student.freeze_convolutions()
    bench.distill(student.encoder, CONFIGURATIONS["span"], seed=0)
    changed = {name for name, value in student.encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert any("layers.0.fc1" in name for name in changed) and not any("conv" in name for name in changed)


def test_kept_features_are_what_the_front_end_gives(bench):
    student = load_student(bench.checkpoint)
    generator = np.random.default_rng(0)
    waveforms = [generator.standard_normal(320 * frames, dtype=np.float32) for frames in (31, 40)]
    rows = [student.front_end([row]).inputs["input_features"][0].T.half() for row in waveforms]
    inputs, mask = inputs_of(Speech([], Flat.of(rows)), [0, 1])
    expected, frames = student.front_end(waveforms)
    assert torch.equal(mask, frames) and torch.equal(inputs["attention_mask"], expected["attention_mask"])
    torch.testing.assert_close(inputs["input_features"], expected["input_features"], atol=1e-3, rtol=0)


def test_silence_and_energy():
    features = torch.zeros(1, 20, 8)
    features[..., 4:6] = -1.0  # 40 dB below the rest
    relative = quality_run.energy(features)
    torch.testing.assert_close(relative[0].log10(), torch.tensor([0.0, 0.0, -4.0, 0.0]))
    assert quality_run.voiced(features).tolist() == [[True, True, False, True]]


def test_every_prior_is_compared_with_none_and_with_the_control():
    assert against("span early peaks") == ("span", CONTROL) and against(CONTROL) == ("span",)
    assert against("span") == () and against("token paper") == ("token",) and against("shuffled") == ("span",)


@pytest.fixture
def folder(tmp_path):
    """Runs of two configurations, the second of which finds one word more in most utterances, and of one alone."""
    generator, trials = np.random.default_rng(0), np.full(40, 5.0)

    def keep(name, seed, hits):
        score = {"hits": hits.tolist(), "trials": trials.tolist(), "chance": (trials / 5).tolist()}
        run = {"configuration": name, "seed": seed, "split": split_of(seed), "recipe": {"steps": 3},
               "scores": {"words, synthetic": score}}  # fmt: skip
        quality_bench.run_file(tmp_path, name, seed).write_text(json.dumps(run))

    for seed in (0, 1, 2):
        hits = generator.binomial(3, 0.5, 40).astype(float)
        keep("span", seed, hits)
        keep("span early peaks", seed, hits + (generator.random(40) < 0.7))
    keep("token", 1, hits)
    return tmp_path


def test_runs_are_compared_by_pairs(folder):
    splits = {split: compare(runs) for split, runs in read_runs(folder).items()}
    rows = {row["configuration"]: row["measures"]["words, synthetic"] for row in splits["dev"]}
    assert splits["test"] == [] and list(rows) == ["span", "span early peaks", "token"]
    found = rows["span early peaks"]["differences"]["span"]
    assert found["verdict"] == "better" and found["interval"][0] > 0 and found["seeds"] == [0, 1, 2]
    assert found["difference"] == pytest.approx(rows["span early peaks"]["rate"] - rows["span"]["rate"])
    assert rows["span"]["differences"] == rows["token"]["differences"] == {}


def test_tables_and_picture(folder, tmp_path):
    rows = compare(read_runs(folder)["dev"])
    machine = {"cpu": "a processor", "threads": 1, "versions": {"torch": "2"}}
    recipe = {"steps": 3, "batch_size": 4, "learning_rate": 3e-4}
    content = {"machine": machine, "recipe": recipe, "splits": {"dev": rows, "test": []}}
    assert quality_drawings.quality(content).count("\n| ") == 5
    verdicts = quality_drawings.quality_verdicts(content)
    assert "| span early peaks |" in verdicts and "**+0." in verdicts
    plot.plot_quality(content, tmp_path / "quality.png")
    assert image.imread(tmp_path / "quality.png")[..., :3].std() > 0.02


def test_rows_for_the_front_page():
    found = {"rate": 0.7, "interval": (0.6, 0.8), "chance": 0.2, "trials": 150}
    measures = dict.fromkeys(("words, synthetic", "words, prompts", "sentences, synthetic"), found)
    row = {"configuration": "span", "seeds": [0], "measures": measures}
    control = row | {"configuration": "shuffled", "measures": dict.fromkeys(measures, found | {"rate": 0.25})}
    content = {"machine": {"cpu": "a processor", "threads": 2}, "recipe": {"steps": 400}}
    rows = quality_drawings.summary_rows(content | {"splits": {"dev": [control, row], "test": []}})
    assert len(rows) == 3 and "right one of 150 sentences first" in rows[2][0]
    assert rows[0][1:] == [
        "0.700 (0.600-0.800); shuffled 0.250, chance 0.200", "a processor, 2 threads; dev split, 1 seed",
    ]  # fmt: skip
    on_test = quality_drawings.summary_rows(content | {"splits": {"dev": [control, row], "test": [row]}})
    assert "test split" in on_test[0][2] and "shuffled" not in on_test[0][1]
    assert quality_drawings.summary_rows(content | {"splits": {"dev": [control], "test": []}}) == []


def test_runs_of_two_recipes_are_not_mixed(folder):
    path = quality_bench.run_file(folder, "span", 0)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"recipe": {"steps": 4}}))
    with pytest.raises(SystemExit, match="runs of different recipes"):
        read_runs(folder)


def test_only_missing_runs_are_made(tmp_path, monkeypatch):
    made = []

    class Kept:
        def __init__(self, *arguments):
            pass

        def run(self, configuration, seed):
            made.append((configuration, seed))
            return {"rates": {}, "seconds": {}}

    monkeypatch.setattr("benchmarks.quality_corpus.build", lambda *arguments: {})
    monkeypatch.setattr("benchmarks.quality_run.Bench", Kept)
    (tmp_path / "whisper").mkdir()
    quality_bench.run_missing(tmp_path, ["span"], [0], tmp_path)
    quality_bench.run_missing(tmp_path, ["span", "token"], [0, 1], tmp_path)
    names = {value: name for name, value in CONFIGURATIONS.items()}
    assert [(names[configuration], seed) for configuration, seed in made] == [
        ("span", 0), ("token", 0), ("span", 1), ("token", 1),
    ]  # fmt: skip
