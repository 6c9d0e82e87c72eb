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


@pytest.mark.slow
def test_accumulated_steps_are_divided_by_whatever_the_model_takes(tmp_path):
    """Trainer leaves the division to models whose forward takes **kwargs, as those of transformers do."""
    found = []
    code = (ROOT / "examples" / "transformers_trainer.py").read_text(encoding="utf-8")
    for steps, more in (("1", ""), ("4", ", **kwargs")):
        changed = code.replace("frame_mask):", f"frame_mask{more}):").replace("max_steps=20", "max_steps=2")
        changed = changed.replace("lr_scheduler_type=", f"gradient_accumulation_steps={steps}, lr_scheduler_type=")
        assert changed.count("max_steps=2,") == changed.count(f"accumulation_steps={steps},") == 1
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
                                    "PYTHONPATH": os.pathsep.join([str(ROOT / "examples"), *sys.path])}  # fmt: skip
        done = subprocess.run([sys.executable, "-c", changed], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(float(re.findall(r"loss (\d+\.\d+)", done.stdout)[0]))
    assert found[1] == pytest.approx(found[0], rel=0.2)


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_code_in_documents(path):
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.S):
        ast.parse(block)
