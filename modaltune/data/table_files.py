"""Table files as tools write them: parquet, Excel, and text with commas or tabs, plain or gzipped."""

from __future__ import annotations

import csv
import gzip
import os
import re
import zlib
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TextIO
from zipfile import BadZipFile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from modaltune.errors import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
FORMATS = (".parquet", *SEPARATORS, ".xlsx")
GDC_BLANKS = ("'--", "[Not Available]", "[Not Applicable]", "[Unknown]")

_SEPARATOR_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?: 00:00:00)?")
_TAIL = 16 * 2**20
_UNREADABLE = (OSError, EOFError, zlib.error, BadZipFile, ValueError, KeyError, StopIteration, csv.Error, SyntaxError)
"""What parsers raise on a damaged file; the last is of the XML inside a workbook."""
_LONGER_LINE = re.compile(r"Expected (\d+) fields in line (\d+)")


def file_format(path: Path) -> str:
    """The suffix that says how to read a table, without ``.gz``."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def load_table(path: Path, *, where: str, error: type[DataError], text: Collection[str]) -> pd.DataFrame:
    """The table of a file of a known format; column names are text and unique, the index counts the rows from 0.

    Lines above the header that begin with ``#`` are passed over, and so is an unnamed first column that only counts
    the rows. What a parser says may quote the table, so it is not passed on.
    """
    try:
        names = _header(path)
        _check_header(names, path, where, error)
        if file_format(path) in SEPARATORS and (fields := _last_fields(path)) < len(names):
            raise error(
                f"{where}: the last row has {fields} of {len(names)} fields; the file is cut off, copy it again"
            )
        table = _read(path, text)
    except UnicodeDecodeError:
        raise error(f"{where}: not UTF-8 text; save the table as UTF-8 (in Excel: 'CSV UTF-8')") from None
    except pd.errors.ParserError as failure:
        raise error(f"{where}: {_parser_problem(failure, path)}") from None
    except _UNREADABLE:
        raise error(f"{where}: not a readable {file_format(path)[1:]} table; write or copy it again") from None
    if file_format(path) == ".parquet" and (odd := _no_values(path)):
        raise error(
            f"{where}: column {odd} holds bytes or lists; expected text or numbers, write it as such or remove it"
        )
    if not isinstance(table.index, pd.RangeIndex):
        raise error(
            f"{where}: the header has fewer fields than the rows; expected one name a column "
            "(in R: write.table with col.names = NA, and name the first column)"
        )
    if SEPARATORS.get(file_format(path)) == "\t" and (broken := _with_line_ends(table)):
        raise error(
            f"{where}: {broken} values run over several lines, as after a single quotation mark that swallows the rows"
            " up to the next one; remove such marks and line ends"
        )
    return _without_counter(table, names, where, error)


def _no_values(path: Path) -> int:
    """Number of the first parquet column of bytes, lists or records; 0 when there is none."""
    kinds = enumerate(pyarrow.parquet.read_schema(path).types, start=1)
    bytes_like = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_nested)
    return next((number for number, kind in kinds if any(odd(kind) for odd in bytes_like)), 0)


def _with_line_ends(table: pd.DataFrame) -> int:
    """Values, and names of columns, that hold a line end."""
    words = table.select_dtypes(include=["object", "string"])
    values = sum(int(words[name].astype("string").str.contains("[\r\n]").sum()) for name in words)
    return values + sum("\n" in str(name) or "\r" in str(name) for name in table.columns)


def _open_text(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", newline="", encoding="utf-8-sig")
    return path.open(newline="", encoding="utf-8-sig")


def _comment_lines(path: Path) -> int:
    with _open_text(path) as stream:
        return next(number for number, line in enumerate(stream) if not line.startswith("#"))


def _header(path: Path) -> list[str]:
    kind = file_format(path)
    if kind == ".parquet":
        return list(pyarrow.parquet.read_schema(path).names)
    if kind == ".xlsx":
        with pd.ExcelFile(path, engine="openpyxl") as book:
            if len(book.sheet_names) > 1:
                return []
            first = book.parse(sheet_name=0, header=None, nrows=1)
        return ["" if pd.isna(name) else str(name) for name in first.to_numpy().ravel()]
    skipped = _comment_lines(path)
    with _open_text(path) as stream:
        for _ in range(skipped):
            next(stream)
        return next(csv.reader(stream, delimiter=SEPARATORS[kind]))


def _last_fields(path: Path) -> float:
    """How many fields the last row has; infinity where that takes a parser to say."""
    if path.suffix.lower() == ".gz":  # its checksum finds a cut
        return float("inf")
    with path.open("rb") as stream:
        stream.seek(-min(path.stat().st_size, _TAIL), os.SEEK_END)
        before, _, last = stream.read().rstrip(b"\r\n").rpartition(b"\n")
    return float("inf") if not before or b'"' in last else last.count(SEPARATORS[file_format(path)].encode()) + 1


def _check_header(names: list[str], path: Path, where: str, error: type[DataError]) -> None:
    if not names:
        raise error(f"{where}: expected one sheet with a header; keep the sheet with the table and remove the others")
    kind = file_format(path)
    if kind in SEPARATORS and len(names) == 1:
        others = [mark for mark in _SEPARATOR_NAMES if mark != SEPARATORS[kind] and mark in names[0]]
        if others:
            raise error(
                f"{where}: columns are separated by {_SEPARATOR_NAMES[others[0]]}, expected "
                f"{_SEPARATOR_NAMES[SEPARATORS[kind]]} in a {kind} table; save it anew (.csv commas, .tsv tabs)"
            )
    nameless = [number for number, name in enumerate(names, start=1) if not name.strip()]
    if any(number > 1 for number in nameless):
        raise error(f"{where}: column {nameless[-1]} has no name; name it or remove it")
    dates = [number for number, name in enumerate(names, start=1) if _DATE.fullmatch(name)]
    if dates:
        raise error(
            f"{where}: the name of column {dates[0]} is a date; expected text, format the header as text before typing "
            "gene names such as MARCH1"
        )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        number = names.index(repeated[0], names.index(repeated[0]) + 1) + 1
        raise error(f"{where}: {len(repeated)} column names occur twice (first: column {number}); keep one of each")


def _read(path: Path, text: Collection[str]) -> pd.DataFrame:
    kind = file_format(path)
    if kind == ".parquet":
        table = pd.read_parquet(path)
        return table.reset_index(drop=table.index.name is None)
    words = dict.fromkeys(text, "string")
    if kind == ".xlsx":
        return pd.read_excel(path, engine="openpyxl", dtype=words, na_values=list(GDC_BLANKS))
    return pd.read_csv(
        path,
        sep=SEPARATORS[kind],
        dtype=words,
        na_values=list(GDC_BLANKS),
        encoding="utf-8-sig",
        skiprows=_comment_lines(path),
        low_memory=False,
    )


def _parser_problem(failure: pd.errors.ParserError, path: Path) -> str:
    longer = _LONGER_LINE.search(str(failure))
    if longer is None:
        return f"not a readable {file_format(path)[1:]} table; write or copy it again"
    row = int(longer[2]) - _comment_lines(path) - 1
    return f"row {row} has more than the {longer[1]} fields of the header; quote texts that hold the separator"


def _without_counter(table: pd.DataFrame, names: list[str], where: str, error: type[DataError]) -> pd.DataFrame:
    if names[0].strip():
        return table
    numbers = table.iloc[:, 0].tolist()
    if numbers not in (list(range(len(numbers))), list(range(1, len(numbers) + 1))):
        raise error(f"{where}: column 1 has no name; name it, such as case_id or gene, or remove it")
    return table.iloc[:, 1:]
