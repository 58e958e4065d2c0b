"""Patch features of a foundation model beside the TCGA tables: ``DIR/COHORT/features/NAME/SLIDE_ID.h5``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from modaltune.data.tables import identifiers, read_table
from modaltune.encoders.registry import weights_are_here
from modaltune.encoders.slide import encoders_folder
from modaltune.errors import DataError
from simulation.studies.cells import Cell

SlideFiles = Mapping[str, Sequence[tuple[str, Path]]]
"""case_id -> (slide_id, feature file) of its slides."""

HELP = "docs/studies.md, 'Features of a foundation model', says what goes where"


def slide_files(data: Path, cohort: str, name: str) -> dict[str, tuple[tuple[str, Path], ...]]:
    """The feature files of a cohort by case, as ``slides.parquet`` (``case_id``, ``slide_id``) lists the slides.

    Slides without a file are left out: not every slide can be read.

    Raises:
        DataError: the table or all of the files are absent.
    """
    where = f"{cohort}/slides.parquet"
    if not (data / where).is_file():
        raise DataError(f"{where}: no such file; {HELP}")
    table = read_table(data / where, where=where, error=DataError)
    slides = identifiers(table, "slide_id", where=where, error=DataError, unique=True)
    cases = identifiers(table, "case_id", where=where, error=DataError, unique=False)
    folder = data / cohort / "features" / name
    found: dict[str, tuple[tuple[str, Path], ...]] = {}
    for case, slide in zip(cases, slides, strict=True):
        if (path := folder / f"{slide}.h5").is_file():
            found[case] = (*found.get(case, ()), (slide, path))
    if not found:
        raise DataError(f"{cohort}/features/{name}: a feature file for none of {len(table)} slides; {HELP}")
    return found


def missing(cells: Sequence[Cell], data: Path | None) -> list[str]:
    """What the cells need and this machine lacks, in words; empty when they can run."""
    wanted: dict[str, None] = {}
    for cell in cells:
        spec = cell.spec
        if data is None and (spec.cohorts or spec.probe):
            wanted["the folder with the tables of the cohorts: --data DIR"] = None
        for cohort in (*spec.cohorts, *spec.probe):
            tables = ("clinical.parquet", "rna.parquet") + (("slides.parquet",) if spec.features else ())
            lacking = [name for name in tables if data is not None and not (data / cohort / name).is_file()]
            wanted |= dict.fromkeys(f"{cohort}/{name}" for name in lacking)
            if (
                spec.features
                and data is not None
                and not any((data / cohort / "features" / spec.features).glob("*.h5"))
            ):
                wanted[f"{cohort}/features/{spec.features}/*.h5"] = None
        encoder = cell.settings.get("slides", {}).get("encoder", "small")
        if not weights_are_here(encoder):
            wanted[f"the weights of slide encoder {encoder!r} in {encoders_folder() / encoder}"] = None
    return list(wanted)
