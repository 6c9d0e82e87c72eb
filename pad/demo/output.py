"""The output folder of a demo, which takes the place of an earlier demo and of nothing else."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pad.errors import UserError, shown
from pad.files import only_run, partial_folder, refusing_output, replace_folder, restore_folder, try_folder, write_json

REPORT = "report.json"
_OWN = "demo_files"  # in the report: all files of the demo
_MOST_NAMED = 5


@contextmanager
def demo_folder(folder: Path, name: str) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder`, a resolved path, at the end of the context.

    Raises UserError, which calls it `name`, where anything else than an earlier demo is in its place: at the beginning,
    or at the end, where the new demo is kept beside it. No other demo writes there meanwhile.
    """
    _expect_replaceable(folder, name)
    with _parents_made(folder), only_run(folder, beside=True):
        _expect_replaceable(folder, name)  # again: another demo may have ended since
        restore_folder(folder)
        if (folder / REPORT).is_file():
            print(f"{name} holds an earlier demo, which this one replaces when it is done")
        with partial_folder(folder) as results:
            yield results
            reason = _in_the_way(folder)  # minutes later
            place = _free_beside(folder) if reason else folder
            replace_folder(results, place)
        if reason:
            raise UserError(f"output: {name} {reason}; the finished demo is in {place}")


def save_report(report: dict, results: Path) -> None:
    """Write the report of a demo whose other files are in place, with the names of them all."""
    files = [path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()]
    write_json(results / REPORT, report | {_OWN: sorted([REPORT, *files])})


def _expect_replaceable(folder: Path, name: str) -> None:
    reason = _in_the_way(folder)
    if reason:
        raise UserError(f"output: {name} {reason}; choose another folder")


def _in_the_way(folder: Path) -> str | None:
    """Why a demo cannot take a folder's place, None if it can."""
    if os.path.ismount(folder):
        return "is a mount point, which cannot be replaced"
    if folder.exists() and not folder.is_dir():
        return "is a file"
    with refusing_output(folder):
        strange = list(itertools.islice(_not_of_a_demo(folder, _of_the_demo(folder)), _MOST_NAMED + 1))
    if not strange:
        return None
    named = ", ".join(shown(str(path.relative_to(folder))) for path in strange[:_MOST_NAMED])
    return f"holds what no demo has written: {named}{' and more' if len(strange) > _MOST_NAMED else ''}"


def _of_the_demo(folder: Path) -> set[Path]:
    """The files of the demo in a folder and the folders around them; none without its report."""
    try:
        files = {folder / name for name in json.loads((folder / REPORT).read_text(encoding="utf-8"))[_OWN]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return files.union(*(path.parents for path in files))


def _not_of_a_demo(folder: Path, own: set[Path]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path not in own:
            yield path
        elif path.is_dir() and not path.is_symlink():
            yield from _not_of_a_demo(path, own)


def _free_beside(folder: Path) -> Path:
    beside = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(path for path in beside if not os.path.lexists(path))


@contextmanager
def _parents_made(folder: Path) -> Iterator[None]:
    """Make the folders around the output; after an error those that are new and empty go again."""
    new = [parent for parent in folder.absolute().parents if not parent.exists()]
    try:
        with refusing_output(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            try_folder(folder.parent)
        yield
    except BaseException:
        for parent in new:
            with suppress(OSError):
                parent.rmdir()
        raise
