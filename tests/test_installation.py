"""What is said, and how often, where the compiled library is missing though the machine could have it."""

import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch

import pad_kernels
from pad_kernels import backends, info, installation
from pad_kernels.backends import library, native
from pad_kernels.installation import missing_library

ROOT = Path(__file__).parents[1]
FAILURE = ImportError("No module named 'pad_kernels._native'")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source folder, and beside it a folder of packages that Python looks into."""
    (tmp_path / "source" / "pad_kernels").mkdir(parents=True)
    packages = tmp_path / "site-packages"
    (packages / "pad_kernels").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "source"), str(packages)])
    return tmp_path / "source" / "pad_kernels"


def install(source, library: bool) -> None:
    packages = source.parent.parent / "site-packages"
    metadata = packages / "pad_kernels-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pad-kernels\nVersion: 0.1.0\n")
    record = ["pad_kernels/__init__.py,,"]
    if library:
        (packages / "pad_kernels" / "_native.cpython-312.so").write_bytes(b"")
        record.append("pad_kernels/_native.cpython-312.so,,")
    (metadata / "RECORD").write_text("\n".join(record) + "\n")
    built = source.parent / "pad_kernels.egg-info"  # as a build leaves it
    built.mkdir()
    (built / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: pad-kernels\nVersion: 0.1.0\n")
    (built / "SOURCES.txt").write_text("pad_kernels/__init__.py\n")


def test_sources_that_hide_the_installed_package(source):
    install(source, library=True)
    reason, could_be_here = missing_library(source, FAILURE)
    assert could_be_here and f"the sources in {source} hide the installed package in" in reason


def test_sources_alone(source):
    install(source, library=False)
    reason, could_be_here = missing_library(source, FAILURE)
    assert not could_be_here and "No module named 'pad_kernels._native'" in reason


@pytest.mark.parametrize(
    "note, mistake",
    [
        ("pad_kernels: native backend not built: no C++ compiler was found when the package was installed", False),
        ("pad_kernels: native backend not built: it was left out of this package, as asked", False),
        ("pad_kernels: native backend not built: dispatch.cpp:25:3: error: invalid feature", True),
        ("pad_kernels: built the native backend", True),
    ],
)
def test_notes_of_the_build(source, note, mistake):
    (source / "_build.txt").write_text(note + "\n")
    reason, could_be_here = missing_library(source, FAILURE)
    assert could_be_here is mistake
    assert reason == note if "not built" in note else "could not be loaded" in reason


def test_a_library_of_other_sources(tmp_path):
    """A checkout that was pulled after its editable install; a package without sources beside it has no such doubt."""
    package = tmp_path / "pad_kernels"
    assert installation.digest_of_sources(tmp_path) == "" and installation.stale_library(package, "some") is None
    (tmp_path / "csrc" / "cpu").mkdir(parents=True)
    (tmp_path / "CMakeLists.txt").write_text("project(x)")
    (tmp_path / "csrc" / "cpu" / "a.h").write_text("int a;")
    before = installation.digest_of_sources(tmp_path)
    assert installation.stale_library(package, before) is None and installation.stale_library(package, "") is None
    (tmp_path / "csrc" / "cpu" / "a.h").write_text("int b;")
    assert "pip install -e ." in installation.stale_library(package, before)
    (tmp_path / "csrc" / "cpu" / "a.h").write_text("int a;")
    (tmp_path / "csrc" / "cpu" / "a.h").rename(tmp_path / "csrc" / "a.h")
    assert installation.stale_library(package, before) is not None


def test_the_library_here_is_of_these_sources():
    if library.NATIVE is None:
        pytest.skip("no compiled library")
    assert library.NATIVE.sources() in ("", installation.digest_of_sources(ROOT))


def test_why_there_are_no_cuda_kernels(source):
    assert installation.cuda_note(source) is None
    (source / "_build.txt").write_text("pad_kernels: built for CPU (avx2) with GNU 12; CUDA: left out, as asked\n")
    assert installation.cuda_note(source) == "left out, as asked"


SETTINGS = runpy.run_path(str(ROOT / "cmake" / "settings.py"))


@pytest.mark.parametrize(
    "given, expected",
    [
        (None, None),
        ("", None),
        ("1", True),
        ("yes", True),
        ("ON", True),
        ("0", False),
        ("False", False),
        ("off", False),
    ],
)
def test_what_a_variable_asks_for(monkeypatch, given, expected):
    monkeypatch.delenv("PAD_KERNELS_CUDA", raising=False)
    if given is not None:
        monkeypatch.setenv("PAD_KERNELS_CUDA", given)
    assert SETTINGS["asked"]("PAD_KERNELS_CUDA") is expected


@pytest.mark.parametrize(
    "given, expected",
    [("90;80", "80;90"), ("8.0,9.0", "80;90"), ("100 90 90", "90;100"), ("", None)],
)
def test_architectures(monkeypatch, given, expected):
    monkeypatch.setenv("PAD_KERNELS_CUDA_ARCHS", given)
    assert SETTINGS["architectures"]() == expected


@pytest.mark.parametrize("name, given", [("PAD_KERNELS_CUDA", "maybe"), ("PAD_KERNELS_CUDA_ARCHS", "native")])
def test_words_that_ask_for_nothing(monkeypatch, name, given):
    monkeypatch.setenv(name, given)
    with pytest.raises(SystemExit, match=f"error: {name}: got '{given}', expected"):
        SETTINGS["architectures"]() if "ARCHS" in name else SETTINGS["asked"](name)


@pytest.mark.parametrize(
    "output, reason",
    [
        ("a.cpp:1:2: warning: x\n a.cpp:3:4: error: no such thing \nninja: stopped", "a.cpp:3:4: error: no such thing"),
        ('CMake Error at x.cmake:71 (message):\n  The compiler\n\n    "false"\n\n  fails\nCall Stack (most recent)',
         'CMake Error at x.cmake:71 (message): The compiler "false" fails'),
        ("ModuleNotFoundError: No module named 'x'\nCMake Error at y:25", "ModuleNotFoundError: No module named 'x'"),
        ("CMake Error: Unknown argument --fresh", "CMake 3.24 or newer is needed"),
        ("No CMAKE_CXX_COMPILER could be found.", "no C++ compiler was found when the package was installed"),
        ("", "the build stopped without a message"),
    ],
)  # fmt: skip
def test_the_reason_of_a_failed_build(output, reason):
    assert SETTINGS["first_error"](output) == reason


@pytest.mark.parametrize("mistake", [True, False])
def test_one_warning_at_first_use(monkeypatch, mistake):
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    reason = "pad_kernels: native backend not built: a.cpp:1: error: what"
    monkeypatch.setattr(native, "NATIVE", None)
    for place in (library, native):
        monkeypatch.setattr(place, "REASON", reason)
    monkeypatch.setattr(library, "COULD_BE_HERE", mistake)
    backends.forget_candidates()
    installation.warn_once.cache_clear()
    speech, text = torch.randn(1, 5, 4), torch.randn(1, 3, 4)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pad_kernels.pad_loss(speech, text, backend="reference")
            assert caught == []
            for _ in range(3):
                pad_kernels.pad_loss(speech, text)
                pad_kernels.align(speech.double(), text.double())
    finally:
        backends.forget_candidates()
        installation.warn_once.cache_clear()
    messages = [str(warning.message) for warning in caught]
    expected = (
        "pad_kernels: plain PyTorch is used, which is much slower: native backend not built: a.cpp:1: error: what"
    )
    assert messages == ([expected] if mistake else [])


def test_info_into_a_closed_pipe(monkeypatch, capfd):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

        def fileno(self):
            return 1

    monkeypatch.setattr(sys, "argv", ["info"])
    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr("os.dup2", lambda source, target: None)
    assert info.main() == 0
