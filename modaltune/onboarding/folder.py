"""What the files of a hospital's folder are, judged by their columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype

from modaltune.data.case_table import CANONICAL
from modaltune.data.site import SLIDE_COLUMNS
from modaltune.data.tables import read_table
from modaltune.errors import DataError, SiteFolderError
from modaltune.onboarding.columns import IN_DAYS, REVERSED, named, suggestions

SUFFIXES = (".parquet", ".csv", ".tsv")
MANY = 20
"""Numeric columns that make a table one of genes."""


@dataclass
class Folder:
    """The files of a folder by what they seem to be; paths relative to it.

    Attributes:
        cases: candidates, the likeliest first.
        expression: candidates, the largest first.
        features: folders with feature files, the fullest first.
        modalities: name -> table of a further modality.
        ignored: tables that are nothing of this.
    """

    path: Path
    cases: list[str] = field(default_factory=list)
    expression: list[str] = field(default_factory=list)
    slides: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    modalities: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    table: pd.DataFrame = field(default_factory=pd.DataFrame)


def survey(path: Path) -> Folder:
    """Look at every table directly inside a folder, and at the folders of feature files.

    Raises:
        SiteFolderError: no such folder, or no table that could be the cases table.
    """
    if not path.is_dir():
        raise SiteFolderError(f"{path}: no such folder; name the folder that holds the hospital's files")
    found, scores = Folder(path), dict[str, tuple[int, pd.DataFrame]]()
    genes: dict[str, int] = {}
    for file in sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES):
        try:
            table = read_table(path / file, where=file, error=DataError)
        except DataError:  # named in the draft; the doctor says what is wrong with it
            found.ignored.append(file)
            continue
        _sort_in(found, file, table, scores, genes)
    found.cases = sorted(scores, key=lambda file: -scores[file][0])
    found.expression = sorted(genes, key=lambda file: -genes[file])
    folders = {folder.name: len(list(folder.glob("*.h5"))) for folder in path.iterdir() if folder.is_dir()}
    found.features = sorted((name for name, files in folders.items() if files), key=lambda name: -folders[name])
    if not found.cases:
        raise SiteFolderError(
            f"{path}: no table with a patient column and labels ({', '.join(SUFFIXES)}); put the cases table there,"
            " docs/data.md lists its columns"
        )
    found.table = scores[found.cases[0]][1]
    return found


def _sort_in(
    found: Folder, file: str, table: pd.DataFrame, scores: dict[str, tuple[int, pd.DataFrame]], genes: dict[str, int]
) -> None:
    columns = [str(name) for name in table.columns]
    maybe = suggestions(columns)
    numeric = sum(is_numeric_dtype(kind) for kind in table.dtypes)
    if set(SLIDE_COLUMNS) <= set(columns):
        found.slides.append(file)
        return
    has_id = "case_id" in columns or "case_id" in maybe
    score = len(set(columns) & set(CANONICAL)) + len(maybe) + len(named(columns, (*IN_DAYS, *REVERSED)))
    if has_id and numeric >= MANY and numeric >= 0.9 * (len(columns) - 1):
        genes[file] = numeric
    elif has_id and "text" in columns:
        found.modalities[_name(file)] = file
    elif has_id and score > 1:
        scores[file] = (score, table)
    elif has_id and numeric == len(columns) - 1:
        found.modalities[_name(file)] = file
    else:
        found.ignored.append(file)


def _name(file: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in Path(file).stem).strip("-") or "modality"
