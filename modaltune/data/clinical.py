"""Clinical tables as GDC and cBioPortal write them: their columns become those of a cases table.

A table is recognised by its columns. What ``[columns]`` of ``site.toml`` maps is left to that mapping.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import pandas as pd

from modaltune.data.follow_up import event_values
from modaltune.data.tables import numbers, rows
from modaltune.errors import CaseTableError

DAYS_PER_MONTH = 30.4375
GDC_MISSING = ("'--", "not reported", "unknown", "not applicable", "not allowed to collect", "")

GDC_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "case_id": ("case_submitter_id", "cases.submitter_id"),
    "vital_status": ("vital_status", "demographic.vital_status"),
    "days_to_death": ("days_to_death", "demographic.days_to_death"),
    "days_to_last_follow_up": ("days_to_last_follow_up", "diagnoses.days_to_last_follow_up"),
    "stage": ("ajcc_pathologic_stage", "diagnoses.ajcc_pathologic_stage"),
    "diagnosis": ("primary_diagnosis", "diagnoses.primary_diagnosis"),
    "grade": ("tumor_grade", "diagnoses.tumor_grade"),
    "age": ("age_at_index", "demographic.age_at_index"),
    "sex": ("gender", "demographic.gender", "sex_at_birth", "demographic.sex_at_birth"),
}
"""What we call a column -> what GDC's releases of clinical.tsv call it."""
GDC_IS_PRIMARY = ("diagnosis_is_primary_disease", "diagnoses.diagnosis_is_primary_disease")

CBIOPORTAL_COLUMNS = {
    "case_id": "PATIENT_ID",
    "event": "OS_STATUS",
    "time_months": "OS_MONTHS",
    "stage": "AJCC_PATHOLOGIC_TUMOR_STAGE",
    "grade": "GRADE",
    "age": "AGE",
    "sex": "SEX",
}
"""What we call a column -> what cBioPortal's data_clinical_patient.txt calls it."""
IDENTIFIERS = (*GDC_COLUMNS["case_id"], CBIOPORTAL_COLUMNS["case_id"])
"""Columns of identifiers: read as text."""

logger = logging.getLogger(__name__)


def with_known_columns(
    table: pd.DataFrame, *, columns: Mapping[str, str], wanted: Collection[str], where: str
) -> pd.DataFrame:
    """Name the columns of a GDC or cBioPortal table as a cases table does; other tables come back as they are.

    Args:
        table: the table as read.
        columns: ``[columns]`` of ``site.toml``: canonical column name -> local one.
        wanted: canonical columns that will be read.
        where: what messages call the table.
    Returns:
        One row a case, further columns included; the index counts the rows of the file from 0. A case that is censored
        on day 0 has no survival label.
    """
    wanted = set(wanted) - set(columns)
    if {"time_months", "event", "censorship"} & set(columns):  # never one half of an endpoint from elsewhere
        wanted -= {"time_months", "event"}
    if CBIOPORTAL_COLUMNS["case_id"] in table.columns and "case_id" not in table.columns:
        return table.assign(**_cbioportal(table, wanted, where))
    found = {name: column for name, names in GDC_COLUMNS.items() for column in names if column in table.columns}
    if not {"case_id", "vital_status"} <= set(found):
        return table
    table = _primary_disease(table)
    added = {name: _gdc_text(table[found[name]]) for name in found if name in wanted}
    if "event" in wanted:
        added |= _gdc_survival(table, found, where)
    key = columns.get("case_id", "case_id")
    agreeing = [*added, *columns.values(), found["vital_status"]]
    return one_row_a_case(table.assign(**added), agreeing, where, key=key)


def _cbioportal(table: pd.DataFrame, wanted: Collection[str], where: str) -> dict[str, pd.Series]:
    added = {name: table[local] for name, local in CBIOPORTAL_COLUMNS.items() if name in wanted and local in table}
    if {"event", "time_months"} <= set(added):
        event = event_values(added["event"], CBIOPORTAL_COLUMNS["event"], where)
        time = numbers(added["time_months"], CBIOPORTAL_COLUMNS["time_months"], where)
        added |= _labels(event, time, where)
    return added


def one_row_a_case(table: pd.DataFrame, columns: Collection[str], where: str, *, key: str = "case_id") -> pd.DataFrame:
    """The first row of each case; its blanks are filled from the other rows, which must not disagree.

    Args:
        table: cases that may repeat.
        columns: the columns that will be read.
        where: what messages call the table.
        key: the column of cases.
    """
    if key not in table or not table[key].duplicated().any():
        return table
    given = table[key].notna()
    first = ~table[key].duplicated() | ~given
    merged = table[first].copy()
    for column in sorted({*columns} - {key}):
        if column not in table:
            continue
        agreed = table.groupby(key, sort=False)[column].transform("first")
        different = given & table[column].notna() & (table[column] != agreed)
        if different.any():
            raise CaseTableError(
                f"{where}: {column!r} differs from an earlier row of the same case in {rows(different)}; "
                "expected the same value in all rows of a case, correct or remove those rows"
            )
        merged[column] = agreed[first].where(given[first], merged[column])
    return merged


def _primary_disease(table: pd.DataFrame) -> pd.DataFrame:
    """Without the rows of a patient's other diseases, where the release of GDC marks them."""
    marks = [column for column in GDC_IS_PRIMARY if column in table.columns]
    if not marks:
        return table
    other = table[marks[0]].astype("string").str.lower() == "false"
    return table[~other.fillna(False).astype(bool)]


def _gdc_text(values: pd.Series) -> pd.Series:
    if not pd.api.types.is_object_dtype(values) and not pd.api.types.is_string_dtype(values):
        return values
    text = values.astype("string").str.strip()
    return text.astype(object).where(text.notna() & ~text.str.lower().isin(GDC_MISSING), None)


def _gdc_survival(table: pd.DataFrame, found: Mapping[str, str], where: str) -> dict[str, pd.Series]:
    missing = [name for name in ("days_to_death", "days_to_last_follow_up") if name not in found]
    if missing:
        raise CaseTableError(f"{where}: column {missing[0]!r} is missing; export clinical.tsv from GDC again")
    event = event_values(_gdc_text(table[found["vital_status"]]), found["vital_status"], where)
    death, follow_up = (
        numbers(_gdc_text(table[found[name]]), found[name], where)
        for name in ("days_to_death", "days_to_last_follow_up")
    )
    days = death.where(event == 1, follow_up.where(event == 0))
    return _labels(event, days / DAYS_PER_MONTH, where)


def _labels(event: pd.Series, time: pd.Series, where: str) -> dict[str, pd.Series]:
    """Event and time of the rows that have both and are not censored on day 0."""
    untimed = event.notna() & time.isna()
    nothing = (event == 0) & (time == 0)
    for wrong, reason in ((untimed, "a status without a time"), (nothing, "censored on day 0")):
        if wrong.any():
            logger.warning("%s: %d rows without a survival label: %s", where, wrong.sum(), reason)
    labelled = event.notna() & time.notna() & ~nothing
    return {"event": event.where(labelled), "time_months": time.where(labelled)}
