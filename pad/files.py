"""Files and folders that appear whole or not at all, and folders that one run at a time writes to."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from pad.errors import UserError, reason

LOCK_FILE = ".lock"
PARTIAL = ".*.partial"  # what a kill leaves of a file or folder that was being written
# The workers of a run that was killed hold its lock until they notice.
_LONGEST_LEFT_OVER = 10.0  # seconds


@contextmanager
def whole_file(path: Path, *, cache: bool = False) -> Iterator[BinaryIO]:
    """A new file to write to, which takes the name `path` at the end of the context: the old file or the new one.

    It is on disk before it takes the name; after an error nothing of it stays. Its folder is made if need be, and the
    umask says who may read it.
    cache: the file can be computed again and processes may share it: each writes its own, and none waits for the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = f".{os.getpid()}.{secrets.token_hex(4)}" if cache else ""
    partial = path.with_name(f".{path.name}{unique}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            if not cache:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if not cache:
        sync_folder(path.parent)


@contextmanager
def whole_folder(path: Path, *, replaces: bool = True) -> Iterator[Path]:
    """A new folder to fill, which replaces the folder `path` at the end of the context; after an error nothing stays.

    What a killed process has left of it is put right by the next one. The umask says who may read it and the files in
    it. One process at a time may write it.
    replaces: False raises UserError where anything but an empty folder is in its place.
    """
    if not replaces:
        _expect_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    restore_folder(path)
    with partial_folder(path) as partial:
        yield partial
        if not replaces:
            _expect_free(path)
        replace_folder(partial, path)


def _expect_free(path: Path) -> None:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"output: {path} holds something else; choose another folder")


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` for what shall lie there; what is left of it at the end of the context goes.

    So does what a killed process has left. One process at a time may write to `path`.
    """
    partial = path.with_name(f".{path.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def restore_folder(path: Path) -> None:
    """Put right what a process has left of `path` that was killed while it replaced it."""
    before = _before(path)
    if before.exists():
        if path.exists():
            shutil.rmtree(before)
        else:
            before.rename(path)


def replace_folder(new: Path, path: Path) -> None:
    """Let a folder, once it is on disk, take the place of the folder `path`; after an error that is there as it was.

    The umask says who may read it and the files in it.
    """
    content = list(new.rglob("*"))
    follow_umask(new, *content)
    for each in content:
        if each.is_dir():
            sync_folder(each)
        elif each.is_file():
            with each.open("rb") as opened:
                os.fsync(opened.fileno())
    sync_folder(new)
    before = _before(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if path.exists():
        path.rename(before)
    try:
        new.rename(path)
    except BaseException:
        if before.exists():
            before.rename(path)
        raise
    sync_folder(path.parent)
    shutil.rmtree(before, ignore_errors=True)


def _before(path: Path) -> Path:
    """Where a folder lies while another takes its place."""
    return path.with_name(f".{path.name}.before")


@contextmanager
def refusing_output(folder: Path) -> Iterator[None]:
    """Turn the system's refusal of an output folder, in the context, into a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"output: cannot write to {folder}: {reason(error)}; expected a folder that can be "
                        "made and written") from error  # fmt: skip


@contextmanager
def only_run(folder: Path, *, beside: bool = False) -> Iterator[None]:
    """Make an output folder if need be, and keep all other runs from writing to it in the context.

    Raises UserError where another run is at work there. The lock ends with its process, however that ends.
    beside: the lock lies beside the folder, which is not made: another is to take its place.
    """
    lock_file = folder.with_name(f".{folder.name}{LOCK_FILE}") if beside else folder / LOCK_FILE
    lock = FileLock(lock_file)
    with refusing_output(folder):
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=_LONGEST_LEFT_OVER)
        except Timeout:
            raise UserError(
                f"output: another run is writing to {folder}; choose another folder, or wait until that run ends"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # of disks that know no locks
                raise
    try:
        yield
    finally:
        lock_file.unlink(missing_ok=True)
        lock.release()


def holds_output(folder: Path) -> bool:
    """Whether there is anything in a folder but what a run leaves that was killed before it had written a file."""
    return folder.exists() and not all(any(map(path.match, (LOCK_FILE, PARTIAL))) for path in folder.iterdir())


def nearest(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def try_folder(folder: Path) -> None:
    """Raise OSError unless a file can be made in a folder, or in its nearest parent that exists."""
    with tempfile.TemporaryFile(dir=nearest(folder)):
        pass


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on disk, where the system has a way to."""
    if os.name != "posix":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole; of a file name that is no UTF-8, its bytes as JSON and Python write them."""
    with whole_file(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_json(path: Path, content: object) -> None:
    """Write a JSON file whole."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def follow_umask(*paths: Path) -> None:
    """Give files and folders the modes of plainly made ones; safetensors and tempfile shut other users out."""
    mask = os.umask(0)
    os.umask(mask)
    for path in paths:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
