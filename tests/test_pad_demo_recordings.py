"""Real recordings with word times: what is read, what is refused, and how prompts become text."""

import io
import json
import subprocess
import tarfile

import numpy as np
import pytest
import soundfile
import soxr

pytest.importorskip("transformers")

from pad.cli import main  # noqa: E402
from pad.demo import librivox, prompts, recordings  # noqa: E402
from pad.demo.config import DemoConfig  # noqa: E402
from pad.errors import UserError  # noqa: E402
from pad.processes import python_command  # noqa: E402


def write(folder, name, *rows):
    folder.mkdir(exist_ok=True)
    for row in rows:
        soundfile.write(folder / row["audio"], 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


WORDS = [["good", 0.1, 0.4], ["evening", 0.35, 0.8], ["all", 0.8, 1.05]]
ROW = {"audio": "a.wav", "text": "good evening all", "words": WORDS}


def test_sources_are_named_by_their_files(tmp_path):
    write(tmp_path / "one", "first", ROW)
    write(tmp_path / "two", "second", ROW, ROW | {"audio": "b.wav", "text": "all", "words": [["all", 0, 1]]})
    sources = recordings.load(tmp_path)
    assert {name: len(items) for name, items in sources.items()} == {"first": 1, "second": 2}
    words = sources["first"][0].words
    assert [(word.text, word.start, word.end, word.known) for word in words] == [(*word, True) for word in WORDS]
    assert [item.transcript for item in recordings.with_enough_words(sources["second"])] == ["good evening all"]


def test_without_a_folder_the_usual_one_is_searched_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "mine", ROW)
    assert recordings.find(DemoConfig().recordings) is None and recordings.find("") is None
    recordings.DEFAULT.mkdir(parents=True)
    assert recordings.find("") == recordings.DEFAULT


@pytest.mark.parametrize(
    "words",
    [
        None,
        [],
        "good",
        [["good", 0.1]],
        WORDS[:2],
        [["bad", 0.1, 0.4], *WORDS[1:]],
        [*WORDS[:2], ["all", 0.8, 1.5]],
        [*WORDS[:2], ["all", 0.8, 0.8]],
        [*WORDS[:2], ["all", 0.2, 0.9]],
        [["good", float("nan"), 0.4], *WORDS[1:]],
        [["good", -0.1, 0.4], *WORDS[1:]],
    ],
)
def test_words_that_do_not_fit_are_refused(tmp_path, words):
    write(tmp_path, "mine", ROW, ROW | {"words": words})
    with pytest.raises(UserError, match=r"mine.jsonl:2: expected words \[\[word, start, end\], ...\]"):
        recordings.load(tmp_path)


def test_a_folder_without_recordings_is_refused(tmp_path, capsys):
    assert main(["demo", "--quick", "--recordings", str(tmp_path), "--output", str(tmp_path / "demo")]) == 2
    assert "no .jsonl file" in capsys.readouterr().err.splitlines()[-1]
    assert main(["demo", "--quick", "--recordings", str(tmp_path / "none"), "--output", str(tmp_path / "demo")]) == 2
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    "text, words",
    [
        ("Press 1 to mute, 2 to exit.", "press one to mute two to exit"),
        ("You’ve got mail: 'urgent' mail!", "you've got mail urgent mail"),
        ("Extension 19, room 42", "extension nineteen room 42"),
        ("...", ""),
    ],
)
def test_prompts_as_they_are_spoken(text, words):
    assert prompts.spoken(text) == words


def test_packages_without_the_recordings_are_refused(tmp_path):
    with pytest.raises(UserError, match="expected the unpacked packages"):
        prompts.convert(tmp_path, tmp_path / "prompts")
    assert not (tmp_path / "prompts").exists()


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts.shutil, "which", lambda tool: None if tool == "dpkg" else f"/usr/bin/{tool}")
    with pytest.raises(UserError, match="prompts: dpkg is missing; expected a Debian or Ubuntu system"):
        prompts.fetch(tmp_path / "prompts")
    monkeypatch.undo()
    if prompts.shutil.which("apt-get") is None:
        pytest.skip("no apt-get here")
    monkeypatch.setattr(prompts, "PACKAGES", ("no-such-package-of-debian",))
    with pytest.raises(UserError, match="apt-get download no-such-package-of-debian failed"):
        prompts.fetch(tmp_path / "prompts")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def downloads(monkeypatch):
    """Of a package with one recording; returns the commands that were run."""
    commands = []

    def run(command, **options):
        commands.append(command)
        with tarfile.open(f"{command[command.index('--dest') + 1]}/pocketsphinx-5.tar.gz", "w:gz") as archive:
            for name in ("transcription", "other"):
                archive.addfile(tarfile.TarInfo(f"pocketsphinx-5/test/data/librivox/{name}"), io.BytesIO())
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(librivox.subprocess, "run", run)
    monkeypatch.setattr(librivox, "load", lambda folder: [])
    return commands


