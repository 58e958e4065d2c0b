"""The slides table of a site: whose each slide is, and which file holds its features."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from modaltune.data.tables import identifiers, local_name, read_table
from modaltune.errors import FeatureFileError

SLIDE_COLUMNS = ("slide_id", "case_id", "file")


def read_slides(path: Path, *, where: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """Read a slides table.

    Args:
        path: the table.
        where: what messages call it.
        columns: ``[columns]`` of ``site.toml``: canonical column name -> local one, used where the table has it.
    Returns:
        ``slide_id`` (unique), ``case_id`` and ``file`` as text; the index counts the rows of the file from 0.
    """
    text = [*SLIDE_COLUMNS, *(columns[name] for name in SLIDE_COLUMNS if name in columns)]
    table = read_table(path, where=where, error=FeatureFileError, text=text)
    return pd.DataFrame(
        {
            name: identifiers(
                table,
                local_name(name, columns, table),
                where=where,
                error=FeatureFileError,
                unique=name == "slide_id",
            )
            for name in SLIDE_COLUMNS
        }
    )


def absent_files(files: pd.Series, features: Path) -> pd.Series:
    """Mask of the rows whose feature file is not there."""
    return ~files.map(lambda file: os.path.isfile(features / file)).astype(bool)


def shared_files(files: pd.Series, features: Path) -> pd.Series:
    """Mask of the rows whose feature file another row names too, by whatever path or link."""
    return files.map(lambda file: os.path.realpath(features / file)).duplicated(keep=False)
