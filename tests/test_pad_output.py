# ruff: noqa: F811
"""What a run does to what others have in its output folder, or take from it."""

import errno
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

from test_pad_distill import models, run, speech  # noqa: E402, F401
from torch.utils.data import get_worker_info  # noqa: E402

from pad.cli import main  # noqa: E402
from pad.digests import DIGESTS_FILE  # noqa: E402
from pad.distill.checkpoints import StopOnSignal  # noqa: E402
from pad.distill.manifest import MANIFEST  # noqa: E402
from pad.distill.output import VERSIONS_FILE, left_as_found, record_versions  # noqa: E402
from pad.distill.trainer import DistillationTrainer  # noqa: E402
from pad.errors import UserError  # noqa: E402
from pad.settings import SETTINGS_FILE  # noqa: E402
from pad.step.collate import Collator  # noqa: E402

STEPS = ["--save-every", "1", "--max-steps", "3"]


@pytest.fixture(scope="module")
def finished(models, speech, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "run"
    assert run(models, speech, output, *STEPS) == 0
    return output


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def content(folder: Path) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_line(capsys, code: int) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pad distill:")]
    assert code in (1, 2) and len(lines) == 1
    return lines[0]


def test_a_finished_student_keeps_what_its_user_has_added(models, speech, copied, capsys):
    (copied / "student" / "README.md").write_text("what it can do")
    before = content(copied)
    assert run(models, speech, copied, *STEPS, "--resume") == 0
    assert f"resume: the run in {copied} is finished; its student stays as it is" in capsys.readouterr().out
    assert content(copied) == before


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_student_is_not_replaced(models, speech, copied, capsys, kind):
    student = copied / "student"
    shutil.rmtree(student)
    if kind == "file":
        student.write_text("mine")
    elif kind == "folder":
        student.mkdir()
        (student / "notes").write_text("mine")
    else:
        student.symlink_to("nowhere")
    before = content(copied)
    line = one_line(capsys, run(models, speech, copied, *STEPS, "--resume"))
    assert f"output: {student} is not a student that a run has saved; move it away" in line
    assert content(copied) == before and student.is_symlink() == (kind == "link")


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("notes", ["", "notes", "pictures/notes", "checkpoints/notes"])
def test_a_run_that_fails_removes_what_it_wrote_and_nothing_else(tmp_path, linked, notes):
    output = folder = tmp_path / "run"
    folder.mkdir()
    if linked:
        output = tmp_path / "link"
        output.symlink_to(folder)
    with pytest.raises(UserError), left_as_found(output):
        for name in (SETTINGS_FILE, VERSIONS_FILE, DIGESTS_FILE, ".lock", "pictures/step-1.png",
                     "checkpoints/checkpoint-1/weights", *filter(None, [notes])):  # fmt: skip
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            (output / name).write_text(name)
        raise UserError("data: a.wav cannot be decoded")
    if notes:
        assert content(tmp_path / "run") == {Path(notes): notes.encode()}
    else:
        assert folder.exists() == linked and not content(tmp_path)
    assert output.is_symlink() == linked


@pytest.mark.parametrize("kind", ["damaged", "a folder", "unreadable"])
def test_checkpoints_that_cannot_be_used_are_not_removed(models, speech, copied, capsys, monkeypatch, kind):
    shutil.rmtree(copied / "student")
    manifests = sorted(copied.glob(f"checkpoints/*/{MANIFEST}"))
    expected = f"resume: cannot read {manifests[-1]}: "
    if kind == "damaged":
        for path in manifests:
            path.write_bytes(b"")
        expected = f"resume: no checkpoint in {copied / 'checkpoints'} is whole; move checkpoint-2, checkpoint-3 away"
    elif kind == "a folder":
        manifests[-1].unlink()
        manifests[-1].mkdir()
        expected += "Is a directory"
    else:
        plainly = Path.read_text

        def refuse(path, *args, **options):
            if path == manifests[-1]:
                raise OSError(errno.EIO, "Input/output error", str(path))
            return plainly(path, *args, **options)

        monkeypatch.setattr(Path, "read_text", refuse)
        expected += "Input/output error"
    before = content(copied)
    assert expected in one_line(capsys, run(models, speech, copied, *STEPS, "--resume"))
    assert content(copied) == before


def test_a_checkpoint_that_was_never_whole_is_no_reason_to_stop(models, speech, copied, capsys):
    """As a kill during the first save leaves it."""
    shutil.rmtree(copied / "student")
    shutil.rmtree(copied / "checkpoints" / "checkpoint-3")
    (copied / "checkpoints" / "checkpoint-2" / MANIFEST).unlink()
    assert run(models, speech, copied, *STEPS, "--resume") == 0
    assert "starting from step 0" in capsys.readouterr().out


def test_a_folder_that_is_removed_meanwhile_can_still_be_resumed(models, speech, tmp_path, monkeypatch, capsys):
    output = tmp_path / "run"
    save = DistillationTrainer._save_checkpoint

    def save_elsewhere(trainer, *args):
        if trainer.state.global_step == 2:
            shutil.rmtree(output)
        save(trainer, *args)
        if trainer.state.global_step == 3:  # again, before the student is saved
            (output / DIGESTS_FILE).unlink()

    monkeypatch.setattr(DistillationTrainer, "_save_checkpoint", save_elsewhere)
    assert run(models, speech, output, *STEPS, "--center-teacher") == 0
    for name in (SETTINGS_FILE, VERSIONS_FILE, DIGESTS_FILE, "teacher_mean.safetensors"):
        assert (output / name).is_file()
    assert run(models, speech, output, *STEPS, "--center-teacher", "--resume") == 0
    assert "is finished" in capsys.readouterr().out


def test_a_checkpoint_that_another_run_has_removed_is_a_line(models, speech, copied, monkeypatch, capsys):
    shutil.rmtree(copied / "student")
    monkeypatch.setattr("pad.distill.run._rotate_left", lambda checkpoint, keep: shutil.rmtree(checkpoint))
    line = one_line(capsys, run(models, speech, copied, *STEPS, "--resume"))
    assert f"resume: {copied / 'checkpoints' / 'checkpoint-3'} was removed meanwhile" in line


def test_versions_of_later_starts_are_kept_beside_the_first(tmp_path, monkeypatch, capsys):
    path = tmp_path / VERSIONS_FILE
    for number, torch in enumerate(("2.4", "2.4", "2.5", "2.5", "2.4")):
        monkeypatch.setattr("pad.distill.output.versions", lambda torch=torch: {"torch": torch, "git": "abc"})
        record_versions(path)
        said = capsys.readouterr().out
        assert ("other versions than before: torch was" in said) == (number in (2, 4))
    record = json.loads(path.read_text())
    assert record["torch"] == "2.4" and [each["torch"] for each in record["resumed"]] == ["2.5", "2.4"]
    path.write_text("[")
    record_versions(path)
    assert f"{path} is damaged" in capsys.readouterr().out and json.loads(path.read_text())["torch"] == "2.4"


@pytest.mark.parametrize("handler, stops", [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_a_connection_that_ends_hangs_up_twice(handler, stops):
    """Once by the system and once by the shell; under nohup it is ignored."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        stop = StopOnSignal()
        stop.on_train_begin(None, None, None)
        try:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number == (signal.SIGHUP if stops else 0)
        finally:
            stop.restore()
        assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("end", ["killed", "too few files"])
def test_a_worker_that_ends_or_cannot_send_is_a_line(models, speech, tmp_path, monkeypatch, capfd, end):
    pad = Collator._pad

    def spoil(collator, items):
        batch = pad(collator, items)
        if get_worker_info() is not None and end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif get_worker_info() is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        return batch

    monkeypatch.setattr(Collator, "_pad", spoil)
    assert run(models, speech, tmp_path / "run", *STEPS, "--workers", "1", "--preset", "tlocal") == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert "error: DataLoader worker (pid" in last and last.endswith("; --resume goes on")


@pytest.mark.parametrize("command", ["distill --teacher t --data d", "evaluate --ic d"])
def test_an_output_that_safetensors_cannot_read(tmp_path, capsys, command):
    output = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    assert main([*command.split(), "--student", "s", "--output", output]) == 2
    error = capsys.readouterr().err
    assert "error: output: expected a name in UTF-8, got " in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
