"""Survival labels of a cases table: time in months, event 1 = death observed, and what makes them doubtful.

The task ``survival`` is overall survival. A task ``NAME_survival`` is another endpoint, such as
``progression_free_survival``: its event is what ends it, and it has columns of its own.
"""

from __future__ import annotations

import re

import pandas as pd

from modaltune.data.tables import numbers, rows
from modaltune.errors import CaseTableError

OVERALL = "survival"
EVENT_WORDS = {"alive": 0.0, "living": 0.0, "dead": 1.0, "deceased": 1.0}
LONGEST_MONTHS = 720
"""Sixty years: no follow-up is longer, in months."""
FEWEST_TO_QUESTION = 10
"""Deaths, and censored cases, below which their times are not compared."""

_CBIOPORTAL_STATUS = re.compile(r"([01]):(.*)")


def is_survival(task: str) -> bool:
    """Whether a task is a time to an event, as its name tells."""
    return task == OVERALL or task.endswith(f"_{OVERALL}")


def follow_up_columns(task: str) -> tuple[str, str]:
    """Columns of the time and of the event of a survival task."""
    prefix = task.removesuffix(OVERALL)
    return f"{prefix}time_months", f"{prefix}event"


def event_meaning(task: str) -> str:
    """What 1 in the event column of a survival task stands for."""
    return "death" if task == OVERALL else "the event"


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


def clean_follow_up(table: pd.DataFrame, where: str, task: str = OVERALL) -> pd.DataFrame:
    """Time in months (above 0) and event (0 or 1) of a survival task, both or neither in every row."""
    of_time, of_event = follow_up_columns(task)
    time = numbers(table[of_time], of_time, where)
    event = event_values(table[of_event], of_event, where)
    given = time.notna()
    positive = (time > 0) & (time < float("inf"))
    for right, problem, remedy in (
        (event.isna() | given, f"{of_event!r} is given but {of_time!r} is blank", "fill in or blank both"),
        (~given | event.notna(), f"{of_time!r} is given but {of_event!r} is blank", "fill in or blank both"),
        (
            ~given | positive,
            f"{of_time!r} is not above 0",
            "expected months; correct the time, or blank it and the event",
        ),
        (~(time > LONGEST_MONTHS), f"{of_time!r} is above {LONGEST_MONTHS}", "expected months, not days"),
    ):
        _require(right, problem, remedy, where)
    return pd.DataFrame({of_time: time, of_event: event})


def events_live_longer(cases: pd.DataFrame, task: str = OVERALL) -> bool:
    """Whether the cases with an event live so long that the event column may mean the opposite.

    The measure is the share of pairs of a death and a censored case in which the death comes later: most cohorts are
    below a half. Where deaths are few, a short follow-up of the living explains a share somewhat above it, so there
    the share must be larger.

    Args:
        cases: columns of the time and of the event of the task.
    """
    of_time, of_event = follow_up_columns(task)
    followed = cases[[of_time, of_event]].dropna()
    died = followed[of_event] == 1
    if min(died.sum(), (~died).sum()) < FEWEST_TO_QUESTION:
        return False
    ranks = followed[of_time].rank()[died]
    pairs = ranks.sum() - died.sum() * (died.sum() + 1) / 2  # won by the deaths: Mann and Whitney's U
    later = pairs / (died.sum() * (~died).sum())
    return bool(later > (0.55 if died.mean() >= 0.4 else 0.7))
