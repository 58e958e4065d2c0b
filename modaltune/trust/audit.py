"""An append-only log of what happened at one party, that others can check without trusting its disk.

Each line is one JSON object: ``sequence`` (its line number, from 1), ``time`` (UTC), ``event``, ``facts``,
``previous`` (SHA-256 of the line before) and ``signature`` (Ed25519 over all the rest). Beside the log lies
``NAME.head``: number of lines and SHA-256 of the last one, signed as well, so that lines missing at the end are found.

Without the key nobody can change, add, remove or reorder a line unnoticed. What remains possible:

- The owner of the key can write another history from the start. Against that only a second party helps: keep the
  number of lines and the hash that ``audit verify`` prints, and compare them with the same line later.
- Whoever can replace both files can put back older copies of both; the same comparison finds it.
- A log says what its programs reported, not what somebody with control of the machine did beside them.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from modaltune.errors import AuditError, TrustError
from modaltune.storage import canonical_json, write_text
from modaltune.trust.keys import SigningKey, verify

Scalar = str | int | float | bool | None
Fact = Scalar | Sequence[Scalar] | Mapping[str, Scalar]

REPAIRED = "audit-log-repaired"
_START = "0" * 64  # what the first line follows
_LINE, _HEAD = b"modaltune audit line\n", b"modaltune audit head\n"  # a signature counts for one purpose only
_FIELDS = {"sequence", "time", "event", "facts", "previous", "signature"}
_CHUNK = 65536


@dataclass(frozen=True)
class AuditSummary:
    """What a log that was verified holds.

    Attributes:
        lines: number of entries.
        sha256: of the last line; with ``lines`` it names the whole history.
        first, last: times of the first and the last entry (UTC, ISO 8601).
        events: how often each event occurs.
    """

    lines: int
    sha256: str
    first: str | None = None
    last: str | None = None
    events: Mapping[str, int] = field(default_factory=dict)


class AuditLog:
    """Appends signed entries to a log that several processes may share."""

    def __init__(self, path: Path, key: SigningKey) -> None:
        self.path = path
        self._key = key

    def append(self, event: str, /, **facts: Fact) -> None:
        """Write one entry; when this returns it is on the disk.

        An entry that a crash has cut short is removed first, and its removal recorded.

        Args:
            event: what happened, a short name.
            facts: digests, counts, names of sites; never anything about a patient.

        Raises:
            AuditError: when the end of the log is not what its head file says.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(self.path) as stream:
            if not self.path.stat().st_size and not _head_path(self.path).exists():
                self._write_head(0, _START)
            last, cut = _last_line(stream)
            sequence, digest = self._end(last)
            if cut:
                stream.truncate(stream.seek(0, os.SEEK_END) - len(cut))
                facts_of_cut: dict[str, Fact] = {"bytes": len(cut), "sha256": sha256(cut).hexdigest()}
                sequence, digest = self._write(stream, sequence + 1, digest, REPAIRED, facts_of_cut)
            self._write(stream, sequence + 1, digest, event, facts)

    def _end(self, last: bytes) -> tuple[int, str]:
        """Sequence number and hash of the last complete line, which the head must know or precede."""
        public = self._key.public_pem
        lines, digest = _read_head(self.path, public)
        sequence, found = 0, _START
        if last:
            sequence = _entry(last, f"{self.path}: the last line", public)["sequence"]
            found = sha256(last).hexdigest()
        if sequence < lines or (sequence == lines and found != digest):
            raise AuditError(
                f"{self.path}: does not end with the line {lines} that its head file names, so nothing is added;"
                " keep both files for an inquiry and move them away to start a new log"
            )
        return sequence, found

    def _write(
        self, stream: BinaryIO, sequence: int, previous: str, event: str, facts: Mapping[str, Fact]
    ) -> tuple[int, str]:
        entry = {
            "sequence": sequence,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            "facts": facts,
            "previous": previous,
        }
        line = canonical_json(_signed(entry, _LINE, self._key)).encode()
        stream.write(line + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
        self._write_head(sequence, sha256(line).hexdigest())
        return sequence, sha256(line).hexdigest()

    def _write_head(self, lines: int, digest: str) -> None:
        entry = {"lines": lines, "sha256": digest}
        write_text(_head_path(self.path), canonical_json(_signed(entry, _HEAD, self._key)) + "\n")


def verify_log(path: Path, public_pem: str) -> AuditSummary:
    """Check every line of a log and its head against the public key of the log's owner.

    Raises:
        AuditError: names the first line that is not as it was written, and why.
    """
    if not path.is_file():
        raise AuditError(f"{path}: no such audit log")
    with path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)  # not between an entry and its head
        head = _read_head(path, public_pem)
        return _verified(path, stream, head, public_pem)


