"""What a run prints: lines, and progress bars that do not hide an error message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from pad.errors import naming_output
from pad.processes import first_process


def say(line: str) -> None:
    """Print a line, in the first process only."""
    if first_process():
        with naming_output():
            print(line, flush=True)


@contextmanager
def counting(title: str, unit: str) -> Iterator[Callable[[list], Iterator]]:
    """A function that yields the items of a list, with a progress bar that disappears at the end."""
    with tqdm(desc=title, unit=unit, leave=False, disable=not first_process()) as bar:

        def counted(items: list) -> Iterator:
            bar.reset(total=len(items))
            for item in items:
                yield item
                bar.update()

        yield counted
