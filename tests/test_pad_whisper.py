"""A Whisper checkpoint in every command: distilled, resumed, evaluated, drawn; what is saved is Whisper still."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("transformers")

from student_models import LAYERS, SECONDS, WIDTH, new_extractor, save_speech, save_teacher, save_whisper, waves  # noqa: E402
from superb_miniatures import write_commands  # noqa: E402
from transformers import AutoModel, Wav2Vec2Config, WhisperForConditionalGeneration, pipeline  # noqa: E402

from pad.cli import main  # noqa: E402
from pad.data import load_utterances  # noqa: E402
from pad.demo.words import encode  # noqa: E402
from pad.errors import UserError  # noqa: E402
from pad.evaluate.config import EvaluateConfig  # noqa: E402
from pad.evaluate.encoder import Encoder  # noqa: E402
from pad.evaluate.run import evaluate  # noqa: E402
from pad.models import load_teacher  # noqa: E402
from pad.step.collate import Collator, SpeechTextDataset  # noqa: E402
from pad.students import load_student  # noqa: E402

OPTIONS = ["--log-every", "1", "--learning-rate", "1e-3", "--warmup-steps", "0", "--max-steps", "4"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whisper")
    return {
        "student": save_whisper(folder / "student"),
        "teacher": save_teacher(folder / "teacher"),
        "data": save_speech(folder / "speech"),
    }


def arguments(paths, output: Path, *options: str) -> list[str]:
    return [
        "distill", "--student", paths["student"], "--teacher", paths["teacher"], "--data", paths["data"],
        "--output", str(output), "--batch-size", "2", "--device", "cpu", "--preset", "pad-slocal", *OPTIONS, *options,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(paths, tmp_path_factory) -> Path:
    """A run that nothing disturbed, with dropout, so that resuming needs the state of the generators."""
    config = Path(paths["student"]) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dropout": 0.1, "attention_dropout": 0.1}))
    output = tmp_path_factory.mktemp("runs") / "whole"
    assert main(arguments(paths, output, "--save-every", "2")) == 0
    return output


def losses(output: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((output / "log.json").read_text()) if "loss" in entry]


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return WhisperForConditionalGeneration.from_pretrained(folder).state_dict()


def test_only_the_encoder_is_changed(paths, whole):
    before, after = weights(paths["student"]), weights(whole / "student")
    assert before.keys() == after.keys() and len(losses(whole)) == 4
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("model.encoder.") for name in changed)
    assert "model.encoder.embed_positions.weight" not in changed


def test_all_other_files_are_as_they_were(paths, whole):
    files = {path.name for path in Path(paths["student"]).iterdir()}
    assert {"generation_config.json", "tokenizer.json", "vocab.json", "preprocessor_config.json"} <= files
    assert files == {path.name for path in (whole / "student").iterdir()}
    for name in files - {"model.safetensors", "config.json"}:
        assert (Path(paths["student"]) / name).read_bytes() == (whole / "student" / name).read_bytes(), name
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (Path(paths["student"]), whole / "student")
    )
    assert before == after


def test_it_is_a_recognizer_still(paths, whole):
    """With the distilled encoder before the checkpoint's own decoder and tokenizer."""
    audio = {"raw": waves(16000)[0], "sampling_rate": 16000}
    recognizer = pipeline("automatic-speech-recognition", model=str(whole / "student"))
    model = WhisperForConditionalGeneration.from_pretrained(paths["student"])
    model.model.encoder.load_state_dict(recognizer.model.model.encoder.state_dict())
    parts = {"tokenizer": recognizer.tokenizer, "feature_extractor": new_extractor("whisper", model)}
    expected = pipeline("automatic-speech-recognition", model=model, **parts)(dict(audio))["text"]
    assert expected and recognizer(dict(audio))["text"] == expected


def test_resumed_run_has_the_bits_of_one_that_was_not_stopped(paths, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/checkpoint-4")
    shutil.rmtree(tmp_path / "run/student")
    assert main(arguments(paths, tmp_path / "run", "--save-every", "2", "--resume")) == 0
    assert losses(tmp_path / "run") == losses(whole)
    one, other = weights(whole / "student"), weights(tmp_path / "run/student")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "options", [["--gradient-checkpointing"], ["--precision", "bfloat16"], ["--pad-to-max-length"],
                ["--freeze-feature-encoder", "--prior-layers", "0"]], ids=lambda options: options[0]
)  # fmt: skip
def test_ways_to_train(paths, whole, tmp_path, options):
    assert main(arguments(paths, tmp_path / "run", "--max-steps", "1", *options)) == 0
    before, after = weights(paths["student"]), weights(tmp_path / "run/student")
    layer, convolution = "model.encoder.layers.0.fc1.weight", "model.encoder.conv1.weight"
    assert not torch.equal(before[layer], after[layer])
    assert torch.equal(before[convolution], after[convolution]) == ("--freeze-feature-encoder" in options)
    first = losses(tmp_path / "run")[0]
    assert first == pytest.approx(losses(whole)[0], rel=0.2)
    if "--gradient-checkpointing" in options:
        assert first == losses(whole)[0]


