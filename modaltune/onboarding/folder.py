"""What the files of a hospital's folder are, judged by their columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype

from modaltune.data.case_table import CANONICAL
from modaltune.data.clinical import with_known_columns
from modaltune.data.column_names import REVERSED, named
from modaltune.data.expression_files import GENE_COLUMNS
from modaltune.data.slide_table import SLIDE_COLUMNS, feature_files, is_gdc
from modaltune.data.table_files import FORMATS, file_format
from modaltune.data.tables import read_table
from modaltune.errors import DataError, SiteFolderError
from modaltune.onboarding.columns import IN_DAYS, suggestions

MANY = 20
"""Numeric columns that make a table one of genes."""


@dataclass
class Folder:
    """The files of a folder by what they seem to be; paths relative to it.

    Attributes:
        cases: candidates, the likeliest first.
        expression: candidates, the largest first.
        slides: candidates, those with a column ``file`` first.
        slides_by_name: those of ``slides`` without it.
        features: folders with feature files, the fullest first.
        modalities: name -> table of a further modality.
        ignored: tables that are nothing of this.
        matrices: those of ``expression`` with one row a gene, whose unit has to be told.
        table: the first of ``cases``, a table of GDC or cBioPortal with canonical columns.
    """

    path: Path
    cases: list[str] = field(default_factory=list)
    expression: list[str] = field(default_factory=list)
    slides: list[str] = field(default_factory=list)
    slides_by_name: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    modalities: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    matrices: list[str] = field(default_factory=list)
    table: pd.DataFrame = field(default_factory=pd.DataFrame)


def survey(path: Path) -> Folder:
    """Look at every table directly inside a folder, and at the folders of feature files.

    Raises:
        SiteFolderError: no such folder, or no table that could be the cases table.
    """
    if not path.is_dir():
        raise SiteFolderError(f"{path}: no such folder; name the folder that holds the hospital's files")
    found, scores = Folder(path), dict[str, tuple[int, pd.DataFrame]]()
    genes, problem = dict[str, int](), ""
    for file in sorted(entry.name for entry in path.iterdir() if entry.is_file() and file_format(entry) in FORMATS):
        try:
            table = read_table(path / file, where=file, error=DataError)
            table = _canonical(table, file)
        except DataError as error:  # named in the draft; the doctor says what is wrong with it
            found.ignored.append(file)
            problem = problem or f"; not read: {error}"
            continue
        _sort_in(found, file, table, scores, genes)
    found.slides += found.slides_by_name
    found.cases = sorted(scores, key=lambda file: -scores[file][0])
    found.expression = sorted(genes, key=lambda file: -genes[file])
    folders = {folder.name: len(feature_files(folder)) for folder in path.iterdir() if folder.is_dir()}
    found.features = sorted((name for name, files in folders.items() if files), key=lambda name: -folders[name])
    if not found.cases:
        raise SiteFolderError(
            f"{path}: no table with a patient column and labels ({', '.join(FORMATS)}); put the cases table there,"
            f" docs/data.md lists its columns{problem}"
        )
    found.table = scores[found.cases[0]][1]
    return found


def _sort_in(
    found: Folder, file: str, table: pd.DataFrame, scores: dict[str, tuple[int, pd.DataFrame]], genes: dict[str, int]
) -> None:
    columns = [str(name) for name in table.columns]
    maybe = suggestions(columns)
    numeric = sum(is_numeric_dtype(kind) for kind in table.dtypes)
    if set(SLIDE_COLUMNS) <= set(columns) or is_gdc(columns):
        found.slides.append(file)
        return
    if columns[0] in GENE_COLUMNS and numeric >= len(columns) - 2:
        found.matrices.append(file)
        genes[file] = len(table)
        return
    has_id = "case_id" in columns or "case_id" in maybe
    score = len(set(columns) & set(CANONICAL)) + len(maybe) + len(named(columns, (*IN_DAYS, *REVERSED)))
    if has_id and numeric >= MANY and numeric >= 0.9 * (len(columns) - 1):
        genes[file] = numeric
    elif has_id and "text" in columns:
        found.modalities[_name(file)] = file
    elif has_id and score > 1:
        scores[file] = (score, table)
    elif {"slide_id", "case_id"} <= set(columns):
        found.slides_by_name.append(file)
    elif has_id and numeric == len(columns) - 1:
        found.modalities[_name(file)] = file
    else:
        found.ignored.append(file)


def _canonical(table: pd.DataFrame, file: str) -> pd.DataFrame:
    """A table of GDC or cBioPortal as training reads it without a mapping; of an endpoint both halves or none."""
    known = with_known_columns(table, columns={}, wanted=CANONICAL, where=file)
    halves = {"time_months", "event"} & set(known.columns) - set(table.columns)
    return known.drop(columns=list(halves)) if len(halves) == 1 else known


def _name(file: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in Path(file).stem).strip("-") or "modality"
