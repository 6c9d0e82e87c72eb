"""A small run of `pad distill`, and the process that its commands are copies of."""

import pytest


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """`Forks` for the whole session."""
    for package in ("transformers", "soundfile"):
        pytest.importorskip(package)
    from forks import Forks

    with Forks(tmp_path_factory.mktemp("forks")) as found:
        yield found


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> dict[str, str]:
    """A student, a teacher and speech that fit one another."""
    pytest.importorskip("transformers")
    from student_models import save_speech, save_teacher, save_whisper

    folder = tmp_path_factory.mktemp("world")
    return {
        "student": save_whisper(folder / "student"),
        "teacher": save_teacher(folder / "teacher"),
        "speech": save_speech(folder / "speech"),
    }


@pytest.fixture(scope="session")
def command(world):
    """The arguments of a run of three steps, which saves at each one."""
    return lambda output, *more: (
        "distill", "--student", world["student"], "--teacher", world["teacher"], "--data", world["speech"],
        "--output", str(output), "--batch-size", "2", "--device", "cpu", "--log-every", "1", "--save-every", "1",
        "--max-steps", "3", "--keep-checkpoints", "2", "--preset", "pad-slocal", *more,
    )  # fmt: skip
