"""Runs that are stopped, killed, short of disk, spread over processes; caches, maps and settings files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("transformers")

import soundfile  # noqa: E402
from safetensors import SafetensorError  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from test_pad_distill import command, losses, models, refused, run, speech  # noqa: E402, F401
from transformers import AutoModel  # noqa: E402

import pad  # noqa: E402
from pad.cli import main  # noqa: E402
from pad.distill.checkpoints import last_whole_checkpoint  # noqa: E402
from pad.distill.config import DistillConfig  # noqa: E402
from pad.distill.trainer import DistillationTrainer  # noqa: E402

OPTIONS = ["--log-every", "1", "--learning-rate", "1e-3", "--warmup-steps", "0", "--max-steps", "6"]


def parameters(folder: Path) -> list[torch.Tensor]:
    return list(AutoModel.from_pretrained(folder).parameters())


def assert_same_run(one: Path, other: Path):
    assert losses(one) == losses(other)
    assert all(torch.equal(a, b) for a, b in zip(parameters(one / "student"), parameters(other / "student")))


@pytest.fixture(scope="module")
def whole(models, speech, tmp_path_factory):  # noqa: F811
    """A run that nothing disturbed."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    assert main(command(models, speech, output, *OPTIONS)) == 0
    return output


@pytest.mark.parametrize(
    "number, code",
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
        (signal.SIGKILL, -9),
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(models, speech, whole, tmp_path, number, code):  # noqa: F811
    """SIGTERM, SIGHUP and Ctrl-C save where they were; after SIGKILL the last checkpoint serves."""
    output = tmp_path / "run"
    slow = "import time, pad.distill.trainer as t\nf = t.batch_loss\n"
    slow += "def slow(*a):\n    time.sleep(0.4)\n    return f(*a)\n"
    program = f"import sys\n{slow}t.batch_loss = slow\nfrom pad.cli import main\nsys.exit(main(sys.argv[1:]))"
    arguments = command(models, speech, output, *OPTIONS, "--save-every", "1")
    child = subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while last_whole_checkpoint(output / "checkpoints") is None and time.monotonic() < deadline:
        time.sleep(0.05)
        assert child.poll() is None, child.stderr.read()
    child.send_signal(number)
    message = child.communicate(timeout=120)[1]
    assert child.returncode == code, message
    assert not (output / "student").exists()
    if code > 0:
        assert "--resume goes on from there" in message and "Traceback" not in message
    assert main([*arguments, "--resume"]) == 0
    assert_same_run(output, whole)


def test_disk_full_leaves_the_checkpoint_before(models, speech, whole, tmp_path, monkeypatch, capsys):  # noqa: F811
    arguments = command(models, speech, tmp_path / "run", *OPTIONS, "--save-every", "2", "--keep-checkpoints", "1")
    save = DistillationTrainer._save_optimizer_and_scheduler

    def full(trainer, folder):
        if trainer.state.global_step == 4:
            raise OSError(28, "No space left on device")
        return save(trainer, folder)

    monkeypatch.setattr(DistillationTrainer, "_save_optimizer_and_scheduler", full)
    assert main(arguments) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"error: output: cannot write to {tmp_path / 'run'}: no space is left on its disk" in message
    assert last_whole_checkpoint(tmp_path / "run" / "checkpoints").name == "checkpoint-2"
    monkeypatch.undo()
    assert main([*arguments, "--resume"]) == 0
    assert_same_run(tmp_path / "run", whole)


def test_a_run_of_other_settings_is_not_resumed(models, speech, whole, capsys):  # noqa: F811
    files = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    other = ["--preset", "tlocal", "--batch-size", "3", "--max-steps", "9"]
    assert main([*command(models, speech, whole, *OPTIONS), *other, "--resume"]) == 2
    message = capsys.readouterr().err
    for part in ("preset was 'pad-slocal', now 'tlocal'", "batch_size was 2, now 3", "max_steps was 6, now 9"):
        assert part in message
    assert files == {path: path.stat().st_mtime_ns for path in whole.rglob("*")}


def test_a_finished_run_takes_no_step_when_resumed(models, speech, whole, tmp_path, capsys):  # noqa: F811
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "student")
    arguments = [*command(models, speech, tmp_path / "run", *OPTIONS), "--resume", "--log-every", "2"]
    assert main(arguments) == 0
    assert "was finished at step 6; its student is saved again" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", whole)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-6"]
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert main(arguments) == 0
    assert "is finished; its student stays as it is" in capsys.readouterr().out
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_resume_starts_a_run_that_has_no_checkpoint(models, speech, whole, tmp_path, capsys):  # noqa: F811
    """One command line serves a job that is queued again, wherever it was killed."""
    arguments = [*command(models, speech, tmp_path / "run", *OPTIONS), "--resume"]
    for name in ("config.yaml", "versions.json"):  # of a run that was killed at its start
        (tmp_path / "killed").mkdir(exist_ok=True)
        shutil.copy(whole / name, tmp_path / "killed")
    for output in (tmp_path / "run", tmp_path / "killed"):
        arguments[arguments.index("--output") + 1] = str(output)
        assert main(arguments) == 0
        assert f"resume: no checkpoint in {output / 'checkpoints'} yet; starting from step 0" in capsys.readouterr().out
        assert_same_run(output, whole)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("mine")
    arguments[arguments.index("--output") + 1] = str(tmp_path / "other")
    assert main(arguments) == 2
    assert f"resume: {tmp_path / 'other'} holds no config.yaml" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["precious"]


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 22"),
        RuntimeError("open file failed because of errno 28 on fopen: No space left on device, file path: a.pt"),
    ],
)
def test_other_faces_of_a_full_disk(models, speech, tmp_path, monkeypatch, capsys, error):  # noqa: F811
    def full(trainer, folder=None, state_dict=None):
        raise error

    monkeypatch.setattr(DistillationTrainer, "_save", full)
    assert main(command(models, speech, tmp_path / "run", *OPTIONS)) == 1
    expected = f"pad distill: error: output: cannot write to {tmp_path / 'run'}: no space is left on its disk"
    assert capsys.readouterr().err.splitlines()[-1].startswith(expected)


