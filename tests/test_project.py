"""The project's own files agree with each other: version, links, pinned tools, what a package carries."""

import json
import re
from importlib.metadata import requires, version
from pathlib import Path

import pytest

import pad_kernels

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]


def _text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_one_version():
    assert version("pad-kernels") == pad_kernels.__version__
    assert re.search(r"^version: (\S+)$", _text("CITATION.cff"), re.M)[1] == pad_kernels.__version__
    assert f"## [{pad_kernels.__version__}]" in _text("CHANGELOG.md")


def test_citation_names_the_paper():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load(_text("CITATION.cff"))
    paper = citation["preferred-citation"]
    assert "2303.03600" in paper["url"] and paper["authors"][0]["family-names"] == "Ni"


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [*PAGES[:2], *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    tops = "csrc|pad|pad_kernels|benchmarks|tests|docs|examples"
    for path in re.findall(rf"`((?:{tops})/[\w./*-]*)`", page.read_text(encoding="utf-8")):
        assert "NAME" in path or path.startswith("docs/_build") or list(ROOT.glob(path)), path


def test_what_is_installed_for_work_on_the_project_is_pinned():
    pinned = {line.partition("==")[0].lower() for line in _text("constraints.txt").splitlines() if "==" in line}
    built_with = {"cmake", "ninja", "pybind11"}  # of the compiled library alone
    names = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in requires("pad-kernels")}
    assert names - {"pad-kernels"} - built_with <= pinned


@pytest.mark.parametrize("package", ["pad", "pad_kernels"])
def test_packages_are_typed(package):
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize(
    "results", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda file: file.name
)
def test_results_show_nobodys_folders(results):
    command = json.loads(results.read_text(encoding="utf-8")).get("machine", {}).get("command", "")
    assert not any(Path(word).is_absolute() for word in re.split(r"[\s=]+", command)), command
