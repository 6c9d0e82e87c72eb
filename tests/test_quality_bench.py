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

from benchmarks import plot, prior_layers, quality_bench, quality_drawings, quality_run  # noqa: E402
from benchmarks.quality_comparison import compare, read_runs  # noqa: E402
from benchmarks.quality_configurations import CONFIGURATIONS, CONTROLS, Configuration, against, can_run  # noqa: E402
from benchmarks.quality_corpus import Flat, Speech, inputs_of, joined  # noqa: E402
from benchmarks.quality_objective import Aligned, loss, priors
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
    return Speech(items, features, tokens=text, text_prior=prior, words=text)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "whisper"
    checkpoint = str(new_student("whisper", encoder_layers=4).save(folder))
    names = ("free-train", "free-dev", "free-test", "prompts-dev", "prompts-test", "librivox-test")
    corpus = {name: speech(number) for number, name in enumerate(names)}
    corpus |= {f"commands-{split}": speech(9, 24, list(INTENTS)) for split in ("train", "dev", "test")}
    return quality_run.Bench(corpus, checkpoint, RECIPE)


QUICK = (
    "undistilled", "shuffled", "random", "span paper", "span energy peaks", "span without silence",
    "span undistilled peaks", "global early", "span early peaks, cut", "span first layer's anchors", "span on both",
    "token early, weighed similarity",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGURATIONS]
)
def test_every_configuration_runs(bench, name):
    configuration = CONFIGURATIONS[name]
    seed, split = (0, "dev") if can_run(configuration, 0) else (100, "test")
    found = bench.run(configuration, seed)
    assert set(found["scores"]) - {"words, librivox"} == {
        "words, synthetic", "sentences, synthetic", "words, prompts", "sentences, prompts", "intents, synthetic",
    }  # fmt: skip
    assert found["split"] == split and np.isfinite(list(found["rates"].values())).all()
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


def test_every_prior_is_compared_with_none_and_with_the_controls():
    for level, prior in (("span", "span early peaks"), ("token", "token paper")):
        assert against(prior) == (level, *CONTROLS[level])
        assert [against(control) for control in CONTROLS[level]] == [(level,), (level,)]
        assert against(level) == ()
    assert against("global paper") == ("global",) and against("shuffled") == ("span",)


def test_what_is_scored_was_not_trained_on(bench, tmp_path, monkeypatch):
    on_prompts = CONFIGURATIONS["span on prompts"]
    with pytest.raises(ValueError, match="seed: got 3; .* expected 100 or more"):
        bench.run(on_prompts, 3)
    monkeypatch.setattr("benchmarks.quality_corpus.build", lambda *_: pytest.fail("nothing is to be run"))
    quality_bench.run_missing(tmp_path, ["span on prompts", "span on both"], [0, 1], tmp_path, tmp_path, RECIPE)


def test_joined_speech_holds_both():
    first, second = speech(1), speech(2)
    both = joined(first, second)
    assert len(both.items) == 20 and torch.equal(both.features[3], first.features[3])
    assert torch.equal(both.tokens[13], second.tokens[3]) and torch.equal(both.text_prior[19], second.text_prior[9])


def aligned(speech_prior=True):
    """A ragged batch, with NaN in the padding."""
    generator = torch.Generator().manual_seed(3)
    frames, tokens = torch.tensor([24, 17]), torch.tensor([4, 2])
    speech, text = torch.randn(2, 24, 8, generator=generator), torch.randn(2, 4, 8, generator=generator)
    speech_mask, text_mask = torch.arange(24) < frames[:, None], torch.arange(4) < tokens[:, None]
    speech[~speech_mask], text[~text_mask] = torch.nan, torch.nan
    prior = torch.rand(2, 24, generator=generator).where(speech_mask, 0) if speech_prior else None
    return Aligned(speech, text, speech_mask, text_mask, prior, None, torch.rand(2, 4, generator=generator))


@pytest.mark.parametrize("name", ["span", "span early peaks", "token early", "global early", "span paper"])
def test_a_configuration_without_treatment_has_the_loss_of_its_objective(name):
    batch, configuration = aligned(), CONFIGURATIONS[name]
    expected = configuration.objective(*batch[:5], batch.text_prior)
    assert torch.equal(loss(configuration, batch, 0.7), expected)


def test_treatments_of_the_prior():
    batch, base = aligned(), CONFIGURATIONS["span early peaks"]
    plain, uniform = loss(base, batch, 0), loss(base, batch._replace(speech_prior=batch.speech_mask.float()), 0)
    warm, cut = CONFIGURATIONS["span early peaks, warm-up"], CONFIGURATIONS["span early peaks, cut"]
    torch.testing.assert_close(loss(warm, batch, 0), uniform)
    assert loss(warm, batch, 0.25) != uniform and torch.equal(loss(warm, batch, 0.5), plain)
    assert torch.equal(loss(cut, batch._replace(speech_prior=batch.speech_mask.float()), 0), uniform)
    sink = batch.speech_prior.clone()
    sink[:, 5] = 1e4
    mean = sink.sum(dim=1, keepdim=True) / batch.speech_mask.sum(dim=1, keepdim=True)
    expected = loss(base, batch._replace(speech_prior=sink.minimum(2 * mean)), 0)
    assert torch.equal(loss(cut, batch._replace(speech_prior=sink), 0), expected)
    two, own = CONFIGURATIONS["span early peaks, two a token"], batch._replace(anchor_prior=batch.speech_prior)
    assert loss(two, batch, 0) != plain and torch.equal(loss(base, own, 0), plain)
    other = batch._replace(anchor_prior=batch.speech_prior.flip(1).where(batch.speech_mask, 0) + 0.1)
    assert loss(base, other, 0) != plain


