"""The Triton backend: its kernels under Triton's interpreter, in a process of their own, and what it refuses."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
FOLDER = Path(__file__).parent


def test_kernels_under_the_interpreter():
    """tests/triton_interpreted.py: the interpreter has to be chosen before triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", FOLDER / "triton_interpreted.py"]
    child = subprocess.run(command, env=environment, cwd=FOLDER, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout[-8000:] + child.stderr[-2000:]


def test_the_package_does_not_import_triton():
    code = "import sys, pad_kernels; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "op, device, dtype, width, reason",
    [
        ("alignment_forward", "cuda", torch.bfloat16, 768, None),
        ("alignment_backward", "cuda", torch.float32, 2048, None),
        ("significance", "cuda", torch.float16, 80, None),
        ("significance", "cuda", torch.float16, None, None),
        ("select_spans", "cuda", torch.float32, None, None),
        ("kernels", "cuda", torch.float32, None, "no kernels"),
        ("alignment_forward", "cpu", torch.float32, 768, "on cuda, not on cpu"),
        ("alignment_forward", "cuda", torch.float64, 768, "not torch.float64"),
        ("alignment_forward", "cuda", torch.float32, 2056, "multiples of 8 up to 2048, not 2056"),
        ("alignment_forward", "cuda", torch.float32, 36, "multiples of 8 up to 2048, not 36"),
        ("significance", "cuda", torch.float32, 8, "16 to 256 columns, not 8"),
        ("significance", "cuda", torch.float32, 264, "16 to 256 columns, not 264"),
    ],
)
def test_unsupported_reason(op, device, dtype, width, reason):
    from pad_kernels.backends.triton import BACKEND

    found = BACKEND.unsupported_reason(op, torch.device(device), dtype, width)
    assert found is None if reason is None else reason in found


def test_choices_depend_on_sizes_alone():
    from pad_kernels.backends.triton import configurations

    for table in (
        configurations.SCORE,
        configurations.SCORE_SPANS,
        configurations.UNIT_GRADIENT,
        configurations.TEXT_GRADIENT,
    ):
        for dtype in (torch.float32, torch.float16):
            for tokens in (1, 31, 32, 33, 64, 65, 1000):
                blocks = configurations.by_tokens(table, dtype, tokens)
                assert blocks.tokens >= min(tokens, max(table[dtype.itemsize]))
    assert configurations.significance_blocks(torch.bfloat16, 64).width == 64
    assert configurations.significance_blocks(torch.bfloat16, 65).width == 128
