"""What the names of columns tell, however they are spelt."""

from __future__ import annotations

import re
from collections.abc import Iterable

REVERSED = (
    *("censorship", "censored", "censor", "is_censored", "os_censor"),
    *("alive", "is_alive", "living", "is_living", "living_status", "survived", "survivor"),
)
"""Columns in which 1 usually means that no death was observed: the opposite of ``event``."""


def snake(name: str) -> str:
    """A column name in snake case: ``"OS Months"`` and ``"osMonths"`` become ``"os_months"``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")


def means(column: str, name: str) -> bool:
    """Whether a column has a name, given in snake case, with or without an endpoint (``_dss``, ``_pfi``)."""
    found = snake(column)
    return found == name or re.fullmatch(rf"{name}_(dss|pfi|dfi|os)", found) is not None


def named(columns: Iterable[str], names: Iterable[str]) -> list[str]:
    """Columns whose name is one of some names, with or without an endpoint."""
    return [column for column in columns if any(means(column, name) for name in names)]
