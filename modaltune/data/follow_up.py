"""Survival labels of a cases table: time in months, event 1 = death observed, and what makes them doubtful."""

from __future__ import annotations

import re

import pandas as pd

from modaltune.data.tables import numbers, rows
from modaltune.errors import CaseTableError

EVENT_WORDS = {"alive": 0.0, "living": 0.0, "dead": 1.0, "deceased": 1.0}
LONGEST_MONTHS = 720
"""Sixty years: no follow-up is longer, in months."""
FEWEST_TO_QUESTION = 10
"""Deaths, and censored cases, below which their times are not compared."""

_CBIOPORTAL_STATUS = re.compile(r"([01]):(.*)")


def event_values(values: pd.Series, column: str, where: str) -> pd.Series:
    """An event column as 0 and 1: numbers, words such as ``Dead``, or cBioPortal's ``1:DECEASED``; blanks stay.

    Raises:
        CaseTableError: a value is something else, or a number that its word contradicts.
    """
    if not pd.api.types.is_numeric_dtype(values):
        text = values.astype("string").str.strip()
        given = text.notna() & (text != "")
        words = pd.to_numeric(text[given].map(_event_of), errors="coerce").reindex(text.index)
        if 2 * words.notna().sum() > given.sum():
            _require(words.notna() | ~given, f"{column!r} is neither alive nor dead", "expected Alive or Dead", where)
            return words
    blank = values.isna() | (values.astype("string").str.strip() == "").fillna(True)
    event = pd.to_numeric(values, errors="coerce").astype("float64")
    _require(
        event.isin([0, 1]) | blank,
        f"{column!r} is neither 0 nor 1",
        "expected 1 or 0 (event: 1 = death observed; censorship: 1 = censored), in event also Alive and Dead",
        where,
    )
    return event


def states_deaths(values: pd.Series) -> bool:
    """Whether a column says Alive and Dead, or ``0:LIVING`` and ``1:DECEASED``, rather than 0 and 1."""
    text = values.dropna().astype("string").str.strip()
    return bool(text.map(_event_of).notna().any())


def _require(right: pd.Series, problem: str, remedy: str, where: str) -> None:
    if not right.all():
        raise CaseTableError(f"{where}: {problem} in {rows(~right.astype(bool))}; {remedy}")


def _event_of(text: str) -> float | None:
    status = _CBIOPORTAL_STATUS.fullmatch(text)
    if status is None:
        return EVENT_WORDS.get(text.lower())
    number = float(status[1])
    return number if EVENT_WORDS.get(status[2].strip().lower(), number) == number else None


def clean_follow_up(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Columns ``time_months`` (above 0) and ``event`` (0 or 1), both or neither in every row."""
    time = numbers(table["time_months"], "time_months", where)
    event = event_values(table["event"], "event", where)
    given = time.notna()
    positive = (time > 0) & (time < float("inf"))
    for right, problem, remedy in (
        (event.isna() | given, "'event' is given but 'time_months' is blank", "fill in or blank both"),
        (~given | event.notna(), "'time_months' is given but 'event' is blank", "fill in or blank both"),
        (
            ~given | positive,
            "'time_months' is not above 0",
            "expected months; correct the time, or blank it and the event",
        ),
        (~(time > LONGEST_MONTHS), f"'time_months' is above {LONGEST_MONTHS}", "expected months, not days"),
    ):
        _require(right, problem, remedy, where)
    return pd.DataFrame({"time_months": time, "event": event})


def events_live_longer(cases: pd.DataFrame) -> bool:
    """Whether the cases with an event live so long that the event column may mean the opposite.

    The measure is the share of pairs of a death and a censored case in which the death comes later: most cohorts are
    below a half. Where deaths are few, a short follow-up of the living explains a share somewhat above it, so there
    the share must be larger.

    Args:
        cases: columns ``time_months`` and ``event``.
    """
    followed = cases[["time_months", "event"]].dropna()
    died = followed["event"] == 1
    if min(died.sum(), (~died).sum()) < FEWEST_TO_QUESTION:
        return False
    ranks = followed["time_months"].rank()[died]
    pairs = ranks.sum() - died.sum() * (died.sum() + 1) / 2  # won by the deaths: Mann and Whitney's U
    later = pairs / (died.sum() * (~died).sum())
    return bool(later > (0.55 if died.mean() >= 0.4 else 0.7))
