"""Evaluation as in SUPERB on miniatures of the three corpora, where a tone stands for what is said."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
soundfile = pytest.importorskip("soundfile")

from torchmetrics.functional.text import edit_distance  # noqa: E402
from transformers import SEWConfig, SEWModel, Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel  # noqa: E402

from pad.errors import UserError  # noqa: E402
from pad.evaluate import run, training  # noqa: E402
from pad.evaluate.config import EvaluateConfig  # noqa: E402
from pad.evaluate.corpora import durations, fluent_speech_commands, iemocap, leave_one_session_out  # noqa: E402
from pad.evaluate.encoder import Encoder  # noqa: E402
from pad.evaluate.features import all_states, means  # noqa: E402
from pad.evaluate.heads import SlotHead, UtteranceHead, spec_augment  # noqa: E402
from pad.evaluate.run import evaluate, table  # noqa: E402
from pad.evaluate.slots import Vocabulary, slot_type_f1, slot_value_cer, slots_of  # noqa: E402
from pad.evaluate.snips import snips, spell_with_tags  # noqa: E402
from pad.evaluate.states import save_state  # noqa: E402
from pad.evaluate.tasks import (  # noqa: E402
    PUBLISHED_EVAL_EVERY,
    PUBLISHED_STEPS,
    Sentences,
    Split,
    Task,
    slot_task,
)
from pad.evaluate.training import Schedule, train  # noqa: E402
from pad.students import load_student  # noqa: E402
from pad.versions import git_revision  # noqa: E402

TONES = {0: 300.0, 1: 700.0, 2: 1500.0, 3: 3100.0}
SENTENCES = (
    ("PLAY ADELE", "O artist", (0, 1)),
    ("PLAY JAZZ", "O genre", (0, 2)),
    ("BOOK IT", "O O", (3, 0)),
)


def write_tones(path: Path, *pitches: int, seconds: float = 0.3, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * 16000)) / 16000
    wave = np.concatenate([0.3 * np.sin(2 * np.pi * TONES[pitch] * time) for pitch in pitches])
    noise = 0.01 * np.random.default_rng(seed).standard_normal(len(wave))
    soundfile.write(path, wave + noise, 16000)


def write_commands(folder: Path) -> Path:
    actions, objects = ("activate", "bring"), ("lights", "shoes")
    for split, copies in (("train", 2), ("valid", 1), ("test", 1)):
        rows = [",path,speakerId,transcription,action,object,location"]
        for number in range(4 * copies):
            pitch, path = number % 4, f"wavs/speakers/{split}/{number}.wav"
            write_tones(folder / path, pitch, seconds=0.3 + 0.05 * number, seed=number)
            label = f"{actions[pitch // 2]},{objects[pitch % 2]},none"
            rows.append(f'{number},{path},{split},"Do it, now",{label}')
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / f"{split}_data.csv").write_text("\n".join(rows) + "\n")
    return folder


def write_iemocap(folder: Path) -> Path:
    emotions = (("neu", 0), ("hap", 1), ("exc", 1), ("sad", 2), ("ang", 3), ("fru", 0), ("xxx", 1))
    for session in range(1, 6):
        dialog = f"Ses0{session}F_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for number, (emotion, pitch) in enumerate(emotions):
            turn = f"{dialog}_F{number:03d}"
            lines += [f"[{number}.29 - {number}.95]\t{turn}\t{emotion}\t[2.5000, 2.5000, 2.5000]"]
            lines += ["C-E2:\tNeutral;\t()", ""]
            audio = folder / f"Session{session}" / "sentences" / "wav" / dialog / f"{turn}.wav"
            write_tones(audio, pitch, seconds=0.3 + 0.05 * number, seed=10 * session + number)
        evaluations = folder / f"Session{session}" / "dialog" / "EmoEvaluation"
        evaluations.mkdir(parents=True)
        (evaluations / f"{dialog}.txt").write_text("\n".join(lines) + "\n")
        (evaluations / f"._{dialog}.txt").write_bytes(b"\xff\x00")
    return folder


def write_snips(folder: Path) -> Path:
    lines = []
    for split, speaker in (("train", "Ivy"), ("valid", "Amy"), ("test", "Emma"), ("train", "Brian")):
        for number, (words, labels, pitches) in enumerate(SENTENCES):
            name = f"{speaker}-snips-{split}-{number}"
            lines.append(f"{name} BOS {words} EOS\tO {labels} PlayMusic")
            if speaker != "Brian":
                write_tones(folder / split / f"{name}.wav", *pitches, seconds=0.25 + 0.05 * number)
    (folder / "all.iob.snips.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("corpora")
    return {
        "ic": str(write_commands(folder / "fluent")),
        "er": str(write_iemocap(folder / "iemocap")),
        "sf": str(write_snips(folder / "snips")),
    }


def tiny(config_class, **options):
    return config_class(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        conv_dim=(32, 32, 32), conv_stride=(10, 8, 4), conv_kernel=(20, 16, 8), num_feat_extract_layers=3,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Checkpoints with random weights that would drop layers and mask frames, were they trained."""
    folder = tmp_path_factory.mktemp("models")
    restless = {"layerdrop": 1.0, "mask_time_prob": 0.9, "mask_time_length": 2}
    layered = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    torch.manual_seed(0)
    kinds = {
        "group": Wav2Vec2Model(tiny(Wav2Vec2Config, **restless)),
        "layer": Wav2Vec2Model(tiny(Wav2Vec2Config, **restless, **layered)),
        "wavlm": WavLMModel(tiny(WavLMConfig, **restless)),
    }
    for name, model in kinds.items():
        for module in model.modules():
            if isinstance(module, (nn.Conv1d, nn.Linear)):
                nn.init.normal_(module.weight, std=2 * module.weight[0].numel() ** -0.5)
        model.save_pretrained(folder / name)
    return {name: str(folder / name) for name in kinds}


