"""The cases table of a site: local columns and codes become canonical columns and vocabulary values."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import pandas as pd

from modaltune.data.clinical import one_row_a_case, with_known_columns
from modaltune.data.cohort import SPLITS
from modaltune.data.column_names import REVERSED, named
from modaltune.data.follow_up import (
    OVERALL,
    clean_follow_up,
    event_values,
    follow_up_columns,
    is_survival,
    states_deaths,
)
from modaltune.data.tables import identifiers, numbers, rows
from modaltune.errors import CaseTableError, LabelError

CANONICAL = ("case_id", "split", "diagnosis", "stage", "grade", "time_months", "event", "censorship", "age", "sex")
OF_SLIDES = ("slide_id", "file")
"""Columns that ``[columns]`` may name for the slides table alone."""
OLDEST_AGE = 120
SEXES = {"m": "male", "f": "female"}
SHORT_LABEL = 60
"""Label values up to this many characters may be shown in a message."""

_STAGING = {
    "stage": re.compile(r"(?:stage\s+)?(I{1,3}|IV)\s*[A-D]?[0-9]?", re.IGNORECASE),
    "t_stage": re.compile(r"[cpyra]*(T[1-4])(?:[a-d]|mic?)?[0-9]?", re.IGNORECASE),
    "n_stage": re.compile(r"[cpyra]*(N[0-3])(?:[a-c]|mi)?\s*(?:\((?:i|mol)[+-]\))?", re.IGNORECASE),
    "m_stage": re.compile(r"[cpyra]*(M[01])[a-c]?\s*(?:\(i[+-]\))?", re.IGNORECASE),
}
"""AJCC text -> its main level; unknown ones (``TX``, ``NX``) are left to the site's own mapping."""


def task_columns(task: str) -> tuple[str, ...]:
    """The canonical columns that hold a task's labels."""
    return follow_up_columns(task) if is_survival(task) else (task,)


def labelled(cases: pd.DataFrame, task: str) -> pd.Series:
    """Mask of the cases that have a label for a task."""
    return cases[list(task_columns(task))].notna().all(axis=1)


def clean_cases(
    table: pd.DataFrame,
    *,
    site: str,
    where: str,
    tasks: Collection[str],
    columns: Mapping[str, str],
    codes: Mapping[str, Mapping[str, str]],
    labels: Mapping[str, Collection[str]],
) -> pd.DataFrame:
    """Check a cases table and bring it into canonical form.

    Args:
        table: one row a patient, local column names.
        site: name of the site, for messages.
        where: what messages call the table.
        tasks: tasks that the site labels; label columns of other tasks are left out.
        columns: canonical column name -> local one; names beyond the canonical ones are kept as extra columns.
            ``censorship`` (1 = censored) may stand in place of ``event``.
        codes: per task, local code -> vocabulary value; an empty value means unlabelled.
        labels: per task, the vocabulary values; a task that is absent here takes any text.
    Returns:
        Index ``case_id``; ``split`` if the table has it, label columns of the tasks, ``age``, ``sex``, extra columns.
    """
    renamed = canonical_cases(table, columns=columns, tasks=tasks, where=where)
    cases = clean_columns(renamed, site=site, where=where, tasks=tasks, codes=codes, labels=labels)
    known = {*CANONICAL, *OF_SLIDES, *(column for task in tasks for column in task_columns(task))}
    extra = [name for name in columns if name not in known]
    return cases.join(renamed[extra]).set_index("case_id")


