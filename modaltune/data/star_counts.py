"""GDC's STAR counts: a folder with one ``*.rna_seq.augmented_star_gene_counts.tsv`` a sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modaltune.data.tables import finite_numbers, read_table
from modaltune.errors import ExpressionError

VALUE_COLUMNS = {"counts": "unstranded", "tpm": "tpm_unstranded", "fpkm": "fpkm_unstranded"}
"""Unit of ``[expression]`` -> the column of the file that holds it."""


def read_star_counts(
    folder: Path, files: pd.Series, *, unit: str | None, by_id: bool, where: str, listed: str
) -> pd.DataFrame:
    """Read the listed files of a folder and the folders in it.

    Args:
        folder: folder with the files, each perhaps in a folder of its own as gdc-client leaves them.
        files: names of the files, in the order of the rows of their table.
        unit: counts, tpm or fpkm: which column to read.
        by_id: name genes by ``gene_id`` (Ensembl) instead of ``gene_name``.
        where: what messages call the folder.
        listed: what messages call the table that lists the files.
    Returns:
        ``[files, genes]`` float32, rows in the order of ``files``; the ``N_*`` rows are left out.
    """
    if unit not in VALUE_COLUMNS:
        raise ExpressionError(
            f"{where}: a folder of STAR counts needs [expression] unit in site.toml; choose from "
            f"{', '.join(VALUE_COLUMNS)}"
        )
    paths = {path.name: path for path in folder.rglob("*.tsv")}
    absent = [row for row, name in enumerate(files, start=1) if name not in paths]
    if absent:
        raise ExpressionError(
            f"{where}: {len(absent)} of {len(files)} files listed in {listed} are not in the folder (first: row "
            f"{absent[0]}); copy them there or remove their rows"
        )
    genes: list[str] = []
    values: list[NDArray[np.float32]] = []
    for row, name in enumerate(files, start=1):
        found, column = _read_file(paths[name], VALUE_COLUMNS[unit], by_id, f"{where}, file of row {row} of {listed}")
        if genes and found != genes:
            raise ExpressionError(
                f"{where}, file of row {row} of {listed}: {len(found)} genes, other than the {len(genes)} of the file "
                "of row 1; take all files from one GDC release, or copy a truncated one again"
            )
        genes = found
        values.append(column)
    return pd.DataFrame(np.stack(values), columns=pd.Index(genes))


def _read_file(path: Path, column: str, by_id: bool, where: str) -> tuple[list[str], NDArray[np.float32]]:
    table = read_table(path, where=where, error=ExpressionError, text=("gene_id", "gene_name"))
    missing = [name for name in ("gene_id", "gene_name", column) if name not in table.columns]
    if missing:
        raise ExpressionError(
            f"{where}: column {missing[0]!r} is missing; expected GDC's augmented_star_gene_counts.tsv"
        )
    table = table[~table["gene_id"].str.startswith("N_", na=False)]
    names = table["gene_id" if by_id else "gene_name"]
    if names.isna().any():
        raise ExpressionError(f"{where}: {int(names.isna().sum())} rows name no gene; copy the file again")
    number = table.columns.get_loc(column)
    values = finite_numbers(table[[column]], first=int(number) + 1, where=where, error=ExpressionError, noun="value")  # type: ignore[arg-type]
    return names.tolist(), values[:, 0]