@pytest.mark.slow
def test_two_processes_give_the_parameters_of_one_with_the_batches_of_both(paths, tmp_path):
    """Four utterances of one length, without dropout: what differs is who computes which of them."""
    model = WhisperForConditionalGeneration.from_pretrained(paths["student"])
    model.config.dropout = model.config.attention_dropout = 0.0
    shutil.copytree(paths["student"], tmp_path / "student")
    model.save_pretrained(tmp_path / "student")
    paths = {**paths, "student": str(tmp_path / "student"), "data": save_speech(tmp_path / "speech", [16000] * 4)}
    common = ["--preset", "pad-tlocal-soft", "--batch-size"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29513"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launch, "-m", "pad.cli", *arguments(paths, tmp_path / "two", *common, "2")],
                          env=environment, capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert main(arguments(paths, tmp_path / "one", *common, "4")) == 0
    start, one, two = weights(paths["student"]), weights(tmp_path / "one/student"), weights(tmp_path / "two/student")
    for name in start:
        assert torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-4), name
    assert any(not torch.allclose(start[name], one[name], atol=1e-3) for name in start)


@pytest.mark.parametrize("padded", [False, True])
def test_evaluated_states(paths, padded):
    """Every state of an utterance is the same alone; real frames are those of the audio, padded or not."""
    encoder = Encoder(paths["student"], "student", pad_to_max_length=padded)
    batch = waves(16000, 4000, 9999)
    states, lengths = encoder(batch)
    assert states.shape[:2] == (3, LAYERS + 1) and states.shape[3] == WIDTH and lengths.tolist() == [50, 12, 31]
    assert states.shape[2] == (50 * SECONDS if padded else 50) and encoder.longest == SECONDS
    for row, wave in enumerate(batch):
        alone, (length,) = encoder([wave])
        torch.testing.assert_close(states[row, :, :length], alone[0, :, :length], rtol=1e-4, atol=1e-5)
        assert not states[row, :, length:].any()
    with pytest.raises(UserError, match="got 2.02 s, expected at most 2 s"):
        encoder(waves(32320))


def test_padded_states_are_those_of_whispers_own_encoder(paths):
    encoder = Encoder(paths["student"], "student", pad_to_max_length=True)
    model = WhisperForConditionalGeneration.from_pretrained(paths["student"])
    batch = waves(16000, 4000)
    features = new_extractor("whisper", model)(batch, sampling_rate=16000, return_tensors="pt")["input_features"]
    with torch.no_grad():
        expected = model.model.encoder.eval()(features).last_hidden_state
    states, lengths = encoder(batch)
    for row, length in enumerate(lengths.tolist()):
        difference = states[row, -1, :length] - expected[row, :length]
        assert difference.norm() <= 1e-5 * expected[row, :length].norm()


def test_a_head_on_whisper(paths, tmp_path):
    corpus = write_commands(tmp_path / "fluent")
    config = EvaluateConfig(student=paths["student"], output=str(tmp_path / "out"), ic=str(corpus), max_steps=40,
                            eval_every=20, batch_size=4, lr_sweep=(1e-2,), device="cpu")  # fmt: skip
    metrics = evaluate(config)["results"]["ic"]["student"]["metrics"]
    assert metrics["accuracy"] > 0.25  # of four intents
    soundfile.write(next(corpus.rglob("*.wav")), waves(33000)[0], 16000)
    config.output = str(tmp_path / "long")
    with pytest.raises(UserError, match=r"lasts 2.06 s; expected 2 s or less, as the encoder has positions for no"):
        evaluate(config)
    assert not (tmp_path / "long").exists()


def test_words_and_priors(paths):
    student = load_student(paths["student"])
    _, tokenizer = load_teacher(paths["teacher"])
    utterances = load_utterances(paths["data"], max_samples=student.front_end.layout.longest)
    found = encode(student.encoder, Collator(student.front_end, tokenizer), SpeechTextDataset(utterances, 16000),
                   batch_size=3, with_prior=True)  # fmt: skip
    for item, utterance in zip(found, utterances, strict=True):
        assert len(item.frames) == len(item.centers) == len(item.prior) == int(utterance.duration * 50 + 1e-6)
        assert item.prior.sum() == pytest.approx(1, abs=1e-4) and item.means.shape == (LAYERS + 1, WIDTH)
        assert 0 <= item.centers[0] and item.centers[-1] < utterance.duration


