"""Transcribed speech: finding transcripts and their audio, checking them, reading the audio.

`load_utterances` takes one of

- `FOLDER`: a folder in one of the layouts of `pad.data.folders` (LibriSpeech, `transcripts.tsv`, Sphinx, a
  text next to each audio file), or one that `datasets` wrote with `save_to_disk`;
- `FILE.tsv`, `FILE.jsonl`, `FILE.json`: a manifest, one utterance a line, see `pad.data.manifests`;
- `librispeech:SPLIT[,SPLIT...]:FOLDER`: LibriSpeech as `torchaudio.datasets.LIBRISPEECH` lays it out below
  FOLDER, such as `librispeech:train-clean-100,train-clean-360:/data`;
- `librilight:SUBSET:FOLDER`: `10min`, `1h` or `10h` of Libri-Light's limited-supervision data, as
  `torchaudio.datasets.LibriLightLimited` lays it out below FOLDER;
- `huggingface:NAME[:CONFIG]:SPLIT`: a dataset of the Hugging Face hub, such as
  `huggingface:openslr/librispeech_asr:clean:train.100`;
- a `datasets.Dataset` (from Python only).

Audio may have any sampling rate and number of channels: channels are averaged, then resampled. A `Report` says how to
handle a bad sample, and what was left out.
"""

from pad.data.audio import AUDIO_SUFFIXES, read_audio
from pad.data.entry import Entry, Utterance
from pad.data.folders import find_transcripts
from pad.data.loading import load_utterances
from pad.data.report import BadSample, Report

__all__ = [
    "AUDIO_SUFFIXES",
    "BadSample",
    "Entry",
    "Report",
    "Utterance",
    "find_transcripts",
    "load_utterances",
    "read_audio",
]