def clean_columns(
    renamed: pd.DataFrame,
    *,
    site: str,
    where: str,
    tasks: Collection[str],
    codes: Mapping[str, Mapping[str, str]],
    labels: Mapping[str, Collection[str]],
) -> pd.DataFrame:
    """Check the columns of :func:`canonical_cases`; arguments as of :func:`clean_cases`.

    Returns:
        ``case_id``, ``split`` if the table has it, label columns of the tasks, ``age``, ``sex``; same index.
    """
    cases = pd.DataFrame(index=renamed.index)
    cases["case_id"] = identifiers(renamed, "case_id", where=where, error=CaseTableError, unique=True)
    if "split" in renamed:
        cases["split"] = _split(renamed["split"], where)
    for task in tasks:
        _require_columns(renamed, task, where)
        if is_survival(task):
            cases[list(task_columns(task))] = clean_follow_up(renamed, where, task)
        else:
            cases[task] = _coded(renamed[task], task, codes.get(task, {}), labels.get(task))
            _require_known(cases, task, site, labels.get(task))
    if "age" in renamed:
        cases["age"] = clean_age(renamed["age"], where)
    if "sex" in renamed:
        cases["sex"] = _sex(renamed["sex"])
    return cases


def canonical_cases(
    table: pd.DataFrame, *, columns: Mapping[str, str], tasks: Collection[str], where: str
) -> pd.DataFrame:
    """One row a case under canonical names, whichever tool wrote the table; its index counts the rows of the file."""
    wanted = {"case_id", "age", "sex", *(column for task in tasks for column in task_columns(task))}
    slide = columns.get("slide_id", "slide_id")
    columns = {name: local for name, local in columns.items() if name not in OF_SLIDES}
    known = with_known_columns(table, columns=columns, wanted=wanted, where=where)
    renamed = _canonical(known, columns, where)
    if slide in renamed and "case_id" in renamed:  # one row a slide, as MCAT and SurvPath write it
        renamed = one_row_a_case(renamed, {*CANONICAL, *columns, *wanted}, where)
    for task in (task for task in tasks if is_survival(task) and task != OVERALL):
        _require_events(renamed, columns, follow_up_columns(task)[1], where)
    return _with_event(renamed, columns, where) if OVERALL in tasks else renamed


def _require_events(table: pd.DataFrame, columns: Mapping[str, str], event: str, where: str) -> None:
    """The event of an endpoint that is not overall survival: 1 in its column is no censoring."""
    local = columns.get(event, event)
    reversed_name = bool(named([local], REVERSED)) or "censor" in local.lower()
    if event in table and reversed_name and not states_deaths(table[event]):
        raise CaseTableError(
            f"{where}: [columns] of site.toml has {event} = {local!r}, and 1 in a column of that name means that"
            " nothing happened; give a column that is 1 where the event was observed, or rename this one if it is"
        )


def _canonical(table: pd.DataFrame, columns: Mapping[str, str], where: str) -> pd.DataFrame:
    missing = sorted(local for local in columns.values() if local not in table.columns)
    if missing:
        raise CaseTableError(
            f"{where}: column {missing[0]!r} named in [columns] of site.toml is missing among {len(table.columns)}; "
            "correct its spelling there"
        )
    untouched = [name for name in table.columns if name not in columns]
    renamed = table[untouched].copy()
    for canonical, local in columns.items():
        renamed[canonical] = table[local]
    return renamed


def _with_event(table: pd.DataFrame, columns: Mapping[str, str], where: str) -> pd.DataFrame:
    """The table with ``event`` made of a declared ``censorship``; a column that looks like one must be declared."""
    if "censorship" in columns:
        if "event" in table:
            raise CaseTableError(
                f"{where}: [columns] of site.toml names 'censorship' and the table has 'event' too; keep one of them"
            )
        if states_deaths(table["censorship"]):
            raise CaseTableError(
                f"{where}: column {columns['censorship']!r} says in words who died, which is no censorship; write"
                f" event = {columns['censorship']!r} into [columns] of site.toml in its place"
            )
        return table.assign(event=1 - event_values(table["censorship"], columns["censorship"], where))
    local = columns.get("event", "event")
    if "event" in table and named([local], REVERSED) and not states_deaths(table["event"]):
        raise CaseTableError(
            f"{where}: [columns] of site.toml has event = {local!r}, and 1 in a column of that name means that no death"
            f" was observed; write censorship = {local!r} in its place, or rename the column if its 1 is death"
        )
    suspects = [name for name in map(str, table.columns) if "censor" in name.lower()]
    if "event" not in table and suspects:
        raise CaseTableError(
            f"{where}: no column 'event', but {suspects[0]!r}; if 1 means censored there, add "
            f"censorship = {suspects[0]!r} to [columns] of site.toml"
        )
    return table


