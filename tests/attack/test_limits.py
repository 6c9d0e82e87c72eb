"""Too little memory and too little disk: one line, exit 1, and what was saved before is whole."""

import shutil
import subprocess

import pytest

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

from test_pad_distill import losses  # noqa: E402

from pad.distill.manifest import damage, numbered  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def half(forks, command, tmp_path_factory):
    """A run that was ended in its third step, and one that was not."""
    folder = tmp_path_factory.mktemp("half")
    done = forks.run(*command(folder / "whole"))
    assert done.code == 0, done.errors
    shutil.copytree(folder / "whole", folder / "run")
    for name in ("checkpoints/checkpoint-3", "student"):
        shutil.rmtree(folder / "run" / name)
    return folder / "run", folder / "whole"


def one_line(done, codes) -> str:
    errors = [line for line in done.errors.splitlines() if line.startswith("pad ")]
    assert done.code in codes and len(errors) == 1 and "Traceback" not in done.errors, done
    return errors[0]


def goes_on(forks, command, output, whole) -> None:
    """What was saved is as it was, and the run ends as if nothing had been."""
    assert all(damage(path) is None for _, path in numbered(output / "checkpoints"))
    assert not list(output.rglob(".*"))
    done = forks.run(*command(output, "--resume"))
    assert done.code == 0, done.errors
    assert losses(output) == losses(whole)


@pytest.mark.parametrize("mebibytes", [0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96])
def test_memory(forks, command, half, tmp_path, mebibytes):
    """So much more than the imports have taken."""
    output = shutil.copytree(half[0], tmp_path / "run")
    done = forks.run(*command(output, "--resume"), RLIMIT_AS=mebibytes << 20)
    if done.code:
        one_line(done, (1, 2))
    goes_on(forks, command, output, half[1])


@pytest.mark.parametrize("kibibytes", [1, 4, 16, 64, 128, 256, 300, 350, 400, 500, 600, 700])
def test_file_sizes(forks, command, half, tmp_path, kibibytes):
    output = shutil.copytree(half[0], tmp_path / "run")
    done = forks.run(*command(output, "--resume"), RLIMIT_FSIZE=kibibytes << 10)
    if done.code:
        assert "cannot write" in one_line(done, (1, 2))
    goes_on(forks, command, output, half[1])


@pytest.mark.parametrize("kibibytes", [4, 40, 200, 400, 600, 800, 1200, 1600, 2400])
def test_disks(forks, command, half, tmp_path, kibibytes):
    """A new run on a file system of that size; then there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        output = disk / "run"
        done = forks.run(*command(output))
        if done.code:
            assert "no space is left" in one_line(done, (1, 2))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        if (output / "config.yaml").is_file():
            goes_on(forks, command, output, half[1])
        elif output.exists():
            assert not list(output.rglob("*")), list(output.rglob("*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