def waves(*seconds: float) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [(0.2 + random.standard_normal(int(16000 * length))).astype(np.float32) for length in seconds]


def config_of(models, output, **options) -> EvaluateConfig:
    defaults = {
        "max_steps": 20, "eval_every": 5, "save_every": 4, "batch_size": 3, "slot_width": 16,
        "device": "cpu", "lr_sweep": (1e-2,), "spec_augment": False,
    }  # fmt: skip
    return EvaluateConfig(student=models["group"], output=str(output), **{**defaults, **options})


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
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
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
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
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
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(UserError, match=message):
        snips(tmp_path)


def test_snips_list_of_slots(tmp_path):
    write_snips(tmp_path)
    (tmp_path / "slots.txt").write_text("O\nyear\ngenre\nartist")
    assert snips(tmp_path)[1] == ["artist", "genre", "year"]
    (tmp_path / "slots.txt").write_text("O\ngenre\n")
    with pytest.raises(UserError, match="snips.txt:1: unknown slot 'artist'; .*slots.txt"):
        snips(tmp_path)


@pytest.mark.parametrize("name", ["group", "layer", "wavlm"])
def test_padding_changes_nothing(models, name):
    encoder = Encoder(models[name], "student")
    alone, together = waves(0.2, 0.5, 0.31), waves(0.2, 0.5, 0.31)
    torch.manual_seed(0)
    intents = UtteranceHead(encoder.layers, encoder.width, (4, 3)).eval()
    slots = SlotHead(encoder.layers, encoder.width, 11, hidden=8).eval()
    states, lengths = encoder(together)
    pooled = states.sum(dim=2) / lengths[:, None, None]
    assert states.shape[:2] == (3, 3) and lengths.tolist() == [8, 23, 14]
    for row, wave in enumerate(alone):
        lonely, (length,) = encoder([wave])
        torch.testing.assert_close(states[row, :, :length], lonely[0], rtol=1e-3, atol=1e-4)
        assert not states[row, :, length:].any()
        for one, many in zip(intents(lonely.mean(dim=2)), intents(pooled)):
            torch.testing.assert_close(one[0], many[row], rtol=1e-3, atol=1e-4)
        one = slots(lonely, lengths[row : row + 1])[0]
        torch.testing.assert_close(one, slots(states, lengths)[row, :length], rtol=1e-3, atol=1e-4)


def test_states_are_those_of_the_checkpoint(models):
    """Every layer, the encoder's normalised output last, no randomness though the checkpoint has some."""
    (wave,) = waves(0.4)
    encoder = Encoder(models["layer"], "student")
    student = load_student(models["layer"])
    model = student.encoder
    inputs = student.front_end.extractor(wave, sampling_rate=16000, return_tensors="pt")["input_values"]
    with torch.no_grad():
        outputs = model.eval()(inputs, output_hidden_states=True)
    states, _ = encoder([wave])
    assert states.shape[1] == encoder.layers == model.config.num_hidden_layers + 1
    expected = torch.stack([*outputs.hidden_states[:-1], outputs.last_hidden_state], dim=1)
    torch.testing.assert_close(states, expected, rtol=1e-3, atol=1e-4)
    assert not encoder.model.training and not any(item.requires_grad for item in encoder.model.parameters())
    assert torch.equal(encoder([wave])[0], states)


