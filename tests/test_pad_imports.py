"""The rooms of `pad` import one way; former names still work; without its extra a command says what to install."""

import importlib
import subprocess
import sys

import import_map
import pytest


def test_no_import_runs_back_up():
    pairs = import_map.between_rooms(import_map.PACKAGE)
    assert ("distill", "step") in pairs
    assert import_map.upwards(pairs) == []


def test_an_import_that_runs_up_is_found():
    assert import_map.upwards({("step", "distill"), ("distill", "step")}) == ["step imports distill"]
    assert import_map.upwards({("new", "step")}) == ["new imports step"]


@pytest.mark.parametrize(
    "former, name, now",
    [
        ("pad.significance", "record_significance", "pad.priors.recorder"),
        ("pad.objective", "PRESETS", "pad.step.objective"),
        ("pad.teacher", "Teacher", "pad.step.teacher"),
    ],
)
def test_former_names(former, name, now, monkeypatch):
    pytest.importorskip("transformers")
    expected = getattr(importlib.import_module(now), name)
    monkeypatch.delitem(sys.modules, former, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{former} has moved"):
        module = importlib.import_module(former)
    assert getattr(module, name) is expected


def test_the_recorder_is_a_public_name():
    pytest.importorskip("transformers")
    import pad
    from pad.priors import recorder

    assert pad.record_significance is recorder.record_significance


@pytest.mark.parametrize("arguments, extra", [
    (["info"], "train"), (["distill", "--help"], "train"), (["evaluate", "ic"], "train"), (["align"], "demo"),
    (["demo", "--quick"], "demo"), (["--help"], "train"), ([], "train"),
])  # fmt: skip
@pytest.mark.parametrize("missing", ["all", "tyro"])
def test_without_the_extra_a_command_says_what_to_install(arguments, extra, missing):
    names = ["transformers", "accelerate", "safetensors", "soundfile", "soxr", "tqdm", "tyro", "yaml", "torchmetrics"]
    hidden = names if missing == "all" else [missing]
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden})); from pad.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("pad") and line.endswith(f"install it with: pip install '.[{extra}]'")
