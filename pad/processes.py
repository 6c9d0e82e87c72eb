"""The processes of a run: which is the first, and how a command starts one."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def first_process() -> bool:
    """Whether this is the one of several training processes that writes files and prints."""
    return int(os.environ.get("RANK", 0)) == 0


def python_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module as `python -m` does, on the path of this process.

    `python -m` would put the working folder first, whose files may have the names of modules; -P, which keeps it out,
    is of Python 3.11.
    """
    package = str(Path(__file__).parent.parent)
    path = [place for place in sys.path if place]
    if package not in path:
        path.append(package)
    code = f"import sys; sys.path[:] = {ascii(path)}; import runpy; "
    code += f"runpy.run_module({ascii(module)}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", code, *arguments]