def test_mean_first_is_mean_last():
    torch.manual_seed(0)
    head = UtteranceHead(layers=3, width=5, classes=(4,))
    head.layer_sum.scores.data = torch.tensor([0.3, -1.0, 2.0])
    states = torch.randn(2, 3, 7, 5)
    weights = head.layer_sum.scores.softmax(dim=0)
    summed = sum(weight * states[:, layer] for layer, weight in enumerate(weights))
    expected = head.classifiers[0](head.projection(summed).mean(dim=1))
    torch.testing.assert_close(head(states.mean(dim=2))[0], expected)


def test_means_and_kept_states(models, corpora, tmp_path, monkeypatch):
    splits, _ = fluent_speech_commands(Path(corpora["ic"]))
    encoder, seconds = Encoder(models["group"], "student"), durations(splits.train, 0.1)
    found = means(encoder, splits.train, seconds, tmp_path, "", batch_size=3)
    kept = all_states(encoder, splits.train, seconds, "", batch_size=3)
    assert found.shape == (8, 3, 32) and kept[0].dtype == torch.float16
    for row, states in zip(found, kept):
        torch.testing.assert_close(row, states.float().mean(dim=1), rtol=0, atol=2e-3)
    monkeypatch.setattr(Encoder, "__call__", None)
    assert torch.equal(means(encoder, splits.train, seconds, tmp_path, "", batch_size=3), found)
    with pytest.raises(TypeError):
        means(encoder, splits.train[::-1], seconds, tmp_path, "", batch_size=3)


def test_spec_augment_only_in_training():
    torch.manual_seed(0)
    masked = spec_augment(torch.ones(8, 100, 400)) == 0
    assert masked.any() and 0 < masked.double().mean() < 0.5
    whole_frames, whole_features = masked.all(dim=2), masked.all(dim=1)
    assert whole_frames.any() and whole_features.any()
    assert torch.equal(masked, whole_frames[:, :, None] | whole_features[:, None, :])
    assert torch.equal(spec_augment(torch.ones(1, 3, 2)), torch.ones(1, 3, 2))
    head = SlotHead(2, 400, 5, hidden=4)
    states, lengths = torch.randn(2, 2, 100, 400), torch.tensor([100, 60])
    assert torch.equal(head.eval()(states, lengths), head(states, lengths))
    head.train().dropout.p = head.recurrent.dropout = 0.0
    assert not torch.equal(head(states, lengths), head(states, lengths))
    head.spec_augment = False
    assert torch.equal(head(states, lengths), head(states, lengths))


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


def test_best_weights_on_dev_are_tested(tmp_path):
    """A head whose weight falls by its learning rate at each step, best on dev in the middle."""

    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))
            self.layer_sum = type("", (), {"weights": torch.ones(1)})()

    values = list(range(4))
    task = Task(
        "goodness",
        *(Split(values, [1.0] * 4) for _ in range(3)),
        build=Counter,
        loss=lambda head, items: 1000 * head.weight,
        answers=lambda head, items: [head.weight.item(), head.weight.grad.item()],
        scores=lambda answers: {
            "goodness": -abs(answers[0] + 4.4),
            "weight": answers[0],
            "gradient": answers[1],
        },
    )
    trial = train(task, Schedule(10, 2, 100, 4, 1.0, 0), 1.0, tmp_path, "", torch.device("cpu"))
    assert trial["best_step"] == 4 and trial["test"]["weight"] == pytest.approx(-4, abs=1e-3)
    assert [entry["step"] for entry in trial["history"]] == [2, 4, 6, 8, 10]
    assert trial["dev"]["gradient"] == pytest.approx(1.0)


def test_published_settings():
    assert PUBLISHED_STEPS == {"ic": 200_000, "er": 30_000, "sf": 200_000}
    assert PUBLISHED_EVAL_EVERY == {"ic": 4000, "er": 1000, "sf": 2000}
    config = EvaluateConfig(student="", output="", ic="")
    config.check()
    assert (config.lr_sweep, config.batch_size, config.max_grad_norm) == ((1e-4,), 32, 1.0)
    with torch.device("meta"):
        intents, slots = UtteranceHead(13, 768, (6, 14, 4)), SlotHead(13, 768, 100, config.slot_width)
    assert intents.projection.out_features == 256 and slots.projection.out_features == 1024
    layers = slots.recurrent
    assert (layers.num_layers, layers.hidden_size, layers.bidirectional) == (2, 1024, True)