def _verified(path: Path, stream: BinaryIO, head: tuple[int, str], public_pem: str) -> AuditSummary:
    lines, digest, first, last, events = 0, _START, None, None, Counter[str]()
    for lines, line in enumerate(stream, 1):
        where = f"{path}: line {lines}"
        if not line.endswith(b"\n"):
            raise AuditError(f"{where} is half-written: a crash or a cut; the program's next entry repairs a crash")
        entry = _entry(line[:-1], where, public_pem)
        if entry["sequence"] != lines:
            raise AuditError(f"{where} is entry {entry['sequence']}: lines were removed, repeated or reordered")
        if entry["previous"] != digest:
            raise AuditError(f"{where} does not follow the line before it: one of the two comes from another log")
        digest = sha256(line[:-1]).hexdigest()
        if lines == head[0] and digest != head[1]:
            raise AuditError(f"{where} is not the one that the head file names: it comes from another log")
        first, last = first or entry["time"], entry["time"]
        events[entry["event"]] += 1
    if lines < head[0]:
        raise AuditError(
            f"{path}: line {lines + 1} is missing: cut off at the end, the head file names {head[0]} lines"
        )
    return AuditSummary(lines, digest, first, last, dict(events))


def _entry(line: bytes, where: str, public_pem: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        intact = canonical_json(entry).encode() == line and set(entry) == _FIELDS
    except (ValueError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise AuditError(f"{where} was changed: it is not written as an entry is")
    _check_signature(entry, _LINE, where, public_pem)
    return dict(entry)


def _read_head(path: Path, public_pem: str) -> tuple[int, str]:
    head = _head_path(path)
    try:
        entry = json.loads(head.read_bytes())
    except FileNotFoundError:
        raise AuditError(f"{head}: missing, so lines may be cut off at the end of the log; put it back") from None
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise AuditError(f"{head} was changed: it is no head of an audit log; put it back")
    _check_signature(entry, _HEAD, str(head), public_pem)
    return entry["lines"], entry["sha256"]


def _signed(entry: dict[str, Any], purpose: bytes, key: SigningKey) -> dict[str, Any]:
    return entry | {"signature": key.sign(purpose + canonical_json(entry).encode()).hex()}


def _check_signature(entry: dict[str, Any], purpose: bytes, where: str, public_pem: str) -> None:
    content = {name: value for name, value in entry.items() if name != "signature"}
    try:
        signature = bytes.fromhex(entry["signature"])
        verify(public_pem, purpose + canonical_json(content).encode(), signature)
        unchanged = signature.hex() == entry["signature"]
    except (TrustError, ValueError, TypeError, KeyError):
        unchanged = False
    if not unchanged:
        raise AuditError(f"{where} was changed, or is signed with another key than the one given")


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """The log, opened for appending by one process (and one thread) at a time."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream


def _last_line(stream: BinaryIO) -> tuple[bytes, bytes]:
    """The last complete line without its newline, and what follows it: nothing, or a half-written line."""
    position, tail = stream.seek(0, os.SEEK_END), b""
    while position and tail.count(b"\n") < 2:
        start = max(0, position - _CHUNK)
        stream.seek(start)
        tail = stream.read(position - start) + tail
        position = start
    complete, newline, cut = tail.rpartition(b"\n")
    return (complete.rpartition(b"\n")[2] if newline else b""), cut


def _head_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.head")
