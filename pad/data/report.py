"""How bad samples are handled: the first one stops the run, or all are left out and counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pad.errors import UserError
from pad.files import write_json


class BadSample(UserError):
    """A sample that cannot be used; `reason` is the kind of fault, the message says where and what."""

    # The default is for DataLoader, which rebuilds a worker's error from the message alone.
    def __init__(self, message: str, reason: str = "unreadable audio"):
        super().__init__(message)
        self.reason = reason


class Report:
    """Samples left out: `counts` by reason, `messages` the first few of each reason.

    on_error: "raise" raises a UserError for the first bad sample, "skip" leaves bad samples out. Raises UserError
    for any other value.
    """

    def __init__(self, on_error: str = "raise", messages_kept: int = 5):
        if on_error not in ("raise", "skip"):
            raise UserError(f"on_error: expected raise or skip, got {on_error!r}")
        self.on_error, self.messages_kept = on_error, messages_kept
        self.counts: Counter[str] = Counter()
        self.messages: dict[str, list[str]] = {}

    def refuse(self, bad: BadSample) -> None:
        """Handle a bad sample as on_error says: raise it, or leave it out."""
        if self.on_error == "raise":
            raise bad
        self.leave_out(bad)

    def leave_out(self, bad: BadSample) -> None:
        """Count a sample that is left out whatever on_error says."""
        self.counts[bad.reason] += 1
        messages = self.messages.setdefault(bad.reason, [])
        if len(messages) < self.messages_kept:
            messages.append(str(bad))

    @property
    def total(self) -> int:
        """Number of samples left out."""
        return self.counts.total()

    def __str__(self) -> str:
        lines = [f"left out: {self.total}"]
        for reason, count in self.counts.most_common():
            lines += [f"  {reason}: {count}", *(f"    {message}" for message in self.messages[reason])]
            if count > len(self.messages[reason]):
                lines.append(f"    and {count - len(self.messages[reason])} more")
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write the counts and messages as JSON."""
        record = {"on_error": self.on_error, "left_out": dict(self.counts), "messages": self.messages}
        write_json(Path(path), record)
