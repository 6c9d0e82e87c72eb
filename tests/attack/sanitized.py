"""pytest plugin of sanitizers.py: the library PAD_ATTACK_LIBRARY, and its kernels PAD_ATTACK_INSTRUCTION_SET."""

import importlib.util
import os
import sys

import torch  # noqa: F401  its symbols come first

LACKING = 3


def _install(path: str, instruction_set: str) -> None:
    spec = importlib.util.spec_from_file_location("pad_kernels._native", path)
    assert spec is not None and spec.loader is not None
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    if not library.set_instruction_set(instruction_set):
        print(f"{instruction_set}: not on this processor", flush=True)
        sys.exit(LACKING)
    sys.modules["pad_kernels._native"] = library


_install(os.environ["PAD_ATTACK_LIBRARY"], os.environ["PAD_ATTACK_INSTRUCTION_SET"])
