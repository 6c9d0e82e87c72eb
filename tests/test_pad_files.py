"""Files appear whole or not at all, on disk before they take their names; one run at a time writes to a folder."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from pad import files
from pad.errors import UserError
from pad.files import (
    holds_output,
    only_run,
    replace_folder,
    restore_folder,
    whole_file,
    whole_folder,
    write_json,
    write_text,
)


@pytest.fixture
def calls(monkeypatch):
    """The order in which files and folders are synced and renamed."""
    made = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor):
        made.append("fsync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "fsync file")
        fsync(descriptor)

    def replaced(source, target):
        made.append("rename")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)  # which in Python 3.10 keeps the os.replace of its import
    return made


def test_a_file_is_on_disk_before_it_takes_its_name(tmp_path, calls):
    write_text(tmp_path / "new" / "a.txt", "é")
    assert calls == ["fsync file", "rename", "fsync folder"]
    assert (tmp_path / "new" / "a.txt").read_bytes() == "é".encode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_an_error_leaves_the_file_before(tmp_path):
    write_json(tmp_path / "a.json", {"value": 1})
    with pytest.raises(KeyError), whole_file(tmp_path / "a.json") as file:
        file.write(b"part")
        raise KeyError
    assert json.loads((tmp_path / "a.json").read_text()) == {"value": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_processes_may_write_one_file_of_a_cache(tmp_path):
    path = tmp_path / "entry"

    def write(number: int) -> None:
        with whole_file(path, cache=True) as file:
            for _ in range(50):
                file.write(bytes([number]) * 1000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    assert len(set(path.read_bytes())) == 1 and path.stat().st_size == 50_000
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_a_folder_replaces_the_one_before_or_leaves_it(tmp_path, calls):
    for content in ("first", "second"):
        with whole_folder(tmp_path / "student") as folder:
            (folder / content).write_text(content)
            (folder / content).chmod(0o600)
    assert [path.name for path in (tmp_path / "student").iterdir()] == ["second"]
    assert calls == ["fsync file", "fsync folder", "fsync folder"] * 2
    with pytest.raises(KeyError), whole_folder(tmp_path / "student") as folder:
        (folder / "third").write_text("part")
        raise KeyError
    assert [path.name for path in (tmp_path / "student").iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, calls, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new / "pictures"):
        folder.mkdir(parents=True)
        (folder / "content").write_text(folder.name)
    plainly = files.Path.rename

    def rename(path, target):
        if path == new:
            raise OSError(errno.EBUSY, "busy")
        return plainly(path, target)

    monkeypatch.setattr(files.Path, "rename", rename)
    with pytest.raises(OSError, match="busy"):
        replace_folder(new, old)
    assert (old / "content").read_text() == "old" and (new / "pictures" / "content").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    monkeypatch.setattr(files.Path, "rename", plainly)
    calls.clear()
    replace_folder(new, old)
    assert sorted(calls[:2]) == ["fsync file", "fsync folder"] and calls[2:] == ["fsync folder", "fsync folder"]
    assert [path.name for path in tmp_path.iterdir()] == ["old"] and (old / "pictures" / "content").is_file()
    old.rename(tmp_path / ".old.before")  # as a killed process leaves it
    restore_folder(old)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_may_be_told_to_replace_nothing(tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    with whole_folder(folder, replaces=False) as partial:
        (partial / "a").write_text("first")
    with pytest.raises(UserError, match="output: .*student holds something else; choose another folder"):
        with whole_folder(folder, replaces=False):
            pytest.fail("it is said at the beginning")
    folder.joinpath("a").unlink()
    with pytest.raises(UserError, match="holds something else"), whole_folder(folder, replaces=False):
        (folder / "mine").write_text("")  # meanwhile
    assert [path.name for path in folder.iterdir()] == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_folder_does_not_take_the_place_of_a_file(tmp_path):
    (tmp_path / "student").write_text("mine")
    with pytest.raises(NotADirectoryError, match="student"), whole_folder(tmp_path / "student"):
        pass
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("student", "mine")]


def test_the_umask_says_who_may_read(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "")
        with whole_folder(tmp_path / "student") as folder:
            (folder / "b.txt").write_text("")
            (folder / "b.txt").chmod(0o600)
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in sorted(tmp_path.rglob("*"))]
    assert modes == [0o640, 0o750, 0o640]


def test_one_run_at_a_time_writes_to_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LONGEST_LEFT_OVER", 0.1)
    folder = tmp_path / "runs" / "a"
    with only_run(folder):
        (folder / "config.yaml").write_text("")
        with pytest.raises(UserError, match="output: another run is writing to .*a; choose another folder"):
            with only_run(folder):
                pass
        with only_run(tmp_path / "runs" / "b"):
            pass
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
    with pytest.raises(KeyError), only_run(folder):
        raise KeyError
    with only_run(folder):
        shutil.rmtree(folder)
    assert not folder.exists()
    with only_run(folder, beside=True):
        with pytest.raises(UserError, match="another run is writing to .*a; choose"), only_run(folder, beside=True):
            pass
        assert not folder.exists()
    assert not list(folder.parent.glob(".*"))


def test_a_killed_run_holds_no_folder(tmp_path):
    folder = tmp_path / "run"
    code = f"from pathlib import Path; from pad.files import only_run; run = only_run(Path({str(folder)!r})); "
    process = subprocess.Popen([sys.executable, "-c", code + "run.__enter__(); print('in', flush=True); input()"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    with process:
        assert process.stdout.readline() == b"in\n"
        assert not holds_output(folder) and list(folder.iterdir())
        process.kill()
        process.wait()
    with only_run(folder):
        assert not holds_output(folder)


def test_a_file_that_was_being_written_is_no_output(tmp_path):
    """As a kill leaves it; with whole files beside it the folder holds something."""
    (tmp_path / ".config.yaml.partial").write_text("stu")
    assert not holds_output(tmp_path)
    (tmp_path / "config.yaml.partial").write_text("somebody's own")
    assert holds_output(tmp_path)


def test_a_folder_that_cannot_be_made_or_locked(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output: cannot write to .*file"), only_run(tmp_path / "file" / "run"):
        pass

    def without_locks(*args, **options):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", without_locks)
    with only_run(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
