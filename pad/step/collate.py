"""Batches of speech and text: the dataset, the order of the utterances, padding and masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, get_worker_info

from pad.data import BadSample, Report, Utterance, read_audio
from pad.data.entry import listed
from pad.errors import UserError
from pad.processes import end_if_stuck
from pad.students import FrontEnd
from pad.tokenization import tokenize


class SpeechTextDataset(Dataset):
    """Utterances whose audio is read on access.

    transcripts: texts to use instead of the utterances' own, one each (for a shuffled control); None: their own.
    report: how to handle an utterance whose samples cannot be read: raise an error (also for None), or return None,
    which the Collator skips.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        sampling_rate: int,
        transcripts: Sequence[str] | None = None,
        report: Report | None = None,
    ):
        self.utterances = list(utterances)
        self.sampling_rate = sampling_rate
        own = [utterance.transcript for utterance in self.utterances]
        self.transcripts = own if transcripts is None else list(transcripts)
        self.report = Report() if report is None else report
        self._reported: set[int] = set()
        self._unreadable = torch.zeros(len(self.utterances), dtype=torch.bool)
        if self.report.on_error == "skip":
            self._unreadable.share_memory_()  # a worker process may find it

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> dict | None:
        if self._unreadable[index]:
            return None
        try:
            samples = self._read(index)
        except BadSample as bad:
            if self.report.on_error == "raise":
                raise
            self._unreadable[index] = True
            if self._unreadable.all():
                raise UserError(f"data: none of {len(self)} audio files can be read; the last: {bad}") from bad
            return None
        return {"samples": samples, "transcript": self.transcripts[index]}

    def _read(self, index: int) -> np.ndarray:
        utterance = self.utterances[index]
        try:
            return read_audio(utterance.audio, self.sampling_rate)
        except BadSample as bad:
            raise BadSample(listed(str(bad), utterance), bad.reason) from bad

    def unreadable(self) -> list[int]:
        """Numbers of the utterances that this process could not read."""
        return self._unreadable.nonzero().flatten().tolist()

    def leave_out(self, numbers: Sequence[int]) -> None:
        """Take these utterances for unreadable."""
        self._unreadable[list(numbers)] = True

    def report_unreadable(self) -> None:
        """Add the utterances that could not be read to the report, each of them once."""
        for index in self.unreadable():
            if index in self._reported:
                continue
            self._reported.add(index)
            bad = BadSample(f"{self.utterances[index].audio}: could not be read during training, but can be read now")
            try:
                self._read(index)
            except BadSample as found:
                bad = found
            self.report.leave_out(bad)


class LengthBucketSampler(Sampler[int]):
    """Shuffled order in which every run of `batch_size` utterances is of similar length.

    The order depends on the seed and the epoch alone, so that a resumed run sees the same batches.
    lengths: one number per utterance, in any unit.
    """

    def __init__(self, lengths: Sequence[float], batch_size: int, seed: int, batches_per_bucket: int = 20):
        self.lengths = torch.as_tensor(lengths, dtype=torch.float64)
        self.batch_size, self.seed, self.bucket = batch_size, seed, batch_size * batches_per_bucket
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self), generator=generator)
        order = torch.cat([part[self.lengths[part].argsort(stable=True)] for part in order.split(self.bucket)])
        whole = len(order) // self.batch_size * self.batch_size
        batches = order[:whole].view(-1, self.batch_size)
        batches = batches[torch.randperm(len(batches), generator=generator)]
        yield from torch.cat([batches.flatten(), order[whole:]]).tolist()


class Collator:
    """Pads a list of {"samples", "transcript"} to one batch of tensors; None among them is skipped.

    Gives `speech`, the student's inputs by name, and `frame_mask` [B, M] bool, the real ones of its frames; the
    teacher's inputs (`text_ids`, `text_attention_mask` [B, N]) and `text_mask` [B, N] bool, the tokens that are text
    and not special tokens. If there is nothing but None, the batch is one frame of silence with no text, whose loss and
    gradients are 0.
    """

    def __init__(self, front_end: FrontEnd, tokenizer):
        self.front_end, self.tokenizer = front_end, tokenizer

    def __call__(self, items: Sequence[dict | None]) -> dict:
        if get_worker_info() is not None:
            end_if_stuck()
        sound = [item for item in items if item is not None]
        if sound:
            return self._pad(sound)
        silence = np.zeros(self.front_end.layout.shortest, dtype=np.float32)
        batch = self._pad([{"samples": silence, "transcript": "a"}])
        return {**batch, "text_mask": torch.zeros_like(batch["text_mask"])}

    def _pad(self, items: Sequence[dict]) -> dict:
        speech, frame_mask = self.front_end([item["samples"] for item in items])
        text, text_mask = tokenize(self.tokenizer, [item["transcript"] for item in items])
        return {
            "speech": speech,
            "frame_mask": frame_mask,
            "text_ids": text["input_ids"],
            "text_attention_mask": text["attention_mask"],
            "text_mask": text_mask,
        }


def to_device(batch: dict, device: torch.device | str) -> dict:
    """A batch of the Collator on a device."""
    return {
        name: to_device(value, device) if isinstance(value, dict) else value.to(device) for name, value in batch.items()
    }
