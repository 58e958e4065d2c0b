"""From GDC records to the tables of docs/data.md: classes, stages, follow-up, hospitals, slides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from modaltune.data.clinical import DAYS_PER_MONTH
from modaltune.data.tables import identifiers, read_table
from modaltune.data.tcga import GRADED, GRADES, STAGES
from modaltune.errors import DataError
from simulation.fetch.gdc import Case, Diagnosis, SlideFile

PROJECTS: Mapping[str, tuple[str, ...]] = {
    "BLCA": ("TCGA-BLCA",),
    "BRCA": ("TCGA-BRCA",),
    "COADREAD": ("TCGA-COAD", "TCGA-READ"),
    "GBMLGG": ("TCGA-GBM", "TCGA-LGG"),
    "NSCLC": ("TCGA-LUAD", "TCGA-LUSC"),
    "RCC": ("TCGA-KIRP", "TCGA-KIRC", "TCGA-KICH"),
}
DAYS_A_YEAR = 365.25
OTHER_HISTOLOGY = -1
MINIMUM_CASES = 10
"""Cases with expression that make a centre a hospital: fewer do not fill three splits."""

_WHOLE_PROJECT: Mapping[str, int] = {"TCGA-GBM": 0, "TCGA-LGG": 1, "TCGA-KIRP": 0, "TCGA-KIRC": 1, "TCGA-KICH": 2}
"""Projects that took one entity only: the class of all their cases, in the order of ``configs/labels``."""

_BY_MORPHOLOGY: Mapping[str, Mapping[str, int]] = {
    "TCGA-BLCA": {"8120/3": 0, "8130/3": 1},
    "TCGA-BRCA": {"8500/3": 0, "8520/3": 1},
    "TCGA-COAD": {"8140/3": 0},
    "TCGA-READ": {"8140/3": 1},
    "TCGA-LUAD": {"8140/3": 0, "8255/3": 0},
    "TCGA-LUSC": {"8070/3": 1, "8071/3": 1, "8072/3": 1},
}
"""Elsewhere ICD-O-3 morphology decides: named variants (mucinous, papillary, mixed, ...) are another histology."""

_STAGE = re.compile(r"Stage (I{1,3}|IV)[A-D]?[0-9]?")
_DIAGNOSTIC = re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})-01[A-Z]-\d{2}-DX[A-Z0-9]+")
_LOWER_GRADE = "TCGA-LGG"


def clinical_table(cases: Sequence[Case], cohort: str, centres: Mapping[str, str]) -> pd.DataFrame:
    """One row a patient, without ``hospital``.

    Args:
        cases: of the cohort's projects.
        cohort: its name.
        centres: tissue source site code -> centre, where GDC's name for it is not to be used.
    Returns:
        ``case_id``, ``tss``, ``centre``, ``project_id``, ``primary_diagnosis``, ``primary_class``, ``stage_num`` or
        ``grade``, ``os_months`` and ``os_event`` (both or neither), ``age`` (years), ``sex``.
    """
    return pd.DataFrame([_clinical_row(case, cohort, centres) for case in cases])


def slide_table(slides: Sequence[SlideFile]) -> pd.DataFrame:
    """One row a diagnostic slide of a primary tumour, with what gdc-client needs to download and check it."""
    columns = ("case_id", "slide_id", "file_id", "file_name", "file_size", "md5sum")
    rows = [
        (found[1], found[0], slide.file_id, slide.file_name, slide.file_size, slide.md5sum)
        for slide in slides
        if (found := _DIAGNOSTIC.match(slide.file_name))
    ]
    return pd.DataFrame(sorted(rows), columns=list(columns))


def name_hospitals(clinical: pd.DataFrame, measured: pd.Index, number: int) -> pd.Series:
    """The largest centres become hospitals; everybody else has none and is left out of simulations.

    Pooling the small centres would make a hospital that does not exist.

    Args:
        clinical: with ``case_id`` and ``centre``.
        measured: cases with expression; only they make a centre large.
        number: how many hospitals at most.
    Returns:
        ``H1`` (most cases; ties by name of the centre), ``H2``, ... or None, same index as the table.
    Raises:
        DataError: no centre is large enough.
    """
    sizes = clinical.loc[clinical["case_id"].isin(measured), "centre"].value_counts()
    large = sorted(sizes[sizes >= MINIMUM_CASES].items(), key=lambda item: (-item[1], str(item[0])))
    if not large:
        raise DataError(
            f"no centre has {MINIMUM_CASES} cases with expression, so there is no hospital; "
            "merge tissue source sites with --centres"
        )
    names = {centre: f"H{rank}" for rank, (centre, _) in enumerate(large[:number], start=1)}
    return clinical["centre"].map(names).astype(object).where(clinical["centre"].isin(list(names)), None)


def read_centres(path: Path) -> dict[str, str]:
    """Tissue source site code -> centre, from a table with the columns ``tss`` and ``centre``."""
    table = read_table(path, where=path.name, error=DataError, text=("tss", "centre"))
    codes = identifiers(table, "tss", where=path.name, error=DataError, unique=True)
    names = identifiers(table, "centre", where=path.name, error=DataError, unique=False)
    return dict(zip(codes, names, strict=True))


def _clinical_row(case: Case, cohort: str, centres: Mapping[str, str]) -> dict[str, object]:
    diagnosis = _studied_diagnosis(case)
    months, event = _survival(case, diagnosis)
    code = case.submitter_id[5:7]
    project = case.project.project_id
    return {
        "case_id": case.submitter_id,
        "tss": code,
        "centre": centres.get(code) or (case.tissue_source_site.name or f"site {code}").strip(),
        "project_id": project,
        "primary_diagnosis": diagnosis.primary_diagnosis,
        "primary_class": _primary_class(project, diagnosis),
        **(_grade(project, diagnosis) if cohort in GRADED else _stage(diagnosis)),
        "os_months": months,
        "os_event": event,
        "age": _age(case, diagnosis),
        "sex": _sex(case),
    }


def _studied_diagnosis(case: Case) -> Diagnosis:
    """The disease that the project studies; GDC also lists earlier and later tumours of the patient."""
    candidates = [one for one in case.diagnoses if one.diagnosis_is_primary_disease is not False]

    def rank(one: Diagnosis) -> tuple[bool, bool, str]:
        stated = one.diagnosis_is_primary_disease is True
        return not stated, (one.classification_of_tumor or "").casefold() != "primary", one.submitter_id

    return min(candidates, key=rank, default=Diagnosis())


def _primary_class(project: str, diagnosis: Diagnosis) -> int:
    if project in _WHOLE_PROJECT:
        return _WHOLE_PROJECT[project]
    return _BY_MORPHOLOGY[project].get(diagnosis.morphology or "", OTHER_HISTOLOGY)


def _stage(diagnosis: Diagnosis) -> dict[str, float | None]:
    found = _STAGE.fullmatch(diagnosis.ajcc_pathologic_stage or "")
    return {"stage_num": float(STAGES.index(found[1]) + 1) if found else None}


def _grade(project: str, diagnosis: Diagnosis) -> dict[str, str | None]:
    known = project == _LOWER_GRADE and diagnosis.tumor_grade in GRADES
    return {"grade": diagnosis.tumor_grade if known else None}


def _survival(case: Case, diagnosis: Diagnosis) -> tuple[float | None, float | None]:
    """Months and event; both None when it is not known whether, or when, the patient died or was last seen."""
    status = (case.demographic.vital_status or "").casefold()
    days = None
    if status == "dead":
        days = case.demographic.days_to_death
    elif status == "alive":
        contacts = [diagnosis.days_to_last_follow_up, *(contact.days_to_follow_up for contact in case.follow_ups)]
        days = max((contact for contact in contacts if contact is not None), default=None)
    return (None, None) if days is None else (days / DAYS_PER_MONTH, float(status == "dead"))


def _age(case: Case, diagnosis: Diagnosis) -> float | None:
    if case.demographic.age_at_index is not None or diagnosis.age_at_diagnosis is None:
        return case.demographic.age_at_index
    return float(diagnosis.age_at_diagnosis // DAYS_A_YEAR)


def _sex(case: Case) -> str | None:
    value = (case.demographic.sex_at_birth or case.demographic.gender or "").casefold()
    return value if value in ("female", "male") else None
