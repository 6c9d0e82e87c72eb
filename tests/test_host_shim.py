"""The CUDA sources on the CPU, a few cases; `python tests/host_shim/build.py` runs them all."""

import shutil

import pytest
from host_shim import build


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
def test_cuda_sources_on_the_cpu():
    cases = f"{build.CHOSEN} and (test_masks or test_layouts or worked_example)"
    assert build.run(arguments=("-k", cases)) == 0
