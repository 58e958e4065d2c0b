"""Reading a site's tables (parquet, CSV, TSV) and the checks that all of them share.

Messages speak of data rows, counted from 1 below the header, never of what is in them.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet

from modaltune.errors import DataError, ExpressionError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
GDC_BLANKS = ("'--", "[Not Available]", "[Not Applicable]", "[Unknown]")


def read_table(path: Path, *, where: str, error: type[DataError], text: Collection[str] = ()) -> pd.DataFrame:
    """Read a parquet, CSV or TSV table.

    Args:
        path: the table.
        where: what messages call it.
        error: class of the errors raised.
        text: columns to read as text (identifiers and codes keep their leading zeros).
    Returns:
        The table, at least one row, column names text and unique.
    """
    if not path.is_file():
        raise error(f"{where}: no such file; correct its path in site.toml or put the table there")
    if path.suffix.lower() not in (".parquet", *SEPARATORS):
        raise error(f"{where}: unknown table format {path.suffix!r}; choose from .parquet, .csv, .tsv")
    try:
        names = _header(path)
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if not repeated:
            table = _read(path, text)
    # what a parser says may quote the table, so it is not passed on
    except (OSError, ValueError, StopIteration):
        raise error(f"{where}: not a readable {path.suffix[1:]} table; write it again") from None
    if repeated:
        number = names.index(repeated[0], names.index(repeated[0]) + 1) + 1
        raise error(f"{where}: {len(repeated)} column names occur twice (first: column {number}); keep one of each")
    if table.empty:
        raise error(f"{where}: the table has no row; expected at least one")
    return table


def rows(mask: pd.Series) -> str:
    """How many rows a mask marks and where the first is, e.g. ``"2 rows (first: row 7)"``."""
    marked = np.flatnonzero(mask.to_numpy(dtype=bool))
    noun = "row" if len(marked) == 1 else "rows"
    return f"{len(marked)} {noun} (first: row {marked[0] + 1})"


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
        known = ", ".join(map(str, table.columns[:8]))
        raise error(f"{where}: column {column!r} is missing (first columns: {known}); add it or rename it in site.toml")
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
    wordy = [number for number, kind in enumerate(columns.dtypes, start=2) if not pd.api.types.is_numeric_dtype(kind)]
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
            f"{int(broken.any(axis=0).sum())} {noun} columns (first: row {row + 1}, column {column + 2}); "
            f"remove those rows or {noun}s, or impute them"
        )
    index = pd.Index(cases, name="case_id")
    return pd.DataFrame(values, index=index, columns=pd.Index([str(name) for name in columns.columns]))


def clean_texts(table: pd.DataFrame, *, key: str, where: str, error: type[DataError]) -> pd.DataFrame:
    """Check a table with one text a case; rows without text are left out: that case lacks the modality.

    Returns:
        Column ``text``, index ``case_id``.
    """
    cases = identifiers(table, key, where=where, error=error, unique=True)
    text = table["text"].astype("string").str.strip().fillna("")
    out = pd.DataFrame({"text": text.astype(object).to_numpy()}, index=pd.Index(cases, name="case_id"))
    return out[out["text"] != ""]


def _header(path: Path) -> list[str]:
    if path.suffix.lower() == ".parquet":
        return list(pyarrow.parquet.read_schema(path).names)
    with path.open(newline="", encoding="utf-8-sig") as stream:
        return next(csv.reader(stream, delimiter=SEPARATORS[path.suffix.lower()]))


def _read(path: Path, text: Collection[str]) -> pd.DataFrame:
    if path.suffix.lower() == ".parquet":
        table = pd.read_parquet(path)
        return table.reset_index(drop=table.index.name is None)
    return pd.read_csv(
        path,
        sep=SEPARATORS[path.suffix.lower()],
        dtype=dict.fromkeys(text, "string"),
        na_values=list(GDC_BLANKS),
        encoding="utf-8-sig",
        low_memory=False,
    )