def test_recordings_replace_nothing(tmp_path, monkeypatch, downloads):
    monkeypatch.setattr(prompts, "_unpack_packages", lambda folder: pytest.fail("it is said at the beginning"))
    for source in (librivox, prompts):
        folder = tmp_path / source.NAME
        folder.mkdir()
        (folder / "mine.wav").write_text("mine")
        with pytest.raises(UserError, match=f"output: .*{source.NAME} holds something else; choose another folder"):
            source.fetch(folder)
        with pytest.raises(SystemExit, match="^recordings: output: .* holds something else; choose another folder$"):
            recordings.main([str(tmp_path)])
        assert [path.name for path in folder.iterdir()] == ["mine.wav"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["librivox", "prompts"] and not downloads


def test_what_a_killed_download_has_left_goes(tmp_path, downloads):
    (tmp_path / "librivox").mkdir()
    (tmp_path / ".librivox.partial" / "tmp").mkdir(parents=True)
    librivox.fetch(tmp_path / "librivox")
    assert sorted(path.name for path in (tmp_path / "librivox").iterdir()) == ["librivox.jsonl", "transcription"]
    assert [path.name for path in tmp_path.iterdir()] == ["librivox"]
    librivox.fetch(tmp_path / "librivox")
    assert len(downloads) == 1


def test_prompts_have_word_times(tmp_path):
    pytest.importorskip("pocketsphinx")
    silence = np.zeros(8000, dtype=np.int16)
    aligner = prompts._Aligner()
    assert aligner.knows("press one") and not aligner.knows("") and not aligner.knows("press xyzzyx")
    noise = (3000 * np.random.default_rng(0).standard_normal(16000)).astype(np.int16)
    found = aligner.align(np.concatenate([silence, noise, silence]), "press one")
    assert found is None or [word for word, _, _ in found] == ["press", "one"]


def test_spoken_words_are_found_in_time(tmp_path):
    pytest.importorskip("pocketsphinx")
    pytest.importorskip("espeakng_loader")
    text = "please press one now"
    request = {"text": text, "voice": "en-us", "rate": 130, "pitch": 50, "pitch_range": 50}
    subprocess.run(python_command("pad.demo.speaker", str(tmp_path / "said")), input=json.dumps([request]), text=True,
                   check=True)  # fmt: skip
    said = json.loads((tmp_path / "said.json").read_text())
    samples = soxr.resample(np.load(tmp_path / "said.npy"), said["sample_rate"], 16000)
    found = prompts._Aligner().align(samples, text)
    starts = [first / said["sample_rate"] for _, first in said["utterances"][0]["words"]]
    assert [word for word, _, _ in found] == text.split()
    assert [start for _, start, _ in found] == pytest.approx(starts, abs=0.15)


def test_lines_as_the_reader_of_manifests_takes_them(tmp_path):
    """A byte order mark, and a character at which str.splitlines would split."""
    write(tmp_path, "mine", ROW)
    row = ROW | {"note": "one\u2028two"}
    (tmp_path / "mine.jsonl").write_text("\ufeff" + json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    ((found,),) = recordings.load(tmp_path).values()
    assert [word.text for word in found.words] == ["good", "evening", "all"]


@pytest.mark.parametrize("arguments, code", [(["--help"], 0), (["--fast"], 2), (["a", "b"], 2)])
def test_an_option_is_no_folder(arguments, code, monkeypatch, capsys):
    monkeypatch.setattr(recordings, "fetch", lambda folder: pytest.fail(f"fetched to {folder}"))
    with pytest.raises(SystemExit) as stopped:
        recordings.main(arguments)
    assert stopped.value.code == code and "usage: python -m pad.demo.recordings" in "".join(capsys.readouterr())
