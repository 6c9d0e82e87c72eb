"""Pictures of an utterance's alignment: what they show, that they are written, and what is said of mistakes."""

import shutil
import xml.etree.ElementTree as tree
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

from matplotlib import image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from student_models import save_speech, save_teacher, save_whisper  # noqa: E402
from test_pad_distill import losses, models, run, speech  # noqa: E402, F401
from transformers import BertTokenizer, SqueezeBertConfig, SqueezeBertModel  # noqa: E402

from pad import record_significance  # noqa: E402
from pad.align.picture import draw, save  # noqa: E402
from pad.align.utterance import SpokenText, align_utterance, aligned  # noqa: E402
from pad.cli import main  # noqa: E402
from pad.data import read_audio  # noqa: E402
from pad.demo import librivox  # noqa: E402
from pad.models import load_teacher  # noqa: E402
from pad.step.collate import Collator  # noqa: E402
from pad.step.objective import PRESETS  # noqa: E402
from pad.step.teacher import Teacher  # noqa: E402
from pad.students import load_student  # noqa: E402
from pad.students.layout import ConvolutionLayout  # noqa: E402

LAYOUT = ConvolutionLayout((20, 16, 8), (10, 8, 4))


@pytest.mark.parametrize("preset", ["pad-tlocal-soft", "pad-tlocal", "pad-slocal-soft", "slocal", "stride"])
def test_tokens_lie_where_their_frames_are(preset):
    """Each of six tokens is spoken by ten frames that are its vector."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(6, 32, generator=generator)
    found = aligned(
        text.repeat_interleave(10, dim=0), text, torch.full((60,), 1 / 60), torch.full((6,), 1 / 6), PRESETS[preset],
        SpokenText(torch.zeros(19_000).numpy(), 16000, LAYOUT, tokens=list("abcdef")),
    )  # fmt: skip
    weights = found.frame_matrix()
    assert torch.allclose(found.matrix.sum(1), torch.ones(6), atol=1e-5)
    assert torch.allclose(weights.sum(1), torch.ones(6), atol=1e-5)
    for token, unit in enumerate(found.unit.tolist()):
        middle = (found.start[unit] + found.end[unit] - 1) / 2
        if preset != "pad-slocal-soft":  # equal priors: the first frames are all the anchors
            assert 10 * token <= middle <= 10 * token + 9
            assert weights[token, 10 * token : 10 * token + 10].sum() > 0.5
    assert abs(found.loss) < 1


def test_dollars_are_characters(tmp_path):
    text = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    found = aligned(
        text.repeat_interleave(10, dim=0), text, None, None, PRESETS["slocal"],
        SpokenText(torch.zeros(9_600).numpy(), 16000, LAYOUT, tokens=["$x^{$", "\\$5", "$\\frac$"],
                   words=[(0.0, 0.2, "$y_{$"), (0.2, 0.5, "$\\nothing$")]),
    )  # fmt: skip
    save(draw(found), tmp_path / "a")
    assert image.imread(tmp_path / "a.png")[..., :3].std() > 0.05
    tree.parse(tmp_path / "a.svg")


def parts(models, speech):  # noqa: F811
    student = load_student(models["student"])
    model, tokenizer = load_teacher(models["teacher"])
    return student.encoder, Collator(student.front_end, tokenizer), Teacher(model, tokenizer, True)


def test_priors_and_mode(models, speech):  # noqa: F811
    student, collator, teacher = parts(models, speech)
    student.train()
    item = librivox.load(speech)[0]
    found = align_utterance(student, collator, teacher, PRESETS["pad-slocal"], read_audio(item.audio), item.transcript)
    assert student.training and student.config._attn_implementation == "sdpa"
    assert abs(float(found.speech_prior.sum()) - 1) < 1e-4 and abs(float(found.text_prior.sum()) - 1) < 1e-4
    assert len(found.tokens) == len(found.text_prior) == len(found.matrix)
    assert len(found.centers) == len(found.speech_prior)


@pytest.mark.parametrize("preset", ["pad-slocal-soft", "tlocal"])
def test_pictures_are_written(models, speech, tmp_path, preset, capsys):  # noqa: F811
    item = librivox.load(speech)[0]
    words = [f"{word.start}\t{word.end}\t{word.text}" for word in item.words]
    (tmp_path / "words.tsv").write_text("\ufeff" + "\n\n".join(words) + "\n \n", encoding="utf-8")
    output = tmp_path / "new folder" / "a.picture"
    arguments = ["align", "--student", models["student"], "--teacher", models["teacher"], "--audio", str(item.audio),
                 "--transcript", item.transcript, "--words", str(tmp_path / "words.tsv"), "--output", str(output),
                 "--preset", preset]  # fmt: skip
    assert main(arguments) == 0
    assert "a.picture.png" in capsys.readouterr().out
    pixels = image.imread(f"{output}.png")
    assert pixels.shape[0] > 300 and pixels[..., :3].std() > 0.05
    tree.parse(f"{output}.svg")
    assert sorted(path.name for path in output.parent.iterdir()) == ["a.picture.png", "a.picture.svg"]


def test_mistakes(models, speech, tmp_path, capsys):  # noqa: F811
    audio = str(next(Path(speech).glob("*.wav")))
    common = ["align", "--student", models["student"], "--teacher", models["teacher"], "--output", str(tmp_path / "x"),
              "--preset", "pad-slocal-soft"]  # fmt: skip
    (tmp_path / "words.tsv").write_text("0.1 0.2 word")
    (tmp_path / "y.png").mkdir()
    lonely = tmp_path / "lonely.wav"
    lonely.write_bytes(Path(audio).read_bytes())
    wide = ["--audio", audio, "--transcript", "good", "--teacher", models["wide teacher"]]
    save_file({"weight": torch.zeros(96, 64)}, tmp_path / "map.safetensors")
    save_file({"mean": torch.zeros(96)}, tmp_path / "mean.safetensors")
    for options, message in [
        (["--audio", str(tmp_path / "no.wav")], "audio: expected an audio file that exists, got "),
        (["--audio", str(lonely)], "transcript: none is given"),
        (["--audio", audio, "--transcript", "good", "--preset", "pad-glob"], "preset: expected a preset of the token"),
        (["--audio", audio, "--transcript", "good", "--words", str(tmp_path / "words.tsv")], "words.tsv:1: expected"),
        (wide, "64 and 96; choose two of one width, or give the map.safetensors"),
        ([*wide, "--linear-map", str(tmp_path / "map.safetensors")], "expected the shape (64, 96), got (96, 64)"),
        ([*wide, "--linear-map", str(tmp_path / "words.tsv")], "words.tsv is no file that pad distill has saved"),
        ([*wide, "--linear-map", str(tmp_path / "mean.safetensors")], "saved: it has no tensor 'weight'"),
        (["--audio", audio, "--transcript", " "], "transcript: it is empty"),
        (["--audio", audio, "--transcript", "good", "--output", str(tmp_path / "y")], "y.png exists; choose another"),
        (
            ["--audio", audio, "--transcript", "good", "--output", str(tmp_path / "y"), "--overwrite"],
            "output: cannot write to ",
        ),
        (
            ["--audio", audio, "--transcript", "good", "--output", str(tmp_path / ("n" * 254))],
            "output: cannot write to",
        ),
        (
            ["--audio", audio, "--transcript", "good", "--teacher-mean", str(tmp_path / "mean.safetensors")],
            "teacher_mean: expected the shape (64,), got (96,)",
        ),
        (
            ["--audio", audio, "--transcript", "good", "--preset", "early-slocal-soft"],
            "layers of the student, which has 2",
        ),
        (["--audio", audio, "--transcript", "good", "--teacher-layer", "3"], "from -3 to 2, got 3"),
        (["--audio", audio, "--transcript", "good", "--output", ""], "output: expected a path or a name, got ''"),
        (["--audio", audio, "--transcript", "good", "--output", "."], "output: expected the path of a file"),
        (["--audio", audio, "--transcript", "good", "--output", f"{audio}/x"], "output: cannot write to "),
        (["--audio", audio, "--transcript", "good", "--temperature", "1e-40"], "a finite number from 1e-38 on"),
        (["--audio", audio, "--transcript", "good", "--prior-layers", "0", "2"], "layers of the student, which has 2"),
        (["--audio", audio, "--transcript", "good", "--prior-exponent", "0"], "prior_exponent: expected a number"),
        (
            ["--audio", audio, "--transcript", "good", "--preset", "tlocal", "--prior-layers", "0"],
            "prior_layers: has no effect with the preset tlocal",
        ),
    ]:
        assert main([*common, *options]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("x*"))


def test_teacher_as_the_student_was_distilled_from_it(models, speech, tmp_path, monkeypatch):  # noqa: F811
    options = ["--preset", "tlocal", "--max-steps", "1", "--center-teacher", "--teacher-layer", "1"]
    assert run(models, speech, tmp_path / "run", *options) == 0
    seen = []

    def watched(student, collator, teacher, *rest):
        seen.append(teacher)
        return align_utterance(student, collator, teacher, *rest)

    monkeypatch.setattr("pad.align.run.align_utterance", watched)
    audio = str(next(Path(speech).glob("*.wav")))
    options = ["--student", str(tmp_path / "run" / "student"), "--teacher", models["teacher"], "--teacher-layer", "1"]
    options += ["--teacher-mean", str(tmp_path / "run" / "teacher_mean.safetensors")]
    options += ["--audio", audio, "--transcript", "good morning", "--output", str(tmp_path / "x"), "--preset", "tlocal"]
    assert main(["align", *options]) == 0
    (teacher,) = seen
    expected = Teacher(*load_teacher(models["teacher"]), False, layer=1)
    expected.center([item.transcript for item in librivox.load(speech)], "cpu")
    assert teacher.layer == 1 and torch.allclose(teacher.mean, expected.mean, atol=1e-6)


def test_an_objective_that_was_changed(models, speech, tmp_path, monkeypatch):  # noqa: F811
    seen = []
    monkeypatch.setattr("pad.align.run.draw", lambda utterance: seen.append(utterance) or draw(utterance))
    item = librivox.load(speech)[0]
    changes = ["--preset", "pad-slocal-soft", "--prior-layers", "1", "--anchors", "stride", "--prior-exponent", "0.5",
               "--no-pooling-prior", "--text-prior", "False"]  # fmt: skip
    options = ["--audio", str(item.audio), "--transcript", item.transcript, "--output", str(tmp_path / "x")]
    both = ["--student", models["student"], "--teacher", models["teacher"]]
    assert main(["align", *both, *options, *changes]) == 0
    (found,) = seen
    assert found.objective == replace(
        PRESETS["pad-slocal-soft"], prior_layers=(1,), anchors="stride", prior_exponent=0.5, pooling_prior=False,
        text_prior=False,
    )  # fmt: skip
    assert found.text_prior is None
    student, collator, _ = parts(models, speech)
    batch = collator([{"samples": read_audio(item.audio), "transcript": item.transcript}])
    with torch.no_grad(), record_significance(student.eval(), batch["frame_mask"]) as record:
        student(**batch["speech"])
    first, second = record.layer_priors()[:, batch["frame_mask"]]
    assert torch.allclose(found.speech_prior, second, atol=1e-7) and not torch.allclose(first, second, atol=1e-5)


def test_models_of_two_widths_with_their_map(models, speech):  # noqa: F811
    student, collator, _ = parts(models, speech)
    teacher = Teacher(*load_teacher(models["wide teacher"]), True)
    item, linear_map = librivox.load(speech)[0], torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    options = [PRESETS["pad-slocal"], read_audio(item.audio), item.transcript]
    found = align_utterance(student, collator, teacher, *options, linear_map=linear_map)
    assert len(found.tokens) == len(found.matrix) == len(found.text_prior)
    assert found.loss != align_utterance(student, collator, teacher, *options, linear_map=linear_map.flip(0)).loss


def test_teacher_whose_prior_cannot_be_recorded(models, speech, tmp_path, capsys):  # noqa: F811
    """SqueezeBERT gives no attention maps: a preset without priors needs none."""
    config = SqueezeBertConfig(vocab_size=999, hidden_size=64, embedding_size=64, num_hidden_layers=2,
                               num_attention_heads=4, intermediate_size=128)  # fmt: skip
    shutil.copytree(models["teacher"], tmp_path / "squeezebert")
    (tmp_path / "squeezebert" / "model.safetensors").unlink()
    SqueezeBertModel(config).save_pretrained(tmp_path / "squeezebert")
    tokenizer = BertTokenizer(str(tmp_path / "squeezebert" / "vocab.txt"))
    tokenizer.save_pretrained(tmp_path / "squeezebert")
    audio = str(next(Path(speech).glob("*.wav")))
    arguments = ["align", "--student", models["student"], "--teacher", str(tmp_path / "squeezebert"), "--audio", audio,
                 "--transcript", "good", "--output", str(tmp_path / "pictures" / "a.png"),
                 "--preset", "pad-slocal-soft"]  # fmt: skip
    assert main(arguments) == 2
    assert "teacher: 'squeezebert' neither attends through" in capsys.readouterr().err
    assert main([*arguments, "--preset", "slocal"]) == 0
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["a.png", "a.svg"]


def test_anchors_are_where_the_prior_is_highest():
    prior = torch.rand(60, generator=torch.Generator().manual_seed(1))
    prior[[0, 1, 59]] += 1  # at the edges, where spans are cut
    text = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    found = aligned(
        text.repeat_interleave(10, dim=0), text, prior / prior.sum(), torch.full((6,), 1 / 6), PRESETS["pad-slocal"],
        SpokenText(torch.zeros(19_000).numpy(), 16000, LAYOUT, tokens=list("abcdef")),
    )  # fmt: skip
    assert found.anchors == sorted(prior.topk(6).indices.tolist())


def test_only_some_of_many_tokens_are_named():
    text = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    found = aligned(
        text.repeat_interleave(2, dim=0), text, None, None, PRESETS["tlocal"],
        SpokenText(torch.zeros(192_000).numpy(), 16000, LAYOUT, tokens=["a"] * 300),
    )  # fmt: skip
    matrix = draw(found).axes[0]
    assert 60 < len(matrix.get_yticklabels()) < 130


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tiny")
    return {
        "--student": save_whisper(folder / "student"), "--teacher": save_teacher(folder / "teacher"),
        "--data": save_speech(folder / "data"), "--preset": "pad-slocal",
    }  # fmt: skip


def of(tiny, *names: str) -> list[str]:
    return [part for name in names for part in (name, tiny[name])]


@pytest.mark.parametrize("preset", ["pad-slocal-soft", "pad-tlocal", "slocal", "tlocal-soft"])
def test_a_text_without_tokens_is_drawn_with_frames_alone(preset, tmp_path):
    frames = torch.randn(60, 32, generator=torch.Generator().manual_seed(0))
    found = aligned(
        frames, torch.zeros(0, 32), torch.full((60,), 1 / 60), torch.zeros(0), PRESETS[preset],
        SpokenText(torch.zeros(19_000).numpy(), 16000, LAYOUT, tokens=[]),
    )  # fmt: skip
    save(draw(found), tmp_path / "a")
    assert image.imread(tmp_path / "a.png")[..., :3].std() > 0.05
    tree.parse(tmp_path / "a.svg")


@pytest.mark.parametrize("text", ["\u200b", "\u0301", " \u200b\u200b "])
def test_a_transcript_without_tokens_is_refused(tiny, tmp_path, capsys, text):
    audio = str(Path(tiny["--data"]) / "0.wav")
    arguments = ["align", *of(tiny, "--student", "--teacher", "--preset"), "--audio", audio]
    assert main([*arguments, "--transcript", text, "--output", str(tmp_path / "x")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"error: transcript: the teacher's tokenizer finds no token in {ascii(text.strip())}; expected" in last
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, option", [("photo.png", "photo"), ("photo.svg", "photo.png"), ("photo.svg", "photo")])
def test_a_picture_that_is_there_is_overwritten_only_if_asked(tiny, tmp_path, capsys, monkeypatch, name, option):
    (tmp_path / name).write_text("mine")
    arguments = ["align", *of(tiny, "--student", "--teacher", "--preset"), "--transcript", "good"]
    arguments += ["--audio", str(Path(tiny["--data"]) / "0.wav"), "--output", str(tmp_path / option)]
    with monkeypatch.context() as patch:
        patch.setattr("pad.align.run.load_student", lambda *args: pytest.fail("it is said at the beginning"))
        assert main(arguments) == 2
    assert f"output: {tmp_path / name} exists; choose another path, or --overwrite" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    assert main([*arguments, "--overwrite"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png", "photo.svg"]
    assert b"mine" not in (tmp_path / name).read_bytes()[:4]


def test_a_picture_that_another_process_draws_meanwhile_is_kept(tiny, tmp_path, capsys, monkeypatch):
    def another(*given):
        (tmp_path / "a.svg").write_text("theirs")
        return align_utterance(*given)

    monkeypatch.setattr("pad.align.run.align_utterance", another)
    arguments = ["align", *of(tiny, "--student", "--teacher", "--preset"), "--transcript", "good"]
    arguments += ["--audio", str(Path(tiny["--data"]) / "0.wav"), "--output", str(tmp_path / "a")]
    assert main(arguments) == 2
    assert "a.svg exists; choose another path" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["theirs"]


def test_processes_may_draw_one_picture_at_once(tmp_path, monkeypatch):
    frames = torch.randn(60, 32, generator=torch.Generator().manual_seed(0))
    spoken = SpokenText(torch.zeros(19_000).numpy(), 16000, LAYOUT, tokens=[])
    figure = draw(aligned(frames, torch.zeros(0, 32), None, None, PRESETS["tlocal"], spoken))
    drawn, plainly = [], figure.savefig

    def savefig(file, **options):
        if not drawn:  # the first is overtaken by another one
            drawn.append(1)
            save(figure, tmp_path / "a", shared=True)
        plainly(file, **options)

    monkeypatch.setattr(figure, "savefig", savefig)
    save(figure, tmp_path / "a", shared=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg"]


def test_pictures_of_a_first_utterance_without_tokens(tiny, tmp_path):
    data = shutil.copytree(tiny["--data"], tmp_path / "data")
    (data / "0.txt").write_text("\u200b", encoding="utf-8")
    options = ["--max-steps", "2", "--pictures-every", "2", "--batch-size", "2", "--device", "cpu"]
    arguments = ["--data", str(data), "--output", str(tmp_path / "run"), "--on-error", "skip", *options]
    assert main(["distill", *of(tiny, "--student", "--teacher", "--preset"), *arguments]) == 0
    assert sorted(path.name for path in (tmp_path / "run/pictures").iterdir()) == ["step-2.png", "step-2.svg"]


@pytest.mark.parametrize("times, message", [
    ("nan\t1", "is spoken from nan s to 1 s; expected finite times with 0 <= start <= end"),
    ("0.5\tnan", "is spoken from 0.5 s to nan s; expected finite"),
    ("0.8\t0.3", "is spoken from 0.8 s to 0.3 s; expected finite"),
    ("-0.2\t0.3", "is spoken from -0.2 s to 0.3 s; expected finite"),
    ("0.2\tinf", "is spoken from 0.2 s to inf s; expected finite"),
    ("-inf\t0.2", "is spoken from -inf s to 0.2 s; expected finite"),
    ("0.5\t1.3", "is spoken from 0.5 s to 1.3 s; expected times within the audio, which lasts 1.00 s"),
])  # fmt: skip
def test_times_of_words_that_cannot_be(tiny, tmp_path, capsys, times, message):
    (tmp_path / "words.tsv").write_text(f"0\t1.05\tgood\n{times}\tmorning\n")  # 1.05: rounded, within the audio
    options = ["--audio", str(Path(tiny["--data"]) / "0.wav"), "--transcript", "good morning"]
    options += ["--words", str(tmp_path / "words.tsv"), "--output", str(tmp_path / "x")]
    assert main(["align", *of(tiny, "--student", "--teacher", "--preset"), *options]) == 2
    assert f"words.tsv:2: 'morning' {message}" in capsys.readouterr().err
    assert not list(tmp_path.glob("x*"))


def test_pictures_leave_the_training_as_it_was(models, speech, tmp_path, monkeypatch):  # noqa: F811
    options = ["--max-steps", "4", "--log-every", "1", "--preset", "pad-slocal-soft"]
    assert run(models, speech, tmp_path / "plain", *options) == 0
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    shown = [*options, "--pictures-every", "2", "--report-to", "tensorboard"]
    pytest.importorskip("tensorboard")
    assert run(models, speech, tmp_path / "shown", *shown) == 0
    assert losses(tmp_path / "shown") == losses(tmp_path / "plain")
    names = sorted(path.name for path in (tmp_path / "shown" / "pictures").iterdir())
    assert names == ["step-2.png", "step-2.svg", "step-4.png", "step-4.svg"]
    events = [path for folder in (tmp_path / "events", tmp_path / "shown") for path in folder.rglob("events.out*")]
    assert any(b"alignment" in path.read_bytes() for path in events)
