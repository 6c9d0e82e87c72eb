"""Folders and manifests of transcribed speech, and what is said of the ones that cannot be read."""

import json

import numpy as np
import pytest

pytest.importorskip("soundfile")
pytest.importorskip("soxr")

import soundfile  # noqa: E402
from audio_files import write_audio, write_truncated_flac  # noqa: E402

from pad.data import Report, load_utterances, read_audio  # noqa: E402
from pad.errors import UserError  # noqa: E402


def transcripts(folder, **options):
    return {item.audio.name: item.transcript for item in load_utterances(folder, **options)}


def test_librispeech(tmp_path):
    chapter = tmp_path / "train" / "19" / "198"
    write_audio(chapter / "19-198-0000.flac")
    write_audio(chapter / "19-198-0001.flac")
    (chapter / "19-198.trans.txt").write_text("19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS LITTLE WORK\n")
    assert transcripts(tmp_path) == {
        "19-198-0000.flac": "NORTHANGER ABBEY",
        "19-198-0001.flac": "THIS LITTLE WORK",
    }


def test_table(tmp_path):
    write_audio(tmp_path / "clips" / "a.wav")
    write_audio(tmp_path / "clips" / "not listed.wav")
    (tmp_path / "transcripts.tsv").write_text("clips/a.wav\tgood morning\n\n")
    assert transcripts(tmp_path) == {"a.wav": "good morning"}


def test_table_with_named_columns(tmp_path):
    write_audio(tmp_path / "clips" / "a.wav")
    lines = "\ufeffDuration\tText\tspeaker\tAudio\n0.5\tgood  morning\t7\tclips/a.wav\n\tday\t\tclips/a.wav\n"
    (tmp_path / "train.tsv").write_text(lines)
    found = load_utterances(tmp_path / "train.tsv")
    assert [item.transcript for item in found] == ["good  morning", "day"]
    assert [item.duration for item in found] == [0.5, 0.5]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_json_lines(tmp_path, suffix):
    absolute = write_audio(tmp_path / "elsewhere" / "b.flac", rate=22050)
    write_audio(tmp_path / "lists" / "a.wav")
    records = [
        {"audio": "a.wav", "text": "one\u2028two", "duration": 0.51, "speaker": "x"},
        {"audio_filepath": str(absolute), "transcript": "three", "sampling_rate": 22050, "duration": None},
    ]
    manifest = tmp_path / "lists" / f"train{suffix}"
    manifest.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records))
    found = load_utterances(str(manifest))
    assert [item.transcript for item in found] == ["one\u2028two", "three"]
    assert [len(read_audio(item.audio)) for item in found] == [8000, 8000]


def test_sphinx(tmp_path):
    write_audio(tmp_path / "u-1.wav")
    (tmp_path / "transcription").write_text("<s> he was not ill </s> (u-1)\n")
    assert transcripts(tmp_path) == {"u-1.wav": "he was not ill"}


@pytest.mark.parametrize("suffix", [".txt", ".lab"])
def test_text_beside_audio(tmp_path, suffix):
    write_audio(tmp_path / "deep" / "a.wav")
    (tmp_path / "deep" / "a.wav").with_suffix(suffix).write_text("good\nmorning\n")
    assert transcripts(tmp_path) == {"a.wav": "good morning"}


def test_long_utterances_are_left_out(tmp_path):
    for name, seconds in (("short", 0.5), ("long", 2.0)):
        write_audio(tmp_path / f"{name}.wav", seconds)
        (tmp_path / f"{name}.txt").write_text("text")
    assert list(transcripts(tmp_path, max_seconds=1.0)) == ["short.wav"]
    with pytest.raises(UserError, match=r"at most 0\.1 s found"):
        load_utterances(tmp_path, max_seconds=0.1)


def test_audio_is_mono_at_the_rate_asked_for(tmp_path):
    write_audio(tmp_path / "a.wav", seconds=1.0, rate=22050, channels=2)
    samples = read_audio(tmp_path / "a.wav", 16000)
    assert samples.dtype == np.float32
    assert samples.shape == (16000,)
    assert np.abs(samples).max() == pytest.approx(0.1, abs=0.01)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        load_utterances(tmp_path / "nowhere")


def test_empty_folder(tmp_path):
    with pytest.raises(UserError, match="no transcribed audio found"):
        load_utterances(tmp_path)