def test_two_processes_give_the_parameters_of_one_with_the_batches_of_both(models, speech, tmp_path):  # noqa: F811
    """Four utterances of one length, without dropout: what differs is who computes which of them, and how often.

    The vector for masked frames gets no gradient.
    """
    data = tmp_path / "data"
    data.mkdir()
    for path in sorted(speech.glob("*.wav"))[:4]:
        samples, rate = soundfile.read(path)
        soundfile.write(data / path.name, samples[: 2 * rate], rate)
        (data / path.with_suffix(".txt").name).write_text("good morning and good night")
    student = AutoModel.from_pretrained(models["student"])
    for name in ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"):
        setattr(student.config, name, 0.0)
    assert student.masked_spec_embed.requires_grad
    student.save_pretrained(tmp_path / "student")
    models = {**models, "student": str(tmp_path / "student")}
    options = ["--log-every", "1", "--max-steps", "3", "--learning-rate", "1e-3", "--warmup-steps", "0"]

    def arguments(name, batch_size):
        found = command(models, data, tmp_path / name, *options, "--preset", "pad-tlocal-soft")
        found[found.index("--batch-size") + 1] = str(batch_size)
        return found

    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29511"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    found = [*arguments("two", 2), "--gradient-checkpointing"]
    done = subprocess.run([*launch, "-m", "pad.cli", *found], env=environment,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("the distilled student is in") == 1
    assert main(arguments("one", 4)) == 0
    for one, other in zip(parameters(tmp_path / "one" / "student"), parameters(tmp_path / "two" / "student")):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
    start = parameters(Path(models["student"]))
    assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(start, parameters(tmp_path / "one" / "student")))


def test_teacher_cache_in_a_folder(models, speech, whole, tmp_path):  # noqa: F811
    cache = tmp_path / "cache"
    options = [*OPTIONS, "--teacher-cache", str(cache)]
    assert run(models, speech, tmp_path / "first", *options) == 0
    (file,) = cache.rglob("*.safetensors")
    assert len(load_file(file)["keys"]) == 5
    assert run(models, speech, tmp_path / "second", *options) == 0
    assert list(cache.rglob("*.safetensors")) == [file]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match=f"teacher_cache: {file} is damaged and not used"):
        assert run(models, speech, tmp_path / "third", *options) == 0
    (again,) = (path for path in cache.rglob("*.safetensors") if path != file)
    assert len(load_file(again)["keys"]) == 5
    for name in ("first", "second", "third"):
        assert losses(tmp_path / name) == pytest.approx(losses(whole), rel=1e-4)


def test_linear_map_between_widths(models, speech, tmp_path):  # noqa: F811
    wide = {**models, "teacher": models["wide teacher"]}
    assert run(wide, speech, tmp_path / "run", *OPTIONS, "--linear-map", "--save-every", "3") == 0
    assert load_file(tmp_path / "run" / "map.safetensors")["weight"].shape == (64, 96)
    student = AutoModel.from_pretrained(tmp_path / "run" / "student")
    before = dict(AutoModel.from_pretrained(models["student"]).named_parameters())
    assert {name for name, _ in student.named_parameters()} == set(before)
    assert any(not torch.equal(value, before[name]) for name, value in student.named_parameters())


