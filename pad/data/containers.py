"""What an audio file promises and what it holds, by its format: libsndfile reads what there is and keeps silent."""

from __future__ import annotations

import re
from typing import NamedTuple

from pad.data.report import BadSample

# A second header of the same kind after the first: files that were joined byte by byte.
_HEADERS = (
    re.compile(rb"fLaC\x00\x00\x00\x22"),
    re.compile(rb"\.snd\x00\x00[\x00-\x0f]."),
    re.compile(rb"caff\x00\x01\x00\x00desc"),
    re.compile(rb"NIST_1A\n   1024\n"),
)
# libsndfile's log: a size as the header states it, and as the file has it.
_SIZES = re.compile(r"^\s*([\w ]*\w)\s*: (\d+|0x[0-9A-Fa-f]+) \(should be (\d+)\)", re.MULTILINE)
_SAMPLE_COUNT = re.compile(rb"\nsample_count -i (\d+)\n")
# Programs that write to a pipe state 0, 2 GB or 4 GB.
_UNKNOWN_SIZE = 2**31 - 2**16

_MP3_BIT_RATES = {  # kbit/s by the index in a frame's header, of MPEG 1 and of MPEG 2 and 2.5; layer III
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_MP3_RATES = (44100, 48000, 32000, 0)


class Mp3(NamedTuple):
    """The frames of an MP3 file.

    held: number of those with audio; promised: the same as its Xing or Info header states it, None without one; cut:
    whether the last frame is not complete.
    """

    held: int
    samples_per_frame: int
    promised: int | None
    cut: bool


def _truncated(name: object, held: object, promised: object) -> BadSample:
    return BadSample(f"{name}: the audio file ends after {held}, its header promises {promised}", "truncated audio")


def _joined(name: object, held: str) -> BadSample:
    return BadSample(f"{name}: the audio file holds more than its header promises: {held}", "joined audio")


def is_told_by_header(start: bytes) -> bool:
    """Whether libsndfile's log tells what the file must hold; start: its first bytes."""
    return start[:4] in (b"RIFF", b"RIFX", b"RF64", b"FORM", b"riff")


def check_log(name: object, log: str) -> None:
    """Raise BadSample if libsndfile has noted that a header promises more bytes than there are."""
    for label, promised_text, held_text in _SIZES.findall(log):
        promised, held = int(promised_text, 0), int(held_text)
        whole_file = label in ("RIFF", "FORM")
        # Of a whole file, some programs count its first 8 bytes too, or forget a byte of padding.
        if held + (16 if whole_file else 0) < promised < _UNKNOWN_SIZE:
            rest = 8 if whole_file else 0
            raise _truncated(name, f"{held + rest} bytes", promised + rest)
        if label in ("riff", "Riff size") and 0 < promised < held / 1.05:
            raise _joined(name, f"{held} bytes, not {promised}")


def check_joined(name: object, content: bytes) -> None:
    """Raise BadSample if there is a second header in a file."""
    for header in _HEADERS:
        second = header.search(content, 8) if header.match(content) else None
        if second is not None:
            raise _joined(name, f"there is another header at byte {second.start()}")


def stated_samples(content: bytes) -> int | None:
    """The number of samples that a NIST SPHERE header states, which libsndfile does not read; None without one."""
    found = _SAMPLE_COUNT.search(content[:1024])
    return None if found is None else int(found[1])


def check_ogg(name: object, content: bytes) -> None:
    """Raise BadSample unless an Ogg file ends with the page that ends its only stream."""
    place, ended = 0, False
    while place < len(content):
        start = content[place : place + 27]
        lacing = content[place + 27 : place + 27 + start[26]] if len(start) == 27 else b""
        end = place + 27 + len(lacing) + sum(lacing)
        whole = len(start) == 27 and len(lacing) == start[26] and end <= len(content)
        if start[:4] != b"OggS"[: len(start)] or not whole:
            if ended and start[:4] != b"OggS":
                return  # something else after the end, such as a tag
            raise BadSample(f"{name}: the audio file ends within a page, at byte {place}", "truncated audio")
        kind = start[5]
        if ended and kind & 2:
            raise _joined(name, f"another stream begins at byte {place}")
        ended, place = bool(kind & 4), end
    if not ended:
        raise BadSample(f"{name}: the audio file ends without the page that ends its stream", "truncated audio")


def _mp3_frame(content: bytes, place: int) -> tuple[int, int] | None:
    """(length in bytes, samples) of the layer III frame whose header is at `place`, None if there is none."""
    header = int.from_bytes(content[place : place + 4], "big")
    version, layer, bit_rate, rate = header >> 19 & 3, header >> 17 & 3, header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or layer != 1 or rate == 3:
        return None
    kilobits = _MP3_BIT_RATES[version == 3][bit_rate]
    samples = 1152 if version == 3 else 576
    hertz = _MP3_RATES[rate] >> (0 if version == 3 else 1 if version == 2 else 2)
    length = samples // 8 * kilobits * 1000 // hertz + (header >> 9 & 1)
    return (length, samples) if kilobits else None


def _after_tag(content: bytes, place: int) -> int:
    """Where an ID3v2 tag at `place` ends; `place` itself if there is none."""
    if content[place : place + 3] != b"ID3" or len(content) < place + 10:
        return place
    size = 0
    for byte in content[place + 6 : place + 10]:
        size = size << 7 | byte & 127
    return place + 10 + size


def check_mp3(name: object, content: bytes, stated: int) -> Mp3 | None:
    """The frames of an MP3 file, None if they cannot be told; raises BadSample if it is cut or joined.

    stated: the number of samples that libsndfile reads from its first frame.
    """
    found = _follow(content)
    if found is None:
        return None
    if found.promised is not None and found.held > found.promised:
        raise _joined(name, f"{found.held} frames, not {found.promised}")
    if found.promised is not None and found.held < found.promised:
        held = found.held * found.samples_per_frame
        raise BadSample(f"{name}: the audio ends after {held} samples, its header promises {stated}", "truncated audio")
    if found.cut:
        raise BadSample(f"{name}: the audio file ends within a frame", "truncated audio")
    return found


def _follow(content: bytes) -> Mp3 | None:
    place = _next_frame(content, _after_tag(content, 0))
    first = _mp3_frame(content, place)
    if first is None:
        return None
    head = content[place : place + first[0]]
    promised = None
    # After the side information, whose size depends on version and channels.
    for offset in (4 + 32, 4 + 17, 4 + 9):
        if head[offset : offset + 4] in (b"Xing", b"Info"):
            # Of what is optional in it, the number of frames comes first.
            flags, stated = (int.from_bytes(head[offset + at : offset + at + 4], "big") for at in (4, 8))
            promised = stated if flags & 1 else None
            place += first[0]
            break
    count, cut = 0, False
    while place < len(content):
        frame = _mp3_frame(content, place)
        if frame is None:
            after = _after_tag(content, place)
            place = after if after > place else _next_frame(content, place + 1)
        else:
            place, cut = place + frame[0], place + frame[0] > len(content)
            count += not cut
    return Mp3(count, first[1], promised, cut)


def _next_frame(content: bytes, place: int) -> int:
    """Where the next two frames in a row begin, or the end."""
    while (place := content.find(b"\xff", place)) >= 0:
        frame = _mp3_frame(content, place)
        if frame is not None and _mp3_frame(content, place + frame[0]) is not None:
            return place
        place += 1
    return len(content)
