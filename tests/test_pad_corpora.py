"""LibriSpeech, Libri-Light and Hugging Face datasets in miniature, and what is said of those that miss."""

import sys
import types

import pytest

pytest.importorskip("soundfile")
pytest.importorskip("soxr")

from audio_files import write_audio, write_chapter  # noqa: E402

from pad.data import Report, load_utterances, read_audio  # noqa: E402
from pad.errors import UserError  # noqa: E402


@pytest.fixture
def root(tmp_path):
    """A folder as torchaudio.datasets leaves it: two splits of LibriSpeech and Libri-Light's 10 h."""
    for speaker, split in enumerate(("dev-clean", "train-clean-100"), start=1):
        write_chapter(tmp_path / "LibriSpeech" / split, speaker)
    limited = tmp_path / "librispeech_finetuning"
    for number in range(6):
        for kind, chapter in (("clean", 5), ("other", 6)):
            write_chapter(limited / "1h" / str(number) / kind, 10 + number, chapter, ["ONE"])
    for kind, chapter in (("clean", 5), ("other", 6)):
        write_chapter(limited / "9h" / kind, 30, chapter, ["NINE"])
    return tmp_path


@pytest.fixture
def no_torchaudio(monkeypatch):
    for name in ("torchaudio", "torchaudio.datasets"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def torchaudio(monkeypatch):
    """A stand-in whose datasets write miniatures when they are asked to download."""
    calls = []

    class LIBRISPEECH:
        def __init__(self, root, url="train-clean-100", folder_in_archive="LibriSpeech", download=False):
            calls.append((url, download))
            if url != "dev-clean":
                raise ValueError(f"Invalid url '{url}' given")
            write_chapter(root / folder_in_archive / url)

    class LibriLightLimited:
        def __init__(self, root, subset="10min", download=False):
            calls.append((subset, download))
            write_chapter(root / "librispeech_finetuning" / "1h" / "0" / "clean")

    datasets = types.ModuleType("torchaudio.datasets")
    datasets.LIBRISPEECH, datasets.LibriLightLimited = LIBRISPEECH, LibriLightLimited
    package = types.ModuleType("torchaudio")
    package.datasets = datasets
    monkeypatch.setitem(sys.modules, "torchaudio", package)
    monkeypatch.setitem(sys.modules, "torchaudio.datasets", datasets)
    return calls


def stems(data, **options):
    return [item.audio.stem for item in load_utterances(data, **options)]


@pytest.mark.usefixtures("no_torchaudio")
def test_librispeech(root):
    dev, train = ["1-198-0000", "1-198-0001"], ["2-198-0000", "2-198-0001"]
    assert stems(root / "LibriSpeech" / "dev-clean") == dev
    assert stems(root / "LibriSpeech") == dev + train
    assert stems(f"librispeech:train-clean-100:{root}") == train
    assert stems(f"librispeech:train-clean-100,dev-clean:{root}/LibriSpeech") == train + dev


@pytest.mark.usefixtures("no_torchaudio")
@pytest.mark.parametrize(("subset", "count"), [("10min", 2), ("1h", 12), ("10h", 14)])
def test_librilight(root, subset, count):
    names = stems(f"librilight:{subset}:{root}")
    assert len(names) == count
    assert names == stems(f"librilight:{subset}:{root}/librispeech_finetuning")


def test_folder_that_holds_both(root):
    assert len(stems(root)) == 4 + 14
    assert len(stems(root / "librispeech_finetuning")) == 14


def test_linked_split(root, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "train").symlink_to(root / "LibriSpeech" / "train-clean-100")
    (tmp_path / "links" / "again").symlink_to(tmp_path / "links")
    assert stems(tmp_path / "links") == ["2-198-0000", "2-198-0001"]


@pytest.mark.usefixtures("no_torchaudio")
def test_no_torchaudio(tmp_path):
    with pytest.raises(UserError, match=r"dev-clean is not a folder, .* --download fetches it"):
        load_utterances(f"librispeech:dev-clean:{tmp_path}")
    message = "torchaudio, which fetches LIBRISPEECH, cannot be imported: .* read without torchaudio"
    with pytest.raises(UserError, match=message):
        load_utterances(f"librispeech:dev-clean:{tmp_path}", download=True)


def test_download_with_torchaudio(torchaudio, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        load_utterances(f"librispeech:dev-clean:{tmp_path}")
    with pytest.raises(UserError, match="librispeech:train-clean-101 is unknown, expected splits of train-clean-100, "):
        load_utterances(f"librispeech:train-clean-101:{tmp_path}")
    assert torchaudio == []
    new = tmp_path / "new"
    for data in (f"librispeech:dev-clean:{new}", f"librispeech:dev-clean:{new}", f"librilight:10min:{new}"):
        assert stems(data, download=True) == ["19-198-0000", "19-198-0001"]
    assert torchaudio == [("dev-clean", True), ("10min", True)]
    with pytest.raises(UserError, match="could not fetch LIBRISPEECH to .*: Invalid url 'dev'"):
        load_utterances(f"librispeech:dev:{new}", download=True)
    with pytest.raises(UserError, match="9h is not a folder, expected librilight:10h there"):
        load_utterances(f"librilight:10h:{new}")


def test_audio_of_a_corpus_at_another_rate(root):
    audio = root / "LibriSpeech" / "dev-clean" / "1" / "198" / "1-198-0001.flac"
    write_audio(audio, rate=8000)
    with pytest.raises(UserError, match=r"trans\.txt:2: stated as 16000 Hz, but .*0001\.flac has 8000 Hz"):
        load_utterances(f"librispeech:dev-clean:{root}")
    assert len(load_utterances(root / "LibriSpeech" / "dev-clean")) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("librispeech:dev-clean", "expected librispeech:PART:FOLDER, got librispeech:dev-clean"),
        ("librilight:2h:/nowhere", "librilight:2h is unknown, expected .* 10min, 1h, 10h"),
        ("libri:dev-clean:/nowhere", "is not a folder; expected a folder, a manifest"),
        ("nowhere.tsv", "the manifest nowhere.tsv does not exist"),
        ("huggingface:name", "expected huggingface:NAME"),
    ],
)
def test_unknown_sources(data, message):
    with pytest.raises(UserError, match=message):
        load_utterances(data)


