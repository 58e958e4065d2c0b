"""RNA expression from the TCGA hub of UCSC Xena, one matrix a project.

Source: the dataset ``TCGA.<project>.sampleMap/HiSeqV2``, gene-level RSEM of TCGA's Illumina HiSeq RNA-seq,
log2(normalised count + 1). Of the public sources it is the one whose rows are gene symbols, as in gene-set files, whose
columns are sample barcodes and whose values are the same today as when papers used it; GDC's own counts are a file a
sample with Ensembl ids, and change with the release. Symbols are of that time: genes renamed since keep the old name.
"""

from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path

import numpy as np
import pandas as pd

from modaltune.errors import FetchError

XENA = "https://tcga-xena-hub.s3.us-east-1.amazonaws.com"
UNIT = "log2(RSEM normalised count + 1)"

_PRIMARY = re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})-01")


def matrix_url(base: str, project: str) -> str:
    """Address of a project's matrix.

    Args:
        base: the hub.
        project: e.g. ``TCGA-BRCA``.
    """
    return f"{base}/download/TCGA.{project.removeprefix('TCGA-')}.sampleMap%2FHiSeqV2.gz"


def read_matrix(path: Path, url: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """Primary tumours of a matrix, one row a patient.

    Of several primary samples of a patient the first barcode counts. Rows of the same gene are averaged, genes with a
    missing value left out.

    Args:
        path: gzip-compressed text: a header of sample barcodes, then a gene a line.
        url: what messages call it.
    Returns:
        ``[cases, genes]`` float32, index ``case_id``; and what was left out -> how many.
    Raises:
        FetchError: not such a matrix, or without a primary tumour.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
            samples = next(csv.reader(stream, delimiter="\t"))[1:]
        columns = _primary_columns(samples)
        kinds = {0: "string"} | dict.fromkeys(columns.values(), "float32")
        table = pd.read_csv(
            path, sep="\t", compression="gzip", header=None, skiprows=1, usecols=list(kinds), dtype=kinds, index_col=0
        )
    except (OSError, ValueError, StopIteration):
        raise FetchError(f"{url}: not a matrix of samples (header) by genes (lines); has the source changed?") from None
    if not columns or table.empty:
        raise FetchError(f"{url}: no gene or no primary tumour (sample type 01) in it; has the source changed?")
    complete = table[np.isfinite(table.to_numpy()).all(axis=1)]
    genes = complete.groupby(level=0, sort=False).mean().astype("float32")
    cases = {column: case for case, column in columns.items()}
    expression = genes.rename(columns=cases).T.sort_index().rename_axis(index="case_id", columns=None)
    primary = sum(_PRIMARY.match(sample) is not None for sample in samples)
    counts = {
        "samples left out: not a primary tumour": len(samples) - primary,
        "samples left out: further primary sample of a patient": primary - len(columns),
        "genes left out: missing values": len(table) - len(complete),
        "gene rows averaged: same symbol": len(complete) - len(genes),
    }
    return expression, counts


def _primary_columns(samples: list[str]) -> dict[str, int]:
    """Patient -> column of the table, counted from 1, of its primary sample."""
    columns: dict[str, int] = {}
    for sample, column in sorted((sample, column) for column, sample in enumerate(samples, start=1)):
        if found := _PRIMARY.match(sample):
            columns.setdefault(found[1], column)
    return columns
