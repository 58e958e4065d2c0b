"""A case of the table, and what may come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.chaos.stack import Stack


class Unable(Exception):
    """This machine lacks what a case needs; the text says what."""


@dataclass(frozen=True)
class Seen:
    """What was observed, in one line.

    Attributes:
        recover: seconds from a fault to the next finished exchange.
        seconds: what this case took, where several share a run.
    """

    text: str
    recover: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: ``run`` returns what was seen, or fails with an AssertionError whose first line says so."""

    name: str
    kind: str
    expected: str
    run: Callable[[Stack], Seen]


def require(condition: object, seen: str) -> None:
    """Fail a case with what was seen."""
    if not condition:
        raise AssertionError(seen)
