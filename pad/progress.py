"""What a run says while it goes on: lines, and progress bars that are out of the way of an error's line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


def first_process() -> bool:
    """Whether this is the process, of those that train together, that writes and speaks."""
    return int(os.environ.get("RANK", 0)) == 0


def say(line: str) -> None:
    """Print a line, once however many processes there are."""
    if first_process():
        print(line, flush=True)


@contextmanager
def counting(title: str, unit: str) -> Iterator[Callable[[list], Iterator]]:
    """A function that gives the items of a list one by one, with a bar that is gone afterwards."""
    with tqdm(desc=title, unit=unit, leave=False, disable=not first_process()) as bar:

        def counted(items: list) -> Iterator:
            bar.reset(total=len(items))
            for item in items:
                yield item
                bar.update()

        yield counted
