"""Checks of labels: vocabulary, survival, and the counts that a study would see."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from modaltune.data.case_table import labelled
from modaltune.data.cohort import SPLITS
from modaltune.data.follow_up import event_meaning, events_live_longer, follow_up_columns, is_survival
from modaltune.data.tables import rows
from modaltune.doctor.finding import Finding, Found, error, ok, warning
from modaltune.doctor.site_files import SiteFiles
from modaltune.errors import DataError

SHORTEST_FOLLOW_UP = 12
"""A cohort whose longest follow-up is below a year of months is probably in years."""
ENOUGH = 10
"""Cases on either side of a comparison."""


def vocabulary(site: SiteFiles) -> Found:
    """Every label is a value of the vocabulary; those that are not are counted, never shown."""
    for task in site.config.tasks:
        if not is_survival(task):
            try:
                yield from _task_labels(site, task)
            except DataError as problem:
                yield problem


def _task_labels(site: SiteFiles, task: str) -> Iterator[Finding]:
    known, labels = site.vocabulary.get(task), site.values(task=task)[task]
    given = labels.dropna().astype(str)
    source = "the shipped vocabularies" if site.study is None else f"study {site.study.name}"
    if known is None:
        missing = f"{task}: {source} {'have' if site.study is None else 'has'} no such task"
        yield warning(f"{missing}; its labels are not checked", "give --study, or take it out of 'tasks' in site.toml")
        return
    targets = [value for value in site.config.labels.get(task, {}).values() if value and value not in known]
    if targets:
        yield error(
            f"[labels.{task}] of site.toml maps to {len(targets)} values that {source} does not have",
            f"choose from {', '.join(map(repr, known))}",
        )
    unknown = labels.notna() & ~labels.astype(str).str.casefold().isin([value.casefold() for value in known])
    if unknown.any():
        kinds = labels[unknown].nunique()
        yield error(
            f"{task}: {kinds} local {'code' if kinds == 1 else 'codes'} in {rows(unknown)} not in {source}",
            "map them: modaltune labels SITE --study FILE (or --cohort NAME) shows them, --apply stores the mapping",
        )
    if given.empty:
        yield error(f"{task}: no case has a label", f"fill in {task!r} or take it out of 'tasks' in site.toml")
    elif not unknown.any() and not targets:
        yield ok(f"{task}: {len(given)} of {len(labels)} cases labelled, all in {source}")


def survival(site: SiteFiles) -> Iterator[Finding]:
    """Months above 0, events 0 or 1, and an event column that does not look turned round."""
    endpoints = list(filter(is_survival, site.config.tasks))
    if not endpoints:
        yield ok("the site lists no survival task")
    for task in endpoints:
        yield from _follow_up(site, task)


def _follow_up(site: SiteFiles, task: str) -> Iterator[Finding]:
    table, (of_time, of_event) = site.values(task=task), follow_up_columns(task)
    known = table[labelled(table, task)]
    if known.empty:
        yield error(
            f"{task}: no case has a follow-up time",
            f"fill in {of_time} and {of_event}, or take {task!r} out of 'tasks'",
        )
        return
    months, died = known[of_time].astype(float), known[of_event] == 1
    yield from _doubtful_times(months)
    if died.all() or not died.any():
        which = "every" if died.all() else "no"
        yield warning(
            f"{which} case has {of_event} = 1",
            f"expected 1 = {event_meaning(task)} observed, 0 = censored; check the column behind {of_event!r}",
        )
    elif events_live_longer(known, task):
        where = site.where(site.config.paths.cases)
        yield warning(
            f"{where}: cases with an event live longer than censored ones",
            f"check that {of_event} 1 means {event_meaning(task)}",
        )
    yield ok(f"{task}: {len(known)} of {len(table)} cases have follow-up and event")


def _doubtful_times(months: pd.Series) -> Iterator[Finding]:
    if len(months) >= ENOUGH and months.max() < SHORTEST_FOLLOW_UP:
        yield warning(
            f"no follow-up reaches {SHORTEST_FOLLOW_UP} months", "if it is in years, multiply by 12; else nothing"
        )


def counts(site: SiteFiles) -> Found:
    """Cases of every task and class in each split, small ones held back as they would be from a study."""
    split, minimum = site.split, site.minimum
    if split is None:
        split = pd.Series("all splits", index=site.values().index)
    groups = [name for name in (*SPLITS, "all splits") if (split == name).any()]
    for task in site.config.tasks:
        try:
            table = site.values(task=task)
        except DataError as problem:
            yield problem
            continue
        parts = _classes(site, task, table)
        shown = "; ".join(f"{group}: {_counted(parts, split == group, minimum)}" for group in groups)
        training = split.isin(["train", "all splits"])
        small = [name for name, mask in parts.items() if 0 < int(mask[training].sum()) < minimum]
        if not any(mask[training].any() for mask in parts.values()):
            yield warning(f"{task}: no training case has a label", "add labels, or nothing: the site only scores it")
        elif small:
            yield warning(f"{task}: {shown}", f"training counts below {minimum} are sent as 0: {', '.join(small)}")
        else:
            yield ok(f"{task}: {shown}")


def _classes(site: SiteFiles, task: str, table: pd.DataFrame) -> dict[str, pd.Series]:
    """Name -> mask of its rows: classes of the vocabulary, or followed cases and deaths."""
    known = labelled(table, task)
    if is_survival(task):
        return {"followed": known, "deaths": known & (table[follow_up_columns(task)[1]] == 1)}
    values = table[task].astype("string").str.casefold()
    found = {name: values.eq(name.casefold()).fillna(False) for name in site.vocabulary.get(task, ())}
    present = {name: mask for name, mask in found.items() if site.study is not None or mask.any()}
    return present or {"labelled": known}


def _counted(parts: dict[str, pd.Series], inside: pd.Series, minimum: int) -> str:
    counted = {name: int(mask[inside].sum()) for name, mask in parts.items()}
    return ", ".join(f"{name} {f'<{minimum}' if 0 < n < minimum else n}" for name, n in counted.items())