def test_sentence_longer_than_its_audio_costs_nothing(models, corpora):
    encoder = Encoder(models["group"], "student")
    splits, slots = snips(Path(corpora["sf"]))
    examples = [replace(splits.train[0], label=("A",) * 500)]
    split = Split(Sentences(examples, encoder.sampling_rate), [1.0])
    task = slot_task(encoder, [split] * 3, slots, hidden=8, spec_augment=False)
    assert task.loss(task.build(), [split.items[0]]).item() == 0.0


def test_heads_learn_what_is_audible(models, corpora, tmp_path):
    options = {"max_steps": 60, "eval_every": 20}
    result = evaluate(config_of(models, tmp_path / "uttered", ic=corpora["ic"], er=corpora["er"], **options))
    assert result["results"]["ic"]["student"]["metrics"] == {"accuracy": 1.0}
    emotion = result["results"]["er"]["student"]
    folds = [fold["test"]["accuracy"] for fold in emotion["folds"]]
    assert len(folds) == 5 and emotion["metrics"]["accuracy"] == pytest.approx(sum(folds) / 5)
    assert emotion["metrics"]["accuracy"] > 0.9

    options = {"max_steps": 300, "eval_every": 300, "slot_width": 48, "cache_features": True}
    result = evaluate(config_of(models, tmp_path / "spelt", sf=corpora["sf"], **options))
    metrics = result["results"]["sf"]["student"]["metrics"]
    assert metrics["slot_type_f1"] == 1.0 and metrics["slot_value_cer"] < 0.2


def test_baseline_beside_student(models, corpora, tmp_path):
    config = config_of(models, tmp_path / "out", baseline=models["layer"], ic=corpora["ic"], sf=corpora["sf"])
    result = evaluate(config)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == result
    assert set(result["results"]) == {"ic", "sf"} and set(result["versions"]) >= {"torch", "pad-kernels"}
    assert result["settings"]["batch_size"] == 3
    for of_task in result["results"].values():
        assert list(of_task) == ["student", "baseline"]
        assert of_task["student"]["steps"] == 20 and of_task["student"]["learning_rate"] == 1e-2
        assert of_task["student"]["folds"] != of_task["baseline"]["folds"]
        assert len(of_task["baseline"]["folds"][0]["layer_weights"]) == 3
    lines = table(result).splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["model", "student", "baseline"]
    assert lines[-4:-2] == [f"student: {models['group']}", f"baseline: {models['layer']}"]
    assert lines[-2] == "ic: 20 steps of training, not SUPERB's 200000"
    assert "IC accuracy" in lines[0] and "slot-value CER" in lines[0] and "ER" not in lines[0].split("CER")[0]
    accuracy = result["results"]["ic"]["baseline"]["metrics"]["accuracy"]
    assert lines[2].split()[1] == f"{100 * accuracy:.2f}"
    assert (tmp_path / "out" / "results.txt").read_text() == table(result) + "\n"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["config.yaml", "results.json", "results.txt", "trials"]