def test_bad_samples_are_skipped_and_counted(models, speech, tmp_path, capsys):  # noqa: F811
    names = [path.name for path in sorted(speech.glob("*.wav"))]
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    lines = [f"{speech / name}\tgood morning" for name in names] + ["broken.wav\tgood night", f"{speech / names[0]}\t"]
    (tmp_path / "list.tsv").write_text("\n".join(lines))
    options = ["--max-steps", "2"]
    code = run(models, tmp_path / "list.tsv", tmp_path / "run", *options)
    assert "broken.wav: not a readable audio file" in refused(capsys, tmp_path / "run", code)
    assert run(models, tmp_path / "list.tsv", tmp_path / "run", *options, "--on-error", "skip") == 0
    assert "left out: 2" in capsys.readouterr().out
    assert sum(json.loads((tmp_path / "run" / "left_out.json").read_text())["left_out"].values()) == 2


def test_settings_from_yaml_and_over_it(models, speech, tmp_path):  # noqa: F811
    settings = {"student": models["student"], "teacher": models["teacher"], "data": str(speech), "batch_size": 3,
                "max_steps": 1, "learning_rate": 1e-3, "device": "cpu", "preset": "tlocal"}  # fmt: skip
    text = yaml.safe_dump(settings).replace("0.001", "1e-3")
    (tmp_path / "run.yaml").write_text(text)
    options = ["--output", str(tmp_path / "run"), "--batch-size", "2"]
    assert main(["distill", "--config", str(tmp_path / "run.yaml"), *options]) == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    wanted = vars(DistillConfig(**{**settings, "batch_size": 2, "output": str(tmp_path / "run")}))
    assert (
        saved | {"resume": False} == wanted | {"prior_layers": [], "prior_layer_weights": []} and "resume" not in saved
    )
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert versions["torch"] == torch.__version__ and versions["git"]
    again = ["--config", str(tmp_path / "run" / "config.yaml"), "--output", str(tmp_path / "again")]
    assert main(["distill", *again]) == 0
    assert all(torch.equal(a, b) for a, b in zip(parameters(tmp_path / "run" / "student"),
                                                 parameters(tmp_path / "again" / "student")))  # fmt: skip


@pytest.mark.parametrize(
    "text, message",
    [
        ("batchsize: 3", "unknown setting 'batchsize'; did you mean 'batch_size'?"),
        ("batch_size: three", "batch_size: expected int, got 'three'"),
        ("resume: 1", "resume: expected bool, got 1"),
        ("precision: int8", "precision: expected float32, bfloat16 or float16, got 'int8'"),
        ("- a list", "expected lines of the form 'name: value', got list"),
        ("a: [", "cannot read"),
    ],
)
def test_mistakes_in_a_settings_file(tmp_path, capsys, text, message):
    (tmp_path / "run.yaml").write_text(text)
    assert main(["distill", "--config", str(tmp_path / "run.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_mistakes_on_the_command_line(tmp_path, capsys):
    assert main(["distill", "--config", str(tmp_path / "nowhere.yaml")]) == 2
    assert "cannot read" in capsys.readouterr().err
    for arguments in (["distill", "--student", "x"], ["distill", "--batch-size", "many"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2


def test_info(capsys):
    assert main(["info"]) == 0
    assert "reference" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.strip() == f"pad {pad.__version__}"


def test_gradient_checkpointing(models, speech, whole, tmp_path):  # noqa: F811
    """The same losses but for rounding, and a checkpoint that needs nothing of this package."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert run(models, speech, tmp_path / "run", *OPTIONS, "--gradient-checkpointing") == 0
    assert losses(tmp_path / "run")[0] == pytest.approx(losses(whole)[0], rel=1e-4)
    student = tmp_path / "run" / "student"
    assert not any("pad" in path.read_text() and "significance" in path.read_text() for path in student.glob("*.json"))
    code = "import sys; sys.modules['pad'] = None; from transformers import AutoModel"
    code += "; AutoModel.from_pretrained(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, student], check=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["xx", "--data", "d"], "task: got 'xx'; expected `pad evaluate TASK --data FOLDER` with one of ic, er, sf"),
        (["--data", "d"], "task: got none; expected"),
        (["--output", "ic", "--data", "d"], "task: got none; expected"),
        (["ic", "--student", "s", "--output", "o"], "data: --data is missing; expected"),
        (["--student", "s", "--output", "{}", "ic", "--data", "d"], "student: cannot load 's': no such folder here"),
        (["--student", "s", "--output", "{}", "--no-resume", "ic", "--data=d"], "student: cannot load 's'"),
    ],
)
def test_the_task_of_an_evaluation_is_found_anywhere(tmp_path, capsys, arguments, message):
    assert main(["evaluate", *(argument.format(tmp_path / "out") for argument in arguments)]) == 2
    assert f"pad evaluate: error: {message}" in capsys.readouterr().err


def test_help_of_an_evaluation_shows_its_short_form(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "ic", "--help"])
    assert stop.value.code == 0
    assert "pad evaluate ic --data FOLDER" in " ".join(capsys.readouterr().out.split())
