"""Survival labels of a cases table: time in months, event 1 = death observed, and what makes them doubtful."""

from __future__ import annotations

import re

import pandas as pd
from scipy.stats import mannwhitneyu

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
        CaseTableError: something else, words mixed with numbers, or a number that its word contradicts.
    """
    if pd.api.types.is_numeric_dtype(values):
        event = values.astype("float64")
    else:
        text = values.astype("string").str.strip()
        text = text.mask(text == "")
        words = pd.to_numeric(text.map(_event_of, na_action="ignore"), errors="coerce").astype("float64")
        event = words if words.notna().any() and words.isna().equals(text.isna()) else numbers(values, column, where)
    wrong = event.notna() & ~event.isin([0, 1])
    if wrong.any():
        raise CaseTableError(
            f"{where}: {column!r} is neither 0 nor 1 in {rows(wrong)}; expected 1 = death observed, 0 = censored"
        )
    return event


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
    checks = (
        (event.notna() & ~given, "'event' is given but 'time_months' is blank", "fill in or blank both"),
        (given & event.isna(), "'time_months' is given but 'event' is blank", "fill in or blank both"),
        (
            given & ~((time > 0) & (time < float("inf"))),
            "'time_months' is not above 0",
            "expected months of follow-up; correct the time, or blank it and the event",
        ),
        (time > LONGEST_MONTHS, f"'time_months' is above {LONGEST_MONTHS}", "expected months, not days"),
    )
    for wrong, problem, remedy in checks:
        if wrong.any():
            raise CaseTableError(f"{where}: {problem} in {rows(wrong)}; {remedy}")
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
    time = followed["time_months"]
    later = mannwhitneyu(time[died], time[~died]).statistic / (died.sum() * (~died).sum())
    return bool(later > (0.55 if died.mean() >= 0.4 else 0.7))
