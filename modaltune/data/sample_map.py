"""Whose sample is whose: a table of samples, or of files, with their cases and perhaps their types."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from modaltune.data.tables import identifiers, read_table
from modaltune.errors import ExpressionError

LAYOUTS = {
    "a table of your own": ("sample", "case_id"),
    "cBioPortal's data_clinical_sample.txt": ("SAMPLE_ID", "PATIENT_ID"),
    "GDC's sample sheet": ("File Name", "Case ID"),
}
"""Layout -> its columns of samples (or files) and of cases."""
TYPE_COLUMNS = ("sample_type", "SAMPLE_TYPE", "Sample Type", "Tumor Descriptor")

TCGA_SAMPLE = re.compile(r"(TCGA-[0-9A-Z]{2}-[0-9A-Z]{4})-(\d\d)(?:[A-Z](?:-.*)?)?")
"""A barcode down to the sample: the patient, then the sample type."""
OTHER_TYPE = "other"


def read_sample_map(path: Path, *, where: str) -> pd.DataFrame:
    """Read a sample map in one of three layouts, recognised by its columns.

    Returns:
        One row a sample, text: ``sample``, ``case_id`` and ``type``: TCGA's code of the sample type (01 primary tumour,
        03 primary blood cancer, 06 metastasis, ...), ``other``, or None where the table does not say it.
    """
    text = ("Sample ID", *TYPE_COLUMNS, *(name for columns in LAYOUTS.values() for name in columns))
    table = read_table(path, where=where, error=ExpressionError, text=text)
    found = next((columns for columns in LAYOUTS.values() if set(columns) <= set(table.columns)), None)
    if found is None:
        known = "; ".join(f"{' and '.join(columns)} ({name})" for name, columns in LAYOUTS.items())
        raise ExpressionError(f"{where}: columns of samples and cases are missing; expected {known}")
    sample, case = found
    samples = identifiers(table, sample, where=where, error=ExpressionError, unique=True)
    cases = identifiers(table, case, where=where, error=ExpressionError, unique=False)
    barcodes = table["Sample ID"].fillna("") if "Sample ID" in table else samples
    column = next((name for name in TYPE_COLUMNS if name in table.columns), None)
    words = [None] * len(table) if column is None else table[column].fillna("").tolist()
    types = [_type(str(barcode), word) for barcode, word in zip(barcodes, words, strict=True)]
    return pd.DataFrame({"sample": samples, "case_id": cases, "type": pd.Series(types, dtype=object)})


def _type(barcode: str, word: str | None) -> str | None:
    if found := TCGA_SAMPLE.fullmatch(barcode):
        return found[2]
    if word is None:
        return None
    codes = {"primary blood": "03", "primary": "01", "metasta": "06"}
    return next((code for start, code in codes.items() if word.lower().startswith(start)), OTHER_TYPE)
