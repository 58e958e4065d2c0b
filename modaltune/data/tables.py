"""Reading a site's tables and the checks that all of them share.

Messages speak of data rows, counted from 1 below the header, never of what is in them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modaltune.data.table_files import FORMATS, file_format, load_table
from modaltune.errors import CaseTableError, DataError, ExpressionError

logger = logging.getLogger(__name__)


def read_table(path: Path, *, where: str, error: type[DataError], text: Collection[str] = ()) -> pd.DataFrame:
    """Read a parquet, CSV, TSV or Excel table; text may be gzipped.

    Args:
        path: the table.
        where: what messages call it.
        error: class of the errors raised.
        text: columns to read as text (identifiers and codes keep their leading zeros).
    Returns:
        The table, at least one row, column names text and unique.
    """
    if not os.path.isfile(path):
        raise error(f"{where}: no such file; correct its path in site.toml or put the table there")
    if file_format(path) not in FORMATS:
        raise error(f"{where}: unknown table format {path.suffix!r}; choose from {', '.join(FORMATS)}")
    table = load_table(path, where=where, error=error, text=text)
    if table.empty:
        raise error(f"{where}: the table has no row; expected at least one")
    return table


def rows(mask: pd.Series) -> str:
    """How many rows a mask marks and where the first is, e.g. ``"2 rows (first: row 7)"``.

    The index of the mask counts the rows of the file from 0.
    """
    marked = mask.index[mask.to_numpy(dtype=bool)]
    noun = "row" if len(marked) == 1 else "rows"
    return f"{len(marked)} {noun} (first: row {marked[0] + 1})"


def local_name(name: str, columns: Mapping[str, str], table: pd.DataFrame) -> str:
    """What a table calls a column: as ``[columns]`` of ``site.toml`` says, or canonically where only that is there."""
    local = columns.get(name, name)
    return name if local not in table.columns and name in table.columns else local


def identifiers(table: pd.DataFrame, column: str, *, where: str, error: type[DataError], unique: bool) -> pd.Series:
    """One identifier column as text.

    Args:
        table: table that should hold the column.
        column: its name.
        where: what messages call the table.
        error: class of the errors raised.
        unique: whether a repeat is an error.
    Returns:
        Text without blanks, same index as the table.
    """
    if column not in table.columns:
        # a table without a header would show its first patient here, so no names
        raise error(
            f"{where}: column {column!r} is missing among {len(table.columns)}; add it, or name the local column under "
            "[columns] of site.toml"
        )
    values = table[column]
    if pd.api.types.is_float_dtype(values) and bool((values.dropna() % 1 == 0).all()):
        values = values.astype("Int64")
    text = values.astype("string").str.strip()
    blank = (text.isna() | (text == "")).astype(bool)
    if blank.any():
        raise error(f"{where}: {column} is blank in {rows(blank)}; every row needs one")
    repeated = text.duplicated()
    if unique and repeated.any():
        raise error(f"{where}: {column} repeats an earlier one in {rows(repeated)}; merge or remove those rows")
    return text.astype(object)


def clean_numbers(
    table: pd.DataFrame, *, key: str, where: str, error: type[DataError] = ExpressionError, noun: str = "gene"
) -> pd.DataFrame:
    """Check a table of measurements, such as expression.

    Args:
        table: one row a case: the identifier column, then one numeric column a measurement.
        key: name of the identifier column.
        where: what messages call the table.
        error: class of the errors raised.
        noun: what messages call a measurement.
    Returns:
        ``[cases, measurements]`` float32, index ``case_id``, every value finite.
    """
    cases = identifiers(table, key, where=where, error=error, unique=True)
    columns = table.drop(columns=key)
    if columns.columns.empty:
        raise error(f"{where}: no {noun} column besides {key!r}; expected one numeric column a {noun}")
    values = finite_numbers(columns, first=2, where=where, error=error, noun=noun)
    index = pd.Index(cases, name="case_id")
    return pd.DataFrame(values, index=index, columns=pd.Index([str(name) for name in columns.columns]))


def finite_numbers(
    columns: pd.DataFrame, *, first: int, where: str, error: type[DataError], noun: str
) -> NDArray[np.float32]:
    """Numeric columns as ``[rows, columns]`` float32, every value finite.

    Args:
        columns: the columns.
        first: number of the first of them in the file, counted from 1.
        where: what messages call the table.
        error: class of the errors raised.
        noun: what messages call a column.
    """
    kinds = enumerate(columns.dtypes, start=first)
    wordy = [number for number, kind in kinds if not pd.api.types.is_numeric_dtype(kind)]
    if wordy:
        raise error(
            f"{where}: {len(wordy)} {noun} columns are not numeric (first: column {wordy[0]}); "
            "remove annotation columns and text such as 'NA'"
        )
    with np.errstate(over="ignore"):
        values = columns.to_numpy(dtype=np.float32, na_value=np.nan)
    broken = ~np.isfinite(values)
    if broken.any():
        row, column = (int(axis[0]) for axis in np.nonzero(broken))
        raise error(
            f"{where}: {int(broken.sum())} values are NaN or infinite, in {int(broken.any(axis=1).sum())} rows and "
            f"{int(broken.any(axis=0).sum())} {noun} columns (first: row {columns.index[row] + 1}, "
            f"column {column + first}); remove those rows or {noun}s, or impute them"
        )
    return values


def numbers(values: pd.Series, column: str, where: str) -> pd.Series:
    """A column of the cases table as float64; blanks become NaN, anything else that is no number is an error."""
    out = pd.to_numeric(values, errors="coerce").astype("float64")
    broken = out.isna() & values.notna() & (values.astype("string").str.strip() != "")
    if broken.astype(bool).any():
        commas = values[broken.astype(bool)].astype("string").str.fullmatch(r"\s*-?\d+,\d+\s*").all()
        wanted = "a decimal point in place of the comma" if commas else "a number or a blank"
        raise CaseTableError(f"{where}: {column!r} is not a number in {rows(broken)}; expected {wanted}")
    return out


def clean_texts(table: pd.DataFrame, *, key: str, where: str, error: type[DataError]) -> pd.DataFrame:
    """Check a table with one text a case; rows without text are left out: that case lacks the modality.

    Returns:
        Column ``text``, index ``case_id``.
    """
    cases = identifiers(table, key, where=where, error=error, unique=True)
    text = table["text"].astype("string").str.strip().fillna("")
    out = pd.DataFrame({"text": text.astype(object).to_numpy()}, index=pd.Index(cases, name="case_id"))
    return out[out["text"] != ""]


def of_cases(table: pd.DataFrame, cases: pd.Index, cases_file: str, where: str, error: type[DataError]) -> pd.DataFrame:
    """The rows of known cases, in their order; others are counted in the log.

    Args:
        table: index ``case_id``, which may repeat.
        cases: the known cases.
        cases_file: what messages call their table.
        where: what messages call the table.
        error: class of the errors raised.
    """
    known = table.index.isin(cases)
    if not known.any():
        raise error(
            f"{where}: none of {len(table)} rows belongs to a case of {cases_file}; use the same case_id in both tables"
        )
    if not known.all():
        logger.warning("%s: %d of %d rows belong to no case and are ignored", where, (~known).sum(), len(known))
    return table.loc[cases[cases.isin(table.index)]]