def test_no_datasets_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the package datasets, which cannot be imported"):
        load_utterances("huggingface:name:train")


@pytest.fixture
def speech_dataset(tmp_path):
    """Three rows: content, a path, and content of two channels at another rate."""
    datasets = pytest.importorskip("datasets")
    paths = [
        write_audio(tmp_path / "a.flac"),
        write_audio(tmp_path / "b.wav"),
        write_audio(tmp_path / "c.wav", rate=22050, channels=2),
    ]
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    rows[1] = {"bytes": None, "path": str(paths[1])}
    columns = {"speech": rows, "sentence": ["one", "two", "three"], "speaker": [1, 2, 3]}
    dataset = datasets.Dataset.from_dict(columns)
    return dataset.cast_column("speech", datasets.Audio(sampling_rate=16000, decode=False))


def test_dataset(speech_dataset):
    datasets = pytest.importorskip("datasets")
    for dataset in (speech_dataset, speech_dataset.cast_column("speech", datasets.Audio(16000))):
        found = load_utterances(dataset)
        assert [item.transcript for item in found] == ["one", "two", "three"]
        assert [item.duration for item in found] == pytest.approx([0.5] * 3, abs=1e-3)
        assert [len(read_audio(item.audio)) for item in found] == [8000] * 3


def test_saved_dataset(speech_dataset, tmp_path):
    datasets = pytest.importorskip("datasets")
    speech_dataset.save_to_disk(tmp_path / "saved")
    assert len(load_utterances(tmp_path / "saved")) == 3
    both = datasets.DatasetDict({"train": speech_dataset, "test": speech_dataset.select([0])})
    both.save_to_disk(tmp_path / "both")
    with pytest.raises(UserError, match=r"both holds several splits; expected one of .*both/test, .*both/train"):
        load_utterances(tmp_path / "both")
    assert len(load_utterances(tmp_path / "both" / "test")) == 1
    with pytest.raises(UserError, match=r"one split as a datasets\.Dataset, got DatasetDict"):
        load_utterances(both)


def test_named_dataset(speech_dataset, monkeypatch):
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(name, config, split):
        calls.append((name, config, split))
        if name == "missing":
            raise FileNotFoundError("no such\ndataset")
        return speech_dataset

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_utterances("huggingface:owner/corpus:clean:train.100+dev")) == 3
    assert len(load_utterances("huggingface:corpus:train[:10%]")) == 3
    assert calls == [("owner/corpus", "clean", "train.100+dev"), ("corpus", None, "train[:10%]")]
    with pytest.raises(UserError, match="cannot load huggingface:missing:train: no such dataset"):
        load_utterances("huggingface:missing:train")


def test_bad_rows_of_a_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    good = write_audio(tmp_path / "a.wav").read_bytes()
    rows = [
        ({"bytes": good, "path": None}, "good"),
        ({"bytes": b"no audio", "path": None}, "text"),
        ({"bytes": None, "path": str(tmp_path / "gone.wav")}, "text"),
        ({"bytes": None, "path": None}, "text"),
        ({"bytes": good, "path": None}, None),
    ]
    columns = {"audio": [audio for audio, _ in rows], "text": [text for _, text in rows]}
    dataset = datasets.Dataset.from_dict(columns)
    with pytest.raises(UserError, match="dataset row 1: not a readable audio file"):
        load_utterances(dataset)
    report = Report("skip")
    assert [item.transcript for item in load_utterances(dataset, report=report)] == ["good"]
    assert report.counts == {"unreadable audio": 1, "missing file": 2, "empty transcript": 1}
    assert report.messages["empty transcript"] == ["dataset row 4: empty transcript"]
    with pytest.raises(UserError, match="has the columns speech, text; expected one of audio"):
        load_utterances(dataset.rename_column("audio", "speech"))
