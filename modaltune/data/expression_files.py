"""Expression in the layouts that tools write, recognised by their columns."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from modaltune.data.sample_map import TCGA_SAMPLE
from modaltune.data.tables import clean_numbers, finite_numbers, identifiers, read_table, rows
from modaltune.errors import ExpressionError

SYMBOL_COLUMNS = ("Hugo_Symbol", "gene_name", "gene_symbol", "symbol", "gene", "sample")
ID_COLUMNS = ("Ensembl_ID", "gene_id")
GENE_COLUMNS = (*SYMBOL_COLUMNS, *ID_COLUMNS, "Entrez_Gene_Id", "gene_type")
"""First columns of a matrix with one row a gene: Xena, cBioPortal, GDC, nf-core and their like."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Expression as a file has it.

    Attributes:
        values: ``[samples, genes]`` float32, finite; names of genes may repeat.
        samples: identifier of each row: a case, or a sample of one.
        wide: whether the file has the project's own layout, one row a case.
    """

    values: pd.DataFrame
    samples: list[str]
    wide: bool


def read_expression_table(path: Path, *, key: str, by_id: bool, where: str) -> Measured:
    """Read a table of one of three layouts.

    - wide: ``case_id``, then one column a gene;
    - long: ``case_id``, ``gene``, ``value``;
    - matrix: one row a gene, named by the first columns (:data:`GENE_COLUMNS`), then one column a sample.

    Args:
        path: the table.
        key: the site's name of ``case_id``.
        by_id: name the genes of a matrix by Ensembl id where it has both id and symbol.
        where: what messages call the table.
    """
    table = read_table(path, where=where, error=ExpressionError, text=("case_id", key, *GENE_COLUMNS))
    key = key if key in table.columns else "case_id"
    if set(table.columns) == {key, "gene", "value"}:
        return _long(table, key, where)
    first = str(table.columns[0])
    matrix = first != key or _barcodes(table.columns) > len(table.columns) / 2
    if first in GENE_COLUMNS and matrix and _barcodes(table[first]) == 0:
        return _matrix(table, by_id, where)
    if key not in table.columns:
        raise ExpressionError(
            f"{where}: column {key!r} is missing; expected {key!r} and one column a gene, or {key!r}, 'gene', 'value', "
            f"or one row a gene whose first column is one of {', '.join(GENE_COLUMNS)}"
        )
    values = clean_numbers(table, key=key, where=where)
    return Measured(values=values.reset_index(drop=True), samples=list(values.index), wide=True)


def _barcodes(names: Iterable[object]) -> int:
    return sum(TCGA_SAMPLE.fullmatch(str(name)) is not None for name in names)


def _long(table: pd.DataFrame, key: str, where: str) -> Measured:
    cases = identifiers(table, key, where=where, error=ExpressionError, unique=False)
    genes = identifiers(table, "gene", where=where, error=ExpressionError, unique=False)
    repeated = pd.DataFrame({"case": cases, "gene": genes}).duplicated()
    if repeated.any():
        raise ExpressionError(
            f"{where}: a case's gene occurs again in {rows(repeated)}; expected one value for each case and gene"
        )
    numbers = finite_numbers(table[["value"]], first=3, where=where, error=ExpressionError, noun="value")
    row, samples = pd.factorize(cases)
    column, names = pd.factorize(genes)
    values = np.full((len(samples), len(names)), np.nan, dtype=np.float32)
    values[row, column] = numbers[:, 0]
    missing = np.isnan(values)
    if missing.any():
        raise ExpressionError(
            f"{where}: {int(missing.any(axis=1).sum())} of {len(samples)} cases lack some of the {len(names)} genes; "
            "add those rows, or remove the cases or genes"
        )
    return Measured(values=pd.DataFrame(values, columns=pd.Index(names)), samples=list(samples), wide=False)


def _matrix(table: pd.DataFrame, by_id: bool, where: str) -> Measured:
    annotations = [name for name in table.columns if name in GENE_COLUMNS]
    preferred = ID_COLUMNS + SYMBOL_COLUMNS if by_id else SYMBOL_COLUMNS + ID_COLUMNS
    named = next((name for name in preferred if name in annotations), annotations[0])
    genes = table[named].astype("string").str.strip()
    samples = table.drop(columns=annotations)
    if samples.columns.empty:
        raise ExpressionError(f"{where}: no sample column besides {', '.join(annotations)}; expected one a sample")
    empty = samples.isna().all(axis=1)
    nameless = genes.isna() | (genes == "")
    for wrong, reason in ((nameless, "without a name"), (empty & ~nameless, "without any value")):
        if wrong.any():
            logger.warning("%s: %d of %d genes %s left out", where, wrong.sum(), len(table), reason)
    kept = samples[~(empty | nameless)]
    if kept.empty:
        raise ExpressionError(f"{where}: no gene has a name and a value; write the table again")
    values = finite_numbers(kept, first=len(annotations) + 1, where=where, error=ExpressionError, noun="sample")
    columns = pd.Index(genes[kept.index].tolist())
    return Measured(
        values=pd.DataFrame(values.T, columns=columns), samples=[str(name) for name in samples.columns], wide=False
    )
