"""The examples run, and their losses fall; the code in the documents is Python."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["bare_loop", "transformers_trainer", "lightning_module"])
def test_example(name):
    if name == "lightning_module" and importlib.util.find_spec("lightning") is None:
        pytest.skip("lightning is not installed")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, ROOT / "examples" / f"{name}.py"], env=environment, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = [float(value) for value in re.findall(r"loss (\d+\.\d+)", done.stdout)]
    assert len(losses) == 20 and losses[-1] < losses[0] - 0.05


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_code_in_documents(path):
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.S):
        ast.parse(block)
