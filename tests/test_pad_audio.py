"""What an audio file holds against what it promises, for every format, and whatever else a sample may do."""

import json
import os

import numpy as np
import pytest

pytest.importorskip("soundfile")
pytest.importorskip("soxr")

import soundfile  # noqa: E402
from audio_files import write_audio, write_noise, write_truncated_flac  # noqa: E402

from pad.data import BadSample, Report, load_utterances, read_audio  # noqa: E402
from pad.data.audio import check_audio  # noqa: E402
from pad.errors import UserError  # noqa: E402

ENDINGS = ["wav", "flac", "ogg", "opus", "mp3", "aiff", "au", "caf", "w64", "rf64", "sph"]
FORMATS = {"opus": ("OGG", "OPUS"), "sph": ("NIST", "PCM_16"), "rf64": ("RF64", "PCM_16")}


class Content:
    """Audio that is not a file, as a row of a data set holds it."""

    def __init__(self, content: bytes):
        self.content = content

    def __str__(self):
        return "row 3"

    def read(self) -> bytes:
        return self.content


def encoded(folder, ending: str, seconds=1.0, **options) -> bytes:
    path = folder / f"audio.{ending}"
    kind, subtype = FORMATS.get(ending, (None, None))
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, int(seconds * 16000))
    soundfile.write(path, noise, 16000, format=kind, subtype=subtype, **options)
    return path.read_bytes()


