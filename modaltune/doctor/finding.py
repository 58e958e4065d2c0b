"""What a check finds, and running a table of checks to its end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

from modaltune.errors import ModalTuneError

Status = Literal["ok", "warning", "error"]
Subject = TypeVar("Subject")
SEVERITY: tuple[Status, ...] = ("ok", "warning", "error")
DOCS = "see docs/data.md"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table: ``check`` is filled in by :func:`run_checks`, ``fix`` empty when all is well."""

    status: Status
    finding: str
    fix: str = ""
    check: str = ""


Found = Iterator[Finding | ModalTuneError]
"""What a check yields: findings, and errors that did not stop it."""


def ok(finding: str) -> Finding:
    """All is well."""
    return Finding("ok", finding)


def warning(finding: str, fix: str) -> Finding:
    """Training can go on, but somebody should look."""
    return Finding("warning", finding, fix)


def error(finding: str, fix: str) -> Finding:
    """Training would stop here, or go wrong in silence."""
    return Finding("error", finding, fix)


def from_error(problem: ModalTuneError) -> Finding:
    """A deliberate error as a finding: the part behind its last semicolon or full stop is the fix."""
    return error(*_and_fix(str(problem)))


def _and_fix(text: str) -> tuple[str, str]:
    for mark in ("; ", ". "):
        end = len(text)
        while (end := text.rfind(mark, 0, end)) >= 0:
            fix = text[end + len(mark) :]
            if fix.count("(") == fix.count(")"):  # not inside parentheses
                return text[:end], fix
    return text, DOCS


def run_checks(checks: Mapping[str, Callable[[Subject], Found]], subject: Subject) -> list[Finding]:
    """Run every check, whatever the ones before it found.

    A problem is reported by the check that meets it first; later ones that meet it too say that they were not made.
    What the readers of data log as doubtful is a warning of the check for which they first read.
    """
    out: list[Finding] = []
    first_met: dict[str, str] = {}
    for name, look in checks.items():
        with _doubts() as doubts:
            results = list(_results(look, subject))
        results += [warning(*_and_fix(text)) for text in doubts if first_met.setdefault(text, name) == name]
        for found in results:
            if isinstance(found, ModalTuneError):
                owner = first_met.setdefault(str(found), name)
                missed = warning(f"not checked: stopped by {owner!r}", f"solve {owner!r} first")
                found = from_error(found) if owner == name else missed
            out.append(replace(found, check=name))
    return out


class _Texts(logging.Handler):
    """Keeps each message once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.setdefault(record.getMessage())


@contextmanager
def _doubts() -> Iterator[Iterable[str]]:
    """What the readers log as doubtful, in place of lines on the terminal."""
    readers, heard = logging.getLogger("modaltune.data"), _Texts()
    level, propagate = readers.level, readers.propagate
    readers.addHandler(heard)
    readers.setLevel(logging.WARNING)
    readers.propagate = False
    try:
        yield heard.texts
    finally:
        readers.removeHandler(heard)
        readers.setLevel(level)
        readers.propagate = propagate


def _results(look: Callable[[Subject], Found], subject: Subject) -> Found:
    """What a check yields, and as its last result what stopped it."""
    try:
        yield from look(subject)
    except ModalTuneError as problem:
        yield problem
    except OSError as problem:  # its text may hold the name of a slide
        yield error(f"the file system refused: {problem.strerror}", "check the disk and who may read and write there")
    except Exception as problem:  # a fault of one check hides no other
        logger.debug("a check failed", exc_info=True)
        fix = "run it again with --debug, which shows where, and report it"
        yield error(f"the check itself failed ({type(problem).__name__})", fix)


def worst(findings: Iterable[Finding]) -> Status:
    """The gravest status among findings."""
    return max((finding.status for finding in findings), key=SEVERITY.index, default="ok")


def as_document(subject: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """Findings as one JSON document."""
    checks = [{key: asdict(finding)[key] for key in ("check", "status", "finding", "fix")} for finding in findings]
    return {"subject": subject, "status": worst(findings), "checks": checks}