def test_encoder_stays_as_it_was(models, corpora, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(run, "Encoder", lambda *args: used.append(Encoder(*args)) or used[-1])
    evaluate(config_of(models, tmp_path / "out", sf=corpora["sf"], max_steps=3))
    before = load_student(models["group"]).encoder
    assert not used[0].model.training
    for old, new in zip(before.parameters(), used[0].model.parameters(), strict=True):
        assert torch.equal(old, new) and new.grad is None


def test_sweep_takes_the_best_on_dev(models, corpora, tmp_path, monkeypatch):
    scores = {1e-5: (0.2, 0.9), 1e-4: (0.8, 0.5), 1e-3: (0.8, 0.7)}

    def fake(task, schedule, rate, *others):
        dev, test = scores[rate]
        return {"learning_rate": rate, "dev": {"accuracy": dev}, "test": {"accuracy": test}}

    monkeypatch.setattr(run, "train", fake)
    config = config_of(models, tmp_path / "out", er=corpora["er"], lr_sweep=list(scores))
    judged = evaluate(config)["results"]["er"]["student"]
    assert judged["learning_rate"] == 1e-4 and judged["metrics"] == {"accuracy": pytest.approx(0.5)}
    assert [entry["learning_rate"] for entry in judged["sweep"]] == list(scores)
    assert [entry["dev"] for entry in judged["sweep"]] == pytest.approx([0.2, 0.8, 0.8])


def test_sweep_trains_each_rate(models, corpora, tmp_path):
    config = config_of(models, tmp_path / "out", ic=corpora["ic"], lr_sweep=[1e-9, 1e-2], max_steps=40)
    judged = evaluate(config)["results"]["ic"]["student"]
    slow, fast = (entry["dev"] for entry in judged["sweep"])
    assert slow < fast and judged["learning_rate"] == 1e-2


class Stopped(Exception):
    pass


def stop_after(monkeypatch, steps: int) -> None:
    """Raise within the optimizer's step after so many."""
    taken, step = [], torch.optim.Adam.step

    def counted(self, *args, **kwargs):
        if len(taken) == steps:
            raise Stopped
        taken.append(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)


@pytest.mark.parametrize("task", ["ic", "er", "sf"])
@pytest.mark.parametrize("stop", [11, 27])
def test_resumed_run_gives_the_same_numbers(models, corpora, tmp_path, monkeypatch, task, stop):
    options = {task: corpora[task], "max_steps": 10, "lr_sweep": (1e-3, 1e-2), "spec_augment": True}
    if task != "er":
        options["max_steps"] = 18
    whole = evaluate(config_of(models, tmp_path / "whole", **options))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, stop)
        evaluate(config_of(models, tmp_path / "parts", **options))
    states = list((tmp_path / "parts").rglob("state.pt"))
    assert len(states) == (stop % options["max_steps"] >= 4) and not (tmp_path / "parts/results.json").exists()
    steps = []
    monkeypatch.setattr(
        training, "_Batches", lambda lengths, schedule, first, kind=training._Batches: steps.append(first)
        or kind(lengths, schedule, first),
    )  # fmt: skip
    parts = evaluate(config_of(models, tmp_path / "parts", **options, resume=True))
    assert steps[0] == stop % options["max_steps"] // 4 * 4
    assert parts["results"] == whole["results"]
    again = evaluate(config_of(models, tmp_path / "parts", **options, resume=True))
    assert again["results"] == whole["results"]


