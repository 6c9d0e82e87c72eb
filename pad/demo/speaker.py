"""Speech synthesis with eSpeak NG, in a process of its own: `python -m pad.demo.speaker OUTPUT < requests.json`.

eSpeak NG is licensed under the GPL, so only this small program loads its library, never the training process.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

import numpy as np

_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_RATE, _PITCH, _PITCH_RANGE = 1, 3, 4
_EVENT_LIST_TERMINATED, _EVENT_WORD = 0, 1


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Speaker:
    """One eSpeak NG engine. `sample_rate` is in Hz."""

    def __init__(self):
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._callback = _CALLBACK(self._collect)  # kept here, or ctypes would free it
        self._library.espeak_SetSynthCallback.argtypes = [_CALLBACK]
        self._library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        self._library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
            ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        data = espeakng_loader.get_data_path().encode()
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0)
        if self.sample_rate <= 0:
            raise RuntimeError(f"eSpeak NG did not start: error {self.sample_rate} with data from {data!r}")
        self._library.espeak_SetSynthCallback(self._callback)
        self._blocks: list[np.ndarray] = []
        self._words: list[tuple[int, int]] = []

    def _collect(self, samples, count, events):
        index = 0
        while events[index].type != _EVENT_LIST_TERMINATED:
            event = events[index]
            if event.type == _EVENT_WORD:
                self._words.append((event.text_position - 1, event.sample))
            index += 1
        if samples and count > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    def say(self, text: str, voice: str, rate: int, pitch: int, pitch_range: int):
        """Speak `text`: (int16 samples, [(character offset, first sample)] of the words it separates)."""
        self._blocks, self._words = [], []
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"eSpeak NG has no voice {voice!r}")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_PITCH_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode()
        error = self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _CHARS_UTF8, None, None)
        if error != 0 or not self._blocks:
            raise RuntimeError(f"eSpeak NG could not speak {text!r}: error {error}")
        return np.concatenate(self._blocks), self._words


def main() -> None:
    """Read a list of {text, voice, rate, pitch, pitch_range}, write OUTPUT.npy (samples) and OUTPUT.json.

    The exit code is os.EX_IOERR where there is no room for them.
    """
    output = Path(sys.argv[1])
    speaker = Speaker()
    samples, utterances = [], []
    for number, request in enumerate(json.load(sys.stdin)):
        waveform, words = speaker.say(**request)
        samples.append(waveform)
        utterances.append({"length": len(waveform), "words": words})
        if number % 50 == 49:
            print(number + 1, flush=True)
    said = {"sample_rate": speaker.sample_rate, "utterances": utterances}
    try:
        np.save(output.with_suffix(".npy"), np.concatenate(samples))
        output.with_suffix(".json").write_text(json.dumps(said))
    except OSError:  # numpy does not keep the reason
        sys.exit(os.EX_IOERR)


if __name__ == "__main__":
    main()