def test_audio_without_transcript(tmp_path):
    write_audio(tmp_path / "a.wav")
    with pytest.raises(UserError, match=r"a\.wav: no transcript; looked for a\.txt and a\.lab"):
        load_utterances(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("transcripts.tsv", "a.wav\tgood\n\na.wav\t \n", r"transcripts\.tsv:3: empty transcript for a\.wav"),
        (
            "transcripts.tsv",
            "a.wav\tgood\nb.wav\tday\n",
            r"transcripts\.tsv:2: the audio file .*b\.wav does not",
        ),
        ("transcripts.tsv", "good morning\n", r"transcripts\.tsv:1: expected an audio path, a tab"),
        ("transcripts.tsv", "a.wav\tgood\t1\n", r"transcripts\.tsv:1: expected an audio path, a tab"),
        ("transcripts.tsv", "path\ttext\nid\n", r"transcripts\.tsv:2: expected 2 columns, got 'id'"),
        ("x.trans.txt", "a GOOD\na\n", r"x\.trans\.txt:2: empty transcript for a\.wav"),
        ("x.trans.txt", "b GOOD\n", r"x\.trans\.txt:1: no audio file .*b with one of the endings"),
        (
            "x.transcription",
            "<s> good </s>\n",
            r"x\.transcription:1: expected a transcript and .* id in brackets",
        ),
        ("x.transcription", "<s> </s> (a)\n", r"x\.transcription:1: empty transcript for a\.wav"),
        ("a.txt", "\n", r"a\.txt: empty transcript for a\.wav"),
    ],
)
def test_bad_transcripts_are_named_by_file_and_line(tmp_path, name, text, message):
    write_audio(tmp_path / "a.wav")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_utterances(tmp_path)


def test_transcript_in_another_encoding(tmp_path):
    write_audio(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"a\.txt: cannot be read as UTF-8"):
        load_utterances(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.wav good", r"expected one JSON object per line, got 'a\.wav good'"),
        ('["a.wav"]', "expected one JSON object per line, got "),
        ('{"audio": "a.wav"}', "expected a text as text or transcript .*, got None"),
        ('{"audio": 3, "text": "good"}', "expected a text as audio or .*, got 3"),
        ('{"audio": " ", "text": "good"}', "expected a text as audio or .*, got ' '"),
        ('{"audio": "a.wav", "text": " "}', r"empty transcript for a\.wav"),
        ('{"audio": "b.wav", "text": "good"}', r"the audio file .*b\.wav does not exist"),
        ('{"audio": "a.wav", "text": "good", "duration": "long"}', "expected a positive number as duration"),
        ('{"audio": "a.wav", "text": "good", "sample_rate": true}', "expected a positive number as sampling_rate"),
        ('{"audio": "a.wav", "text": "good", "sample_rate": 8000}', r"stated as 8000 Hz, but .* has 16000 Hz"),
        ('{"audio": "a.wav", "text": "good", "duration": 1.5}', r"stated as 1\.5 s, but .* lasts 0\.500 s"),
        ('{"audio": "a.wav", "text": "good", "offset": 0.5}', "expected a whole audio file"),
    ],
)
def test_bad_lines_of_a_json_manifest(tmp_path, line, message):
    write_audio(tmp_path / "a.wav")
    (tmp_path / "train.jsonl").write_text('{"audio": "a.wav", "text": "good"}\n\n' + line)
    with pytest.raises(UserError, match=r"train\.jsonl:3: " + message):
        load_utterances(tmp_path / "train.jsonl")


def test_list_in_another_encoding(tmp_path):
    write_audio(tmp_path / "a.wav")
    (tmp_path / "transcripts.tsv").write_bytes(b"a.wav\tgood\na.wav\tcaf\xe9\n")
    with pytest.raises(UserError, match=r"transcripts\.tsv:2: cannot be read as UTF-8"):
        load_utterances(tmp_path)