def test_workers_and_earlier_randomness_change_nothing(models, corpora, tmp_path):
    options = {"sf": corpora["sf"], "max_steps": 4, "spec_augment": True}
    first = evaluate(config_of(models, tmp_path / "a", **options))
    torch.randn(7)
    second = evaluate(config_of(models, tmp_path / "b", **options, workers=1))
    other = evaluate(config_of(models, tmp_path / "c", **options, seed=1))
    assert first["results"] == second["results"] != other["results"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "ic, er, sf: none is given"),
        ({"ic": "x", "lr_sweep": ()}, "lr_sweep: expected distinct positive numbers"),
        ({"ic": "x", "lr_sweep": (1e-4, 1e-4)}, "lr_sweep: expected distinct"),
        ({"ic": "x", "lr_sweep": (0.0,)}, "lr_sweep: expected distinct positive"),
        ({"ic": "x", "batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"ic": "x", "max_steps": -1}, "max_steps: expected 0 or more"),
        ({"ic": "x", "device": "tpu"}, "device: expected auto or cpu, got 'tpu'"),
        ({"er": "nowhere"}, "er: nowhere is not a folder"),
        ({"ic": "x", "baseline": "no/such/model"}, "^baseline: cannot load 'no/such/model'"),
    ],
)
def test_mistakes_leave_no_output(models, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        evaluate(config_of(models, tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_audio_too_short_for_a_frame(models, corpora, tmp_path):
    folder = write_commands(tmp_path / "fluent")
    write_tones(folder / "wavs/speakers/test/2.wav", 0, seconds=0.01)
    with pytest.raises(UserError, match=r"test_data.csv:4: .*2.wav lasts 0.010 s; expected 0.\d+ s or more"):
        evaluate(config_of(models, tmp_path / "out", ic=str(folder)))


def test_audio_that_is_not_finite(models, tmp_path):
    folder = write_commands(tmp_path / "fluent")
    path = folder / "wavs/speakers/valid/1.wav"
    soundfile.write(path, np.full(8000, np.nan), 16000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"valid_data.csv:3: .*1.wav: the audio holds NaN"):
        evaluate(config_of(models, tmp_path / "out", ic=str(folder)))
    assert not (tmp_path / "out").exists()


def test_encoder_with_states_of_several_lengths(corpora, tmp_path):
    SEWModel(tiny(SEWConfig)).save_pretrained(tmp_path / "sew")
    config = config_of({"group": str(tmp_path / "sew")}, tmp_path / "out", sf=corpora["sf"])
    with pytest.raises(UserError, match="^student: .*sew gives hidden states of 4 and 8 frames"):
        evaluate(config)
    assert not (tmp_path / "out").exists()


def test_full_disk_is_an_error_of_the_system(tmp_path):
    (tmp_path / ".state.pt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"cannot write .*state.pt: .*No space left on device"):
        save_state({"weight": torch.zeros(1000)}, tmp_path / "state.pt")
    assert not list(tmp_path.iterdir())


def test_revision_is_that_of_the_build_or_the_checkout(tmp_path):
    package = tmp_path / "site-packages" / "pad"
    package.mkdir(parents=True)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)  # the user's own, around the environment
    assert git_revision(package) == "not a git checkout"
    (package / "_revision.txt").write_text("0123abc-dirty\n")
    assert git_revision(package) == "0123abc-dirty"


def test_output_of_another_run(models, corpora, tmp_path, capsys):
    options = {"ic": corpora["ic"], "max_steps": 2}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("mine")
    with pytest.raises(UserError, match="resume: .*other holds no config.yaml; expected a run's folder, or a new one"):
        evaluate(config_of(models, tmp_path / "other", **options, resume=True))
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["precious"]
    evaluate(config_of(models, tmp_path / "out", **options, resume=True))
    assert f"resume: no run in {tmp_path / 'out'} yet; starting one" in capsys.readouterr().out
    with pytest.raises(UserError, match="not empty; choose another, or --resume"):
        evaluate(config_of(models, tmp_path / "out", **options))
    with pytest.raises(UserError, match="resume: expected the settings of the run in .*; batch_size: 3 there, got 2"):
        evaluate(config_of(models, tmp_path / "out", **options, batch_size=2, resume=True))


def test_a_run_of_before_the_settings_file_was_renamed_is_resumed(models, corpora, tmp_path):
    options = {"ic": corpora["ic"], "max_steps": 2}
    expected = evaluate(config_of(models, tmp_path / "out", **options))
    (tmp_path / "out" / "config.yaml").rename(tmp_path / "out" / "settings.yaml")
    with pytest.raises(UserError, match="resume: expected the settings of the run in .*; batch_size: 3 there, got 2"):
        evaluate(config_of(models, tmp_path / "out", **options, batch_size=2, resume=True))
    again = evaluate(config_of(models, tmp_path / "out", **options, resume=True))
    assert again["results"] == expected["results"]


def test_command_line(models, corpora, tmp_path, capsys):
    pytest.importorskip("tyro")
    from pad.cli import main

    arguments = [
        "evaluate",
        "--student",
        models["group"],
        "--output",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert main(arguments) == 2
    assert "ic, er, sf: none is given" in capsys.readouterr().err
    arguments += ["--ic", corpora["ic"], "--lr-sweep", "1e-3", "1e-2", "--max-steps", "2"]
    assert main(arguments) == 0
    assert "IC accuracy" in capsys.readouterr().out
    assert main([*arguments, "--resume"]) == 0


def test_one_task_by_its_name():
    """`pad evaluate ic --data FOLDER` says the same as `pad evaluate --ic FOLDER`."""
    from pad import cli

    common = ["--student", "s", "--output", "o"]
    wanted = cli._parse(["evaluate", "--ic", "corpus", *common])
    assert cli._parse(["evaluate", "ic", "--data", "corpus", *common]) == wanted
    assert cli._parse(["evaluate", "ic", "--data=corpus", *common]) == wanted
    assert cli._parse(["evaluate", *common, "--no-resume", "ic", "--data", "corpus"]) == wanted


def test_a_task_with_settings_from_a_file(tmp_path):
    from pad import cli

    (tmp_path / "run.yaml").write_text("student: s\nic: corpus\nlr_sweep: [1e-3]\n")
    common = ["--config", str(tmp_path / "run.yaml"), "--output", "o"]
    _, wanted = cli._parse(["evaluate", *common])
    assert (wanted.student, wanted.output, wanted.tasks, wanted.lr_sweep) == ("s", "o", ["ic"], (1e-3,))
    assert cli._parse(["evaluate", "ic", *common])[1] == wanted
    assert cli._parse(["evaluate", "ic", *common, "--data", "other"])[1] == replace(wanted, ic="other")
    assert cli._parse(["evaluate", "er", *common, "--data", "other"])[1] == replace(wanted, er="other")