def _require_columns(table: pd.DataFrame, task: str, where: str) -> None:
    missing = [column for column in task_columns(task) if column not in table]
    if missing:
        raise CaseTableError(
            f"{where}: task {task!r} needs column {' and '.join(map(repr, missing))}, which is missing; "
            f"map it in [columns] of site.toml or take {task!r} out of 'tasks'"
        )


def _text(values: pd.Series) -> pd.Series:
    """Values as stripped text, None when blank; whole numbers lose a trailing ``.0``."""
    if pd.api.types.is_float_dtype(values) and bool((values.dropna() % 1 == 0).all()):
        values = values.astype("Int64")
    text = values.astype("string").str.strip()
    return text.astype(object).where(text.notna() & (text != ""), None)


def _coded(values: pd.Series, task: str, codes: Mapping[str, str], known: Collection[str] | None) -> pd.Series:
    spelling = {value.casefold(): value for value in known or ()}

    def vocabulary_value(local: str | None) -> str | None:
        if local is None:
            return None
        if local in codes:
            return codes[local] or None
        if local.casefold() in spelling:
            return spelling[local.casefold()]
        if task in _STAGING and (level := _STAGING[task].fullmatch(local)):
            return level[1].upper()
        return local

    mapped = [vocabulary_value(local) for local in _text(values)]
    return pd.Series(mapped, index=values.index, dtype=object)


def _require_known(cases: pd.DataFrame, task: str, site: str, known: Collection[str] | None) -> None:
    if known is None:
        return
    values = cases[task]
    unknown = values.notna() & ~values.isin(list(known))
    if not unknown.any():
        return
    value = str(values[unknown].iloc[0])
    coded = any(letter.isdigit() for letter in value) and (values == value).sum() == 1  # perhaps an identifier
    shown = f" such as {value!r}" if _may_be_shown(value, cases["case_id"]) and not coded else ""
    raise LabelError(
        f"site {site}: task {task!r} has labels outside the vocabulary{shown} in {rows(unknown)}; "
        f"known: {', '.join(map(repr, known))}. Map local codes under [labels.{task}] in site.toml ('' = unlabelled)"
    )


def _may_be_shown(value: str, case_ids: Iterable[str]) -> bool:
    """A label value is a category, not patient data; numbers, long texts and identifiers may be something else."""
    words = len(value) <= SHORT_LABEL and value.isprintable() and any(letter.isalpha() for letter in value)
    return words and not any(case in value for case in case_ids)


def _split(values: pd.Series, where: str) -> pd.Series:
    text = _text(values)
    unknown = ~text.isin(SPLITS)
    if unknown.any():
        raise CaseTableError(
            f"{where}: 'split' is not one of {', '.join(SPLITS)} in {rows(unknown)}; correct or drop the column"
        )
    return text


def clean_age(values: pd.Series, where: str) -> pd.Series:
    """Ages in years as float64, blanks NaN."""
    age = numbers(values, "age", where)
    implausible = age.notna() & ~age.between(0, OLDEST_AGE)
    if implausible.any():
        raise CaseTableError(
            f"{where}: 'age' is outside 0 to {OLDEST_AGE} in {rows(implausible)}; expected years, not days"
        )
    return age


def _sex(values: pd.Series) -> pd.Series:
    text = _text(values)
    lower = [None if value is None else str(value).lower() for value in text]
    return pd.Series(
        [None if value is None else SEXES.get(value, value) for value in lower], index=values.index, dtype=object
    )