def test_bad_audio_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    audio = tmp_path / "a.wav"
    for content, message in (
        (b"", "not a readable audio file"),
        (b"no audio" * 99, "not a readable audio file"),
    ):
        audio.write_bytes(content)
        with pytest.raises(UserError, match=rf"a\.wav: {message}"):
            load_utterances(tmp_path)
        with pytest.raises(UserError, match=rf"a\.wav: {message}"):
            read_audio(audio)
    write_audio(audio, seconds=0)
    with pytest.raises(UserError, match=r"a\.wav: the audio file is empty"):
        load_utterances(tmp_path)
    write_audio(audio, seconds=0.01)
    with pytest.raises(UserError, match=r"0\.010 s of audio is shorter than one frame of the student, 0\.025 s"):
        load_utterances(tmp_path, min_samples=400)
    soundfile.write(audio, np.full(1600, np.nan), 16000, subtype="FLOAT")
    with pytest.raises(UserError, match="NaN or infinite"):
        read_audio(audio)
    with pytest.raises(UserError, match="not a readable audio file"):
        read_audio(write_truncated_flac(tmp_path / "b.flac"))
    encoded = write_audio(tmp_path / "c.mp3", seconds=2.0)
    encoded.write_bytes(encoded.read_bytes()[: encoded.stat().st_size // 2])
    with pytest.raises(UserError, match=r"c\.mp3: the audio ends after \d+ samples, its header promises 32000"):
        read_audio(encoded)


def test_wav_cut_in_half(tmp_path):
    for name, seconds in (("whole", 0.5), ("half", 1.0), ("pipe", 0.5)):
        write_audio(tmp_path / f"{name}.wav", seconds)
    content = (tmp_path / "half.wav").read_bytes()
    (tmp_path / "half.wav").write_bytes(content[: len(content) // 2])
    content = (tmp_path / "pipe.wav").read_bytes()
    (tmp_path / "pipe.wav").write_bytes(content[:4] + b"\xff\xff\xff\xff" + content[8:])
    (tmp_path / "sound.tsv").write_text("whole.wav\tgood\npipe.wav\tgood\n")
    assert [item.duration for item in load_utterances(tmp_path / "sound.tsv")] == [0.5, 0.5]
    (tmp_path / "cut.tsv").write_text("half.wav\tgood\n")
    with pytest.raises(UserError, match=r"ends after 16022 bytes, its header promises 32044 \(listed at .*cut.tsv:1"):
        load_utterances(tmp_path / "cut.tsv")


def test_file_that_is_no_manifest(tmp_path):
    (tmp_path / "m.csv").write_text("a.wav,good")
    with pytest.raises(UserError, match=r"m\.csv is a file that ends in '\.csv'; expected .*\.tsv, \.jsonl, \.json"):
        load_utterances(tmp_path / "m.csv")


@pytest.mark.parametrize("text", ["", "audio\ttext\n"])
def test_manifest_that_lists_nothing(tmp_path, text):
    (tmp_path / "m.tsv").write_text(text)
    with pytest.raises(UserError, match=r"no transcribed audio found in .*m\.tsv, which lists none"):
        load_utterances(tmp_path / "m.tsv", max_seconds=20)


def test_line_that_names_a_folder(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "m.tsv").write_text("clips\tgood\n")
    with pytest.raises(UserError, match=r"m\.tsv:1: the audio file .*clips is a folder, expected an audio file"):
        load_utterances(tmp_path / "m.tsv")


HUGE = "1" + "0" * 400


@pytest.mark.parametrize("line, message", [
    (f'{{"audio": "a.wav", "text": "good", "duration": {HUGE}}}', "expected a positive number as duration, got an "),
    (f'{{"audio": "a.wav", "text": "good", "sample_rate": {HUGE}}}', "expected a positive number as sampling_rate, "),
    ('{"audio": "a.wav", "text": "good", "sentence": "bad"}', "text and sentence differ; expected one of text, "),
    ('{"audio": "a.wav", "file": "b.wav", "text": "good"}', "audio and file differ; expected one of audio, "),
    ('{"audio": "a.wav", "text": "good", "text": "bad"}', "expected one JSON object per line, got .*'text' appears "),
])  # fmt: skip
def test_json_lines_that_no_one_can_read_in_one_way(tmp_path, line, message):
    write_audio(tmp_path / "a.wav")
    good = '{"audio": "a.wav", "path": "a.wav", "text": "good", "transcript": "good"}'  # twice the same
    (tmp_path / "m.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError, match=rf"m\.jsonl:2: {message}"):
        load_utterances(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_text(f"{good}\n")
    assert [item.transcript for item in load_utterances(tmp_path / "m.jsonl")] == ["good"]


@pytest.mark.parametrize("header", ["audio\ttext\ttext", "Audio\taudio\ttext", "audio\ttext\tText"])
def test_a_table_with_the_same_column_twice(tmp_path, header):
    write_audio(tmp_path / "a.wav")
    (tmp_path / "m.tsv").write_text(f"{header}\na.wav\tgood\tgood\n")
    with pytest.raises(UserError, match=r"m\.tsv:1: the column (audio|text) appears twice; expected it once"):
        load_utterances(tmp_path / "m.tsv", report=Report("skip"))
    (tmp_path / "m.tsv").write_text("audio\ttext\tsentence\tnote\tnote\na.wav\tgood\tbad\t1\t2\n")
    with pytest.raises(UserError, match=r"m\.tsv:2: text and sentence differ"):
        load_utterances(tmp_path / "m.tsv")


@pytest.mark.parametrize("header", ["audio\ttranskript", "Wav\tText", "transcript\tspeaker\twav"])
def test_a_table_whose_columns_have_other_names(tmp_path, header):
    """The line is no utterance: it would be said to name a file that does not exist."""
    (tmp_path / "m.tsv").write_text(f"{header}\na.wav\tgood\n")
    names = ", ".join(header.lower().split("\t"))
    with pytest.raises(UserError, match=rf"m\.tsv:1: got the columns {names}; expected one of audio, .* one of text, "):
        load_utterances(tmp_path / "m.tsv")


def test_a_table_without_names_whose_first_transcript_is_one(tmp_path):
    write_audio(tmp_path / "a.wav").rename(tmp_path / "spoken")
    (tmp_path / "m.tsv").write_text("spoken\ttext\n")
    assert [item.transcript for item in load_utterances(tmp_path / "m.tsv")] == ["text"]
