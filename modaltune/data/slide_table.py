"""The slides table of a site: whose each slide is, and which file holds its features."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from modaltune.data.bag_layouts import SUFFIXES
from modaltune.data.tables import identifiers, local_name, read_table, rows
from modaltune.errors import FeatureFileError

SLIDE_COLUMNS = ("slide_id", "case_id", "file")
GDC_SLIDE_COLUMNS = {"slide_id": "slide_submitter_id", "case_id": "case_submitter_id"}
"""What we call a column -> what GDC's ``slide.tsv`` calls it."""

logger = logging.getLogger(__name__)


def is_gdc(columns: Collection[str]) -> bool:
    """Whether a slides table is GDC's ``slide.tsv``, whose ``slide_id`` and ``case_id`` are other numbers."""
    return set(GDC_SLIDE_COLUMNS.values()) <= set(columns)


def read_slides(path: Path, *, where: str, columns: Mapping[str, str], features: Path) -> pd.DataFrame:
    """Read a slides table, a site's own or GDC's ``slide.tsv``.

    Args:
        path: the table.
        where: what messages call it.
        columns: ``[columns]`` of ``site.toml``: canonical column name -> local one, used where the table has it.
        features: folder of the feature files, where a table without ``file`` finds them by the names of its slides.
    Returns:
        ``slide_id`` (unique), ``case_id`` and ``file`` as text; the index counts the rows of the file from 0. Slides of
        GDC without a feature file are left out.
    """
    text = [*SLIDE_COLUMNS, *GDC_SLIDE_COLUMNS.values()]
    text += [columns[name] for name in SLIDE_COLUMNS if name in columns]
    table = read_table(path, where=where, error=FeatureFileError, text=text)
    gdc = is_gdc(table.columns)
    local = {name: local_name(name, columns, table) for name in SLIDE_COLUMNS}
    if gdc:
        local |= {name: column for name, column in GDC_SLIDE_COLUMNS.items() if columns.get(name) not in table.columns}
    given = [name for name in SLIDE_COLUMNS if name != "file" or local[name] in table.columns or name in columns]
    slides = pd.DataFrame(
        {
            name: identifiers(table, local[name], where=where, error=FeatureFileError, unique=name == "slide_id")
            for name in given
        }
    )
    return slides if "file" in slides else _with_files(slides, features, where, gdc)


def _with_files(slides: pd.DataFrame, features: Path, where: str, gdc: bool) -> pd.DataFrame:
    """Slides with the feature file of their name."""
    found = files_by_slide(features, gdc=gdc)
    several = slides["slide_id"].map(lambda slide: len(found.get(slide, ())) > 1)
    if several.any():
        raise FeatureFileError(
            f"{where}: several feature files have the name of a slide in {rows(several)}; add a column 'file'"
        )
    slides["file"] = slides["slide_id"].map(lambda slide: min(found.get(slide, {f"{slide}.h5"})))
    there = slides["slide_id"].isin(list(found))
    if not gdc or there.all():
        return slides
    if not there.any():
        raise FeatureFileError(
            f"{where}: no feature file has the name of one of {len(slides)} slides; expected such as"
            " SLIDE_SUBMITTER_ID.h5, correct paths.features or add a column 'file'"
        )
    logger.warning("%s: %d of %d slides left out: no feature file has their name", where, (~there).sum(), len(there))
    return slides[there]


def files_by_slide(features: Path, *, gdc: bool = False) -> dict[str, set[str]]:
    """Slide -> feature files of its name: ``SLIDE.h5``, ``SLIDE_featvec.pt`` or, of GDC, ``SLIDE.UUID.h5``."""
    found: dict[str, set[str]] = {}
    for name in feature_files(features):
        stem = Path(name).stem
        for slide in {stem, stem.removesuffix("_featvec"), stem.partition(".")[0] if gdc else stem}:
            found.setdefault(slide, set()).add(name)
    return found


def feature_files(folder: Path) -> list[str]:
    """Names of the feature files directly inside a folder; thumbnails, logs and the like are none."""
    if not os.path.isdir(folder):
        return []
    return [path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and os.path.isfile(path)]


def absent_files(files: pd.Series, features: Path) -> pd.Series:
    """Mask of the rows whose feature file is not there."""
    return ~files.map(lambda file: os.path.isfile(features / file)).astype(bool)


def shared_files(files: pd.Series, features: Path) -> pd.Series:
    """Mask of the rows whose feature file another row names too, by whatever path or link."""
    return files.map(lambda file: os.path.realpath(features / file)).duplicated(keep=False)