@pytest.mark.parametrize("options", [[], ["--pad-to-max-length"]], ids=["as long as it is", "padded"])
def test_drawn(paths, tmp_path, options, capsys):
    audio = str(Path(paths["data"]) / "1.wav")
    common = ["align", "--student", paths["student"], "--teacher", paths["teacher"], "--output", str(tmp_path / "x"),
              "--preset", "pad-slocal-soft"]  # fmt: skip
    assert main([*common, "--audio", audio, *options]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.png", "x.svg"]
    soundfile.write(tmp_path / "long.wav", np.zeros(40000), 16000)
    assert main([*common, "--overwrite", "--audio", str(tmp_path / "long.wav"), "--transcript", "good"]) == 2
    assert "long.wav: got 2.50 s, expected at most 2 s" in capsys.readouterr().err


def test_audio_longer_than_the_positions(paths, tmp_path, capsys):
    data = Path(save_speech(tmp_path / "data", (16000, 33000, 16000)))
    paths = {**paths, "data": str(data)}
    assert main(arguments(paths, tmp_path / "run")) == 2
    message = capsys.readouterr().err
    assert "1.wav: 2.062 s of audio; the student has positions for 2 s (listed at " in message
    assert not (tmp_path / "run").exists()
    assert main(arguments(paths, tmp_path / "run", "--max-steps", "1", "--on-error", "skip")) == 0
    assert json.loads((tmp_path / "run/left_out.json").read_text())["left_out"] == {"too long for the student": 1}
    assert main(arguments(paths, tmp_path / "short", "--max-steps", "1", "--max-seconds", "2")) == 0
    assert json.loads((tmp_path / "short/left_out.json").read_text())["left_out"] == {"too long": 1}


def test_settings_that_do_not_fit(paths, tmp_path, capsys):
    plain = Wav2Vec2Config(
        hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, conv_dim=(32, 32),
        conv_stride=(10, 8), conv_kernel=(20, 16), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    AutoModel.from_config(plain).save_pretrained(tmp_path / "plain")
    mixed = tmp_path / "mixed"
    shutil.copytree(paths["student"], mixed)
    settings = json.loads((mixed / "preprocessor_config.json").read_text())
    (mixed / "preprocessor_config.json").write_text(json.dumps(settings | {"feature_size": 80}))
    for student, options, message in [
        (tmp_path / "plain", ["--pad-to-max-length"], "pad_to_max_length: a student of type 'wav2vec2' has no fixed"),
        (mixed, [], "student: its feature extractor has the feature_size 80, its model takes 20"),
        (
            paths["student"],
            ["--prior-layers", "2"],
            "prior_layers: got (2,), expected layers of the student, which has 2, counted from 0",
        ),
        (
            paths["student"],
            ["--preset", "early-slocal-soft"],
            "got (0, 1, 2), expected layers of the student, which has 2, counted from 0; the preset slocal-soft",
        ),
        (paths["student"], ["--prior-layers", "0", "0"], "prior_layers: expected each layer once, got (0, 0)"),
        (paths["student"], ["--prior-layer-weights", "1"], "prior_layer_weights: got (1.0,) and prior_layers None"),
        (paths["student"], ["--preset", "early-slocal-soft", "--prior-layer-weights", "1"], "one for each layer"),
        (paths["student"], ["--prior-layers", "0", "1", "--prior-layer-weights", "1", "0"], "prior_layer_weights: "),
    ]:
        assert main(arguments({**paths, "student": str(student)}, tmp_path / "run", *options)) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_by_its_name_on_the_hub(paths, tmp_path):
    """From the cache of an earlier download, with all files, without a network."""
    cache = tmp_path / "hub" / "models--someone--whisper"
    shutil.copytree(paths["student"], cache / "snapshots" / "0a1b")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0a1b")
    code = "import sys; from pathlib import Path; from pad.students import load_student\n"
    code += f"load_student('someone/whisper').save(Path({str(tmp_path / 'saved')!r}))"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    names = {path.name for path in Path(paths["student"]).iterdir()}
    assert names == {path.name for path in (tmp_path / "saved").iterdir()}


def test_without_a_feature_extractor(paths, tmp_path, capsys):
    """One for the model's mel bands is taken, which is said."""
    shutil.copytree(paths["student"], tmp_path / "student")
    (tmp_path / "student/preprocessor_config.json").unlink()
    student = load_student(str(tmp_path / "student"))
    assert "no feature extractor there; assumed: 16000 Hz" in capsys.readouterr().out
    expected = load_student(paths["student"]).front_end(waves(8000))
    assert torch.equal(student.front_end(waves(8000)).inputs["input_features"], expected.inputs["input_features"])
