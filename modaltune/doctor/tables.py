"""Checks of ``site.toml`` and the cases table: identifiers, splits, sample types, age and sex."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

import pandas as pd

from modaltune.data.cohort import SPLITS
from modaltune.data.tables import rows
from modaltune.doctor.finding import Finding, error, ok, warning
from modaltune.doctor.site_files import SiteFiles
from modaltune.errors import DataError

PRIMARY = ("01", "03", "06")
"""TCGA sample types that may be used: primary solid tumour, primary blood cancer, and metastasis where a study asks."""
_BARCODE = re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?:-(\d{2}))?", re.IGNORECASE)


def site_file(site: SiteFiles) -> Iterator[Finding]:
    """``site.toml`` is valid, and the study knows the site."""
    config, study = site.config, site.study
    yield ok(f"site {config.name}, tasks {', '.join(config.tasks)}")
    if study is None:
        return
    if config.name not in study.roster:
        yield error(
            f"{config.name} is not in the roster of study {study.name} ({', '.join(study.roster)})",
            "correct 'name' in site.toml, or ask the coordinator to add the site",
        )
    strangers = [task for task in config.tasks if task not in {known.name for known in study.tasks}]
    if len(strangers) == len(config.tasks):
        yield error("the study has none of the site's tasks", "list a task of the study in site.toml")
    elif strangers:
        yield warning(
            f"the study does not use {', '.join(strangers)}", "nothing, or take them out of 'tasks' in site.toml"
        )


def cases(site: SiteFiles) -> Iterator[Finding]:
    """The table is readable, every mapped column exists, every row has an identifier of its own."""
    table = site.cases
    absent = [name for name in site.config.columns.values() if name not in table.columns]
    if absent:
        yield error(
            f"{len(absent)} columns named in [columns] are missing, first {absent[0]!r}",
            "correct [columns] in site.toml: canonical name = local name",
        )
    ids = site.case_ids
    alike = ids.str.casefold().str.replace(r"[\s_-]+", "", regex=True).duplicated(keep=False)
    if alike.any():
        yield error(
            f"identifiers that differ only in letter case, spaces or dashes in {rows(alike)}",
            "give each patient one identifier and one row",
        )
    if not absent:
        yield ok(f"{len(ids)} cases, each with an identifier of its own")


def split(site: SiteFiles) -> Iterator[Finding]:
    """Sizes of the splits, and no patient in two of them."""
    found = site.split
    if found is None:
        yield ok("no column 'split': a hash of the identifier and the study decides (--study shows the sizes)")
        return
    sizes = {name: int((found == name).sum()) for name in SPLITS}
    text = ", ".join(f"{name} {count}" for name, count in sizes.items())
    if sizes["train"] == 0:
        yield error(f"no training case ({text})", "correct the column 'split', or drop it: a hash then decides")
    elif empty := [name for name in SPLITS[1:] if sizes[name] == 0]:
        yield warning(f"no case in {' and '.join(empty)} ({text})", "nothing to choose or score a model by: add some")
    else:
        yield ok(text)
    unlisted = found.isna()
    if unlisted.any():
        yield warning(f"not in the splits file: {rows(unlisted)}", "nothing: they are left out; or add them to it")
    yield from _leaks(site, found)


def _leaks(site: SiteFiles, found: pd.Series) -> Iterator[Finding]:
    patients = site.case_ids.map(patient_of)
    torn = found.groupby(patients).transform("nunique") > 1
    if torn.any():
        yield error(
            f"one patient in several splits: {rows(torn)} are samples of patients that another split has too",
            "use patients as cases: the first 12 characters of a TCGA barcode",
        )


def patient_of(identifier: str) -> str:
    """The patient part of a TCGA barcode; any other identifier as it is."""
    barcode = _BARCODE.match(identifier)
    return barcode[1].upper() if barcode else identifier


def samples(site: SiteFiles) -> Iterator[Finding]:
    """No identifier names a sample that is not primary tumour."""
    found = list(_barcodes(site))
    clean = True
    for where, identifiers in found:
        types = identifiers.astype(str).str.extract(_BARCODE)[1]
        other = types.notna() & ~types.isin(PRIMARY)
        if other.any():
            clean = False
            yield error(
                f"{where}: a sample type other than {', '.join(PRIMARY)} in {rows(other)}",
                "keep primary tumour samples: normal tissue and recurrences are not what the labels describe",
            )
    if clean:
        yield ok(f"no barcode of another sample type in {len(found)} identifier columns")


def _barcodes(site: SiteFiles) -> Iterator[tuple[str, pd.Series]]:
    """Every identifier column that can be read; the others are the finding of the check of their table."""
    with suppress(DataError):
        yield f"{site.config.paths.cases}, case_id", site.case_ids
    for name in site.modality_names:
        with suppress(DataError):
            yield f"{name}, case_id", site.cases_with(name)
    with suppress(DataError):
        for column in ("slide_id", "file"):
            if site.slides is not None:
                yield f"{site.config.paths.slides}, {column}", site.slides[column]


def clinical(site: SiteFiles) -> Iterator[Finding]:
    """Age in years, sex as female or male."""
    for column in ("age", "sex"):
        found = site.values(column)
        if column not in found:
            yield warning(f"no column {column!r}", f"add it, or map it in [columns]: {column} is a default input")
            continue
        values = found[column]
        if column == "sex" and (strange := values.notna() & ~values.isin(["female", "male"])).any():
            yield warning(
                f"'sex' is neither female nor male in {rows(strange)}: read as missing", "write female, male or blank"
            )
        if column == "age" and values.notna().any() and values.max() <= 1:
            yield warning("every 'age' is between 0 and 1", "give it in years; training scales it")
        yield ok(f"{column}: {int(values.notna().sum())} of {len(values)} cases")
