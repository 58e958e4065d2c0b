"""Column names that hospitals, registries and public portals use for what a site folder calls otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from modaltune.data.column_names import means

ALIASES: Mapping[str, tuple[str, ...]] = {
    "case_id": (
        "patient_id",
        "patient",
        "patientid",
        "pid",
        "subject_id",
        "case_submitter_id",
        "submitter_id",
        "bcr_patient_barcode",
        "case",
    ),
    "split": ("fold", "partition", "subset"),
    "diagnosis": (
        "primary_diagnosis",
        "histological_type",
        "histology",
        "oncotree_code",
        "cancer_type_detailed",
        "morphology",
        "icd_o_3_histology",
    ),
    "stage": (
        "ajcc_pathologic_stage",
        "ajcc_stage",
        "pathologic_stage",
        "ajcc_pathologic_tumor_stage",
        "tumor_stage",
        "tumour_stage",
        "uicc_stage",
    ),
    "grade": ("tumor_grade", "tumour_grade", "neoplasm_histologic_grade", "histologic_grade", "histological_grade"),
    "time_months": ("os_months", "survival_months", "overall_survival_months", "months", "follow_up_months"),
    "event": ("os_event", "os_status", "death", "dead", "died", "deceased", "death_observed", "vital_status"),
    "age": ("age_at_diagnosis", "age_at_index", "age_years", "diagnosis_age"),
    "sex": ("gender",),
}
"""Canonical column -> other names of the same thing, in snake case, the likeliest first."""

IN_DAYS = ("days_to_death", "days_to_last_follow_up", "days_to_last_followup", "os_days", "os_time", "survival_days")
CHOICES = ("event", "time_months")
"""Columns that a wrong guess would turn round or stretch in silence."""


def suggestions(columns: Iterable[str]) -> dict[str, list[str]]:
    """Canonical column -> local columns that may be it, likeliest first; columns with the right name need none."""
    local = list(columns)
    out: dict[str, list[str]] = {}
    for canonical, names in ALIASES.items():
        if canonical in local:
            continue
        found = [column for name in (canonical, *names) for column in local if means(column, name)]
        if found:
            out[canonical] = list(dict.fromkeys(found))
    return out
