"""The coordinator's audit log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from modaltune.trust.audit import AuditLog
from modaltune.trust.keys import SigningKey
from server.coordinator.home import Home

_OF_A_ROUND = (
    *("round", "phase", "attempt", "status", "contributors", "missing", "refused"),
    *("replies", "bytes_down", "bytes_up"),
)


def journal(home: Home) -> AuditLog:
    """The log that every command of the coordinator appends to."""
    return AuditLog(home.audit, SigningKey.load(home.signing_key))


class RunJournal:
    """What happens in a run, written down by the ServerApp: each round with the digests of the replies, and the end."""

    def __init__(self, home: Home, run: str) -> None:
        self.log, self.run = journal(home), run

    def round(self, row: Mapping[str, Any]) -> None:
        """One row of the round log."""
        self.log.append("round", run=self.run, **{name: row[name] for name in _OF_A_ROUND if name in row})

    @contextmanager
    def until_the_end(self) -> Iterator[dict[str, Any]]:
        """The end of a run: what the block puts into the facts, or the kind of error that ended it."""
        facts: dict[str, Any] = {}
        try:
            yield facts
        except Exception as error:
            with suppress(OSError):  # a full disk may be why
                self.log.append("run-failed", run=self.run, error=type(error).__name__)
            raise
        self.log.append("run-ended", run=self.run, **facts)
