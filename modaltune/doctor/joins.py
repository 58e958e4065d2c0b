"""Checks of how the tables of a site fit together."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd

from modaltune.data.follow_up import is_survival
from modaltune.data.tables import rows
from modaltune.doctor.finding import Finding, Found, error, ok, warning
from modaltune.doctor.site_files import SiteFiles
from modaltune.doctor.tables import patient_of
from modaltune.errors import DataError

ENOUGH = 10
MOSTLY, RARELY = 0.9, 0.1
"""Shares of a class with a modality beyond which having it tells the class."""


def joins(site: SiteFiles) -> Iterator[Finding]:
    """Cases with each modality, rows without a case, cases without a modality."""
    ids, found = site.case_ids, _found(site)
    for name, cases in found.items():
        yield from _join(site, name, ids, cases)
    if not site.modality_names:
        yield error("the site has no modality", "name expression, slides or modalities under [paths] in site.toml")
    if broken := [name for name in site.modality_names if name not in found]:
        yield warning(f"not joined, because it cannot be read: {', '.join(broken)}", "solve the check of that table")
    usable = ids.isin([case for cases in found.values() for case in cases])
    if found and not usable.any():
        yield error("no case has any modality", "use the same case_id in all tables")
    elif found and not usable.all():
        yield warning(f"no slide, expression or other modality in {rows(~usable)}", "nothing: they are left out")
    if usable.any():
        yield ok(f"{int(usable.sum())} of {len(ids)} cases can be used")


def _found(site: SiteFiles) -> dict[str, pd.Series]:
    out = {}
    for name in site.modality_names:
        try:
            out[name] = site.cases_with(name)
        except DataError:  # the finding of the check of that table
            continue
    return out


def _join(site: SiteFiles, name: str, ids: pd.Series, cases: pd.Series) -> Iterator[Finding]:
    strange = ~cases.isin(ids)
    if strange.all():
        hint = ""
        for same, what in _ALIKE.items():
            if not hint and (alike := int(cases.map(same).isin(ids.map(same)).sum())):
                hint = f"; {alike} match when {what} are ignored"
        yield error(f"{name}: none of {len(cases)} rows belongs to a case{hint}", "use one case_id in all tables")
        return
    if strange.any():
        text = f"{name}: no case for {rows(strange)}"
        fix = f"add the cases to {site.config.paths.cases} or remove the rows"
        yield error(text, fix) if name == "slides" else warning(f"{text}: ignored", fix)
    yield ok(f"{name}: {int(ids.isin(cases).sum())} of {len(ids)} cases have it")


def _core(identifier: object) -> str:
    return patient_of(str(identifier)).casefold()


def _bare(identifier: object) -> str:
    """Without what spreadsheets and registries add to or take from an identifier."""
    text = re.sub(r"\.0$", "", _core(identifier))
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\W_]+", "", text))


_ALIKE = {
    _core: "letter case and what follows a TCGA patient",
    _bare: "punctuation, leading zeros and '.0'",
}


def missingness(site: SiteFiles) -> Found:
    """No class that nearly always has a modality which another class nearly always lacks."""
    told = []
    for task in (name for name in site.config.tasks if not is_survival(name)):
        try:
            labels = site.values(task=task)[task]
        except DataError as problem:
            yield problem
            continue
        sizes = labels.value_counts()
        large = labels[labels.isin(sizes[sizes >= max(ENOUGH, site.minimum)].index)]
        for name, cases in _found(site).items():
            shares = site.case_ids.isin(cases)[large.index].groupby(large).mean()
            if len(shares) > 1 and shares.max() >= MOSTLY and shares.min() <= RARELY:
                told.append(name)
                yield warning(
                    f"{task}: whether a case has {name} tells its class",
                    f"leave {name} out at this site, or the classes that lack it: 'missing' would be the label",
                )
    if not told:
        yield ok("no modality whose absence tells a class")