@pytest.mark.parametrize("name", ["span early peaks, weighed similarity", "token early, weighed similarity"])
def test_similarities_weighed_by_a_uniform_prior_are_the_plain_ones(name):
    batch = aligned()
    batch = batch._replace(speech_prior=batch.speech_mask.float(), text_prior=None)
    configuration = CONFIGURATIONS[name]
    found = loss(configuration, batch._replace(speech=batch.speech.requires_grad_()), 1)
    torch.testing.assert_close(found, configuration.objective(*batch[:5], None), atol=1e-6, rtol=1e-5)
    (grad,) = torch.autograd.grad(found, batch.speech)
    assert grad.isfinite().all() and not grad[~batch.speech_mask].any()


def test_layers_are_told_apart_where_it_is_asked():
    layers = torch.rand(4, 2, 6, generator=torch.Generator().manual_seed(0))

    class Recorded:
        prior, layer_priors = staticmethod(lambda: layers[:3].mean(dim=0)), staticmethod(lambda: layers)

    assert priors(Configuration(""), None) == (None, None)
    torch.testing.assert_close(priors(CONFIGURATIONS["span early peaks"], Recorded)[0], layers[:3].mean(dim=0))
    assert priors(CONFIGURATIONS["span weighed layers"], Recorded)[1] is None  # the record weighs them
    early, first = priors(CONFIGURATIONS["span first layer's anchors"], Recorded)
    torch.testing.assert_close(early, layers[:3].mean(dim=0))
    assert torch.equal(first, layers[0])


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


def test_recipes_are_set_side_by_side(folder):
    rows = compare(read_runs(folder)["dev"])
    tried = {"recipe": "400-steps-1e-05", "rows": rows[:1]}
    content = {"recipe": {"steps": 400, "learning_rate": 3e-4}, "splits": {"dev": rows, "test": []}}
    drawn = quality_drawings.quality_sweep(content | {"sweep": [tried]}).splitlines()
    assert [line.split("|")[1:4] for line in drawn[2:]] == [
        [" 400 ", " 0.0003 ", " span "],
        [" 400 ", " 1e-05 ", " span "],
    ]
    assert "No other recipe" in quality_drawings.quality_sweep(content | {"sweep": []})


def test_a_sink_is_told_from_a_layer_that_looks_at_speech():
    voiced = torch.arange(40) % 4 > 0
    looking = torch.where(voiced, 3.0, 1.0) + torch.rand(2, 40, generator=torch.Generator().manual_seed(0)) / 9
    sink = torch.full((1, 40), 0.1)
    sink[0, 8] = 40.0
    priors = torch.cat([looking, sink])
    found = prior_layers.describe(priors / priors.sum(dim=1, keepdim=True), voiced)
    assert found["heaviest"].argmax() == 2 and found["entropy"].argmin() == 2
    assert found["agreement"].argmin() == 2 and found["voiced"].argmin() == 2
    assert found["voiced"][0] == pytest.approx(3, rel=0.1) and found["entropy"][0] <= 1


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
    row = {"configuration": quality_drawings.DEFAULT, "seeds": [0], "measures": measures}
    plain = row | {"configuration": "span", "measures": dict.fromkeys(measures, found | {"rate": 0.65})}
    control = row | {"configuration": "shuffled", "measures": dict.fromkeys(measures, found | {"rate": 0.25})}
    content = {"machine": {"cpu": "a processor", "threads": 2}, "recipe": {"steps": 400}}
    rows = quality_drawings.summary_rows(content | {"splits": {"dev": [control, plain, row], "test": []}})
    assert len(rows) == 3 and "right one of 150 sentences first" in rows[2][0]
    assert rows[0][1:] == [
        "0.700 (0.600-0.800); without a prior 0.650, shuffled 0.250, chance 0.200",
        "a processor, 2 threads; dev split, 1 seed",
    ]  # fmt: skip
    on_test = quality_drawings.summary_rows(content | {"splits": {"dev": [control, plain, row], "test": [plain, row]}})
    assert "test split" in on_test[0][2] and "shuffled" not in on_test[0][1]
    dev = [control, plain, row | {"seeds": [0, 1]}]
    more = quality_drawings.summary_rows(content | {"splits": {"dev": dev, "test": []}})
    assert more[0][2].endswith("dev split, 2 seeds (controls: 1)")
    assert quality_drawings.summary_rows(content | {"splits": {"dev": [control, plain], "test": []}}) == []


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
    quality_bench.run_missing(tmp_path, ["span"], [0], tmp_path, tmp_path, RECIPE)
    quality_bench.run_missing(tmp_path, ["span", "token"], [0, 1], tmp_path, tmp_path, RECIPE)
    names = {value: name for name, value in CONFIGURATIONS.items()}
    assert [(names[configuration], seed) for configuration, seed in made] == [
        ("span", 0), ("token", 0), ("span", 1), ("token", 1),
    ]  # fmt: skip
