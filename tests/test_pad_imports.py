"""The rooms of each package import one way; without its extra a command says what to install."""

import subprocess
import sys

import import_map
import pytest


@pytest.mark.parametrize("package, known", [("pad", ("distill", "step")), ("pad_kernels", ("ops", "backends"))])
def test_no_import_runs_back_up(package, known):
    pairs = import_map.between_rooms(import_map.PACKAGE.parent / package)
    assert known in pairs
    assert import_map.upwards(pairs, package) == []


def test_an_import_that_runs_up_is_found():
    assert import_map.upwards({("step", "distill"), ("distill", "step")}, "pad") == ["step imports distill"]
    assert import_map.upwards({("new", "step")}, "pad") == ["new imports step"]


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