@pytest.mark.parametrize("ending", ENDINGS)
def test_less_or_more_than_the_header_promises(tmp_path, ending):
    content = encoded(tmp_path, ending)
    assert check_audio(Content(content)) == (1.0, 16000)
    assert read_audio(Content(content)).shape == (16000,)
    first_half, most = content[: len(content) // 2], content[: len(content) * 19 // 20]
    for damaged in (first_half, most, content + content, content + first_half):
        path = tmp_path / "damaged.bin"
        path.write_bytes(damaged)
        for audio in (path, Content(damaged)):
            for reader in (check_audio, read_audio):
                with pytest.raises(BadSample, match=r"^(row 3|.*damaged\.bin): \S+ \S+"):
                    reader(audio)


def xing_frame(content: bytes) -> int:
    """Length of the first frame of an MP3 file, which holds no audio."""
    return content.index(b"\xff\xf3", 4)


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_file_without_a_length_is_read_whole(tmp_path, mode):
    quiet_then_loud = np.random.default_rng(0).uniform(-0.5, 0.5, 96000) * (np.arange(96000) > 48000)
    path = tmp_path / "a.mp3"
    soundfile.write(path, quiet_then_loud, 16000, bitrate_mode=mode, compression_level=0.3)
    content = path.read_bytes()
    path.write_bytes(content[xing_frame(content) :])
    duration, _ = check_audio(path)
    assert 6.0 <= duration <= 6.2
    samples = read_audio(path)
    assert len(samples) == round(duration * 16000)
    assert np.abs(samples[-32000:-3200]).mean() > 0.1  # the loud end, which an estimate of the length cuts off
    path.write_bytes(b"ID3\x04\x00\x00\x00\x00\x00\x05hello" + path.read_bytes() + b"TAG" + bytes(125))
    assert check_audio(path)[0] == duration
    path.write_bytes(content[xing_frame(content) : -50])
    with pytest.raises(BadSample, match="ends within a frame"):
        read_audio(path)


def test_a_flac_file_of_unknown_length(tmp_path):
    content = bytearray(encoded(tmp_path, "flac", seconds=1.5))
    content[21] &= 0xF0  # the 36 bits of the number of samples
    content[22:26] = bytes(4)
    for reader in (check_audio, read_audio):
        with pytest.raises(BadSample, match="row 3: the header states no length"):
            reader(Content(bytes(content)))


def test_headers_of_programs_that_write_to_a_pipe(tmp_path):
    content = encoded(tmp_path, "wav")
    data = content.index(b"data") + 4
    for size in (0xFFFFFFFF, 0x7FFFFFFF):
        stated = size.to_bytes(4, "little")
        piped = content[:4] + stated + content[8:data] + stated + content[data + 4 :]
        assert check_audio(Content(piped)) == (1.0, 16000)
        assert len(read_audio(Content(piped))) == 16000


def test_sizes_that_are_a_little_wrong_lose_no_audio(tmp_path):
    content = encoded(tmp_path, "wav")
    for change in (8, -8):
        size = (int.from_bytes(content[4:8], "little") + change).to_bytes(4, "little")
        assert len(read_audio(Content(content[:4] + size + content[8:]))) == 16000
    assert len(read_audio(Content(content + b"LIST\x04\x00\x00\x00abcd"))) == 16000


def test_sampling_rates_that_cannot_be_of_speech(tmp_path):
    soundfile.write(tmp_path / "slow.wav", np.zeros(16000), 5)
    for reader in (check_audio, read_audio):
        with pytest.raises(BadSample, match="a sampling rate of 5 Hz; expected at least 1000 Hz"):
            reader(tmp_path / "slow.wav")


@pytest.mark.parametrize("fault", [MemoryError(), KeyError("bytes"), RuntimeError("a reader's own")])
def test_whatever_a_source_raises_is_of_that_sample(fault):
    class Faulty(Content):
        def read(self):
            raise fault

    for reader in (check_audio, read_audio):
        with pytest.raises(BadSample, match="row 3: not a readable audio file: ."):
            reader(Faulty(b""))


def found(data, **options) -> tuple[list[str], dict]:
    report = Report("skip")
    utterances = load_utterances(data, report=report, **options)
    return [item.transcript for item in utterances], dict(report.counts)


def test_names_that_are_no_text_can_be_read(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    (tmp_path / name).write_bytes(write_audio(tmp_path / "a.wav").read_bytes())
    (tmp_path / "a.wav").unlink()
    (tmp_path / name).with_suffix(".txt").write_text("good")
    (item,) = load_utterances(tmp_path)
    assert len(read_audio(item.audio)) == 8000


def test_lines_that_no_system_takes(tmp_path):
    write_audio(tmp_path / "a.wav")
    lines = [
        {"audio": "a.wav", "text": "good"},
        {"audio": "a" * 300 + ".wav", "text": "name"},
        {"audio": "b/" * 3000 + "a.wav", "text": "path"},
        {"audio": "a\0.wav", "text": "NUL"},
        {"audio": "a.wav", "text": "\ud800"},
    ]
    content = "\n".join(json.dumps(line) for line in lines) + "\n" + "[" * 100_000 + "\n" + '{"a":' * 50_000
    (tmp_path / "list.jsonl").write_text(content)
    transcripts, counts = found(tmp_path / "list.jsonl")
    assert transcripts == ["good"] and sum(counts.values()) == 6
    assert counts["malformed line"] == 2 and counts["unreadable transcript"] == 1


def test_every_kind_of_bad_file_is_found_before_training(tmp_path):
    write_audio(tmp_path / "good.wav")
    write_truncated_flac(tmp_path / "cut.flac")
    for ending in ("mp3", "aiff", "au", "ogg"):
        path = write_noise(tmp_path / f"cut.{ending}")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    names = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "list.tsv").write_text("".join(f"{name}\t{name}\n" for name in names))
    transcripts, counts = found(tmp_path / "list.tsv")
    assert transcripts == ["good.wav"] and sum(counts.values()) == 5
    with pytest.raises(UserError, match=r"cut\.aiff: .* \(listed at .*list\.tsv:1\)"):
        load_utterances(tmp_path / "list.tsv")


def test_what_is_in_a_folder_is_used_or_counted(tmp_path):
    for name in ("a.wav", "b.aiff", "loud.WAV", "._a.wav", ".ipynb_checkpoints/a-checkpoint.wav"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(write_audio(tmp_path / f"x{path.suffix.lower()}").read_bytes())
        (tmp_path / f"x{path.suffix.lower()}").unlink()
        path.with_suffix(".txt").write_text(name)
    (tmp_path / "c.m4a").write_bytes(b"\x00\x00\x00\x20ftypM4A ")
    (tmp_path / "c.txt").write_text("an apple")
    (tmp_path / "d.xyz").write_bytes(b"?")
    (tmp_path / "d.txt").write_text("of an unknown kind")
    transcripts, counts = found(tmp_path)
    assert transcripts == ["a.wav", "b.aiff", "loud.WAV"]
    assert counts == {"unsupported audio format": 1, "text without audio": 1, "hidden audio": 2}
    with pytest.raises(UserError, match=r"c\.m4a: audio of this kind cannot be read; expected one of \.flac"):
        load_utterances(tmp_path)


def test_audio_that_no_list_names_is_counted(tmp_path):
    for name in ("a.wav", "b.wav", "c.opus", "d.m4a"):
        (tmp_path / name).write_bytes(b"" if name == "d.m4a" else write_audio(tmp_path / "x.wav").read_bytes())
    (tmp_path / "x.wav").unlink()
    (tmp_path / "transcripts.tsv").write_text("a.wav\tgood\n")
    assert found(tmp_path) == (["good"], {"audio not listed": 3})


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser reads every folder")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    write_audio(tmp_path / "a.wav").with_suffix(".txt").write_text("good")
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match="cannot read the folder .*closed"):
        load_utterances(tmp_path)


@pytest.mark.parametrize(
    "cell, transcript",
    [
        ('"good, morning"', "good, morning"),
        ('"she said ""no"""', 'she said "no"'),
        ('"one\ttwo"', "one\ttwo"),
        ('"Hello," she said', '"Hello," she said'),
        ('a 5" disk', 'a 5" disk'),
        ('"open', '"open'),
    ],
)
def test_quoted_cells(tmp_path, cell, transcript):
    write_audio(tmp_path / "a b.wav")
    (tmp_path / "list.tsv").write_text(f'"text"\t"audio"\n{cell}\t"a b.wav"\n')
    assert found(tmp_path / "list.tsv") == ([transcript], {})


def test_paths_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_audio(tmp_path / "clips" / "a.wav")
    (tmp_path / "list.tsv").write_text("~/clips/a.wav\tgood\n")
    assert found("~/list.tsv") == (["good"], {})


def test_the_home_of_nobody_is_no_folder(tmp_path):
    with pytest.raises(UserError, match="^data: ~no-such-user/speech is not a folder; expected"):
        found("~no-such-user/speech")
    with pytest.raises(UserError, match="^data: ~no-such-user/.*dev-clean is not a folder"):
        found("librispeech:dev-clean:~no-such-user")


@pytest.mark.parametrize("size", [1e12, 1e30, -1e30])
def test_samples_beyond_any_format(tmp_path, size):
    samples = np.full((800, 2), size) * [1, -1]  # whose mean is silence
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(UserError, match=rf"a\.wav: the audio holds a sample of size {abs(size):.3g}".replace("+", r"\+")
                       + "; expected samples from -1 to 1"):  # fmt: skip
        read_audio(tmp_path / "a.wav")
    soundfile.write(tmp_path / "b.wav", np.full(800, -(2.0**31)), 16000, subtype="FLOAT")  # integers of 32 bits
    assert (read_audio(tmp_path / "b.wav") == -(2.0**31)).all()
