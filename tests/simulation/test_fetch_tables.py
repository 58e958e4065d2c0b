from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from modaltune.data.tcga import DIAGNOSES
from modaltune.errors import DataError, FetchError
from simulation.fetch.gdc import Case
from simulation.fetch.tables import PROJECTS, clinical_table, name_hospitals, read_centres, slide_table
from simulation.fetch.xena import read_matrix
from tests.simulation.fake_tcga import barcode, case

Change = Callable[[dict[str, Any]], object]


def clinical_row(change: Change, cohort: str = "BRCA", project: str = "TCGA-BRCA") -> pd.Series:
    """The row of one living patient's case after a change of what GDC says."""
    record = case(1, project)
    change(record)
    return clinical_table([Case.model_validate(record)], cohort, {}).iloc[0]


def test_centres_without_enough_cases_are_no_hospitals() -> None:
    clinical = pd.DataFrame({"case_id": [str(number) for number in range(21)], "centre": ["B"] * 11 + ["A"] * 10})
    everybody = pd.Index(clinical["case_id"])
    assert name_hospitals(clinical, everybody, 5).tolist() == ["H1"] * 11 + ["H2"] * 10
    assert name_hospitals(clinical, everybody[:20], 5).tolist() == ["H1"] * 11 + [None] * 10
    with pytest.raises(DataError, match="no centre has 10 cases with expression"):
        name_hospitals(clinical, everybody[5:12], 5)


def test_a_table_of_centres_names_each_code_once(tmp_path: Path) -> None:
    (tmp_path / "centres.csv").write_text("tss,centre\n02,One\n02,Two\n")
    with pytest.raises(DataError, match=r"centres.csv: tss repeats an earlier one in 1 row"):
        read_centres(tmp_path / "centres.csv")
    (tmp_path / "centres.csv").write_text("tss,centre\n02,One\n")
    assert read_centres(tmp_path / "centres.csv") == {"02": "One"}


def test_every_cohort_of_the_labels_can_be_fetched_and_every_class_is_reached() -> None:
    assert set(PROJECTS) == set(DIAGNOSES)
    codes = ["8120/3", "8130/3", "8500/3", "8520/3", "8140/3", "8070/3"]
    for cohort, projects in PROJECTS.items():
        records = [
            Case.model_validate(case(1, project) | {"diagnoses": [{"morphology": code}]})
            for project in projects
            for code in codes
        ]
        classes = set(clinical_table(records, cohort, {})["primary_class"])
        assert classes - {-1} == set(range(len(DIAGNOSES[cohort])))


@pytest.mark.parametrize(
    ("code", "expected"), [("8500/3", 0), ("8520/3", 1), ("8522/3", -1), ("8480/3", -1), (None, -1)]
)
def test_a_mixed_or_unknown_histology_stays_unlabelled(code: str | None, expected: int) -> None:
    assert clinical_row(lambda record: record["diagnoses"][0].update(morphology=code))["primary_class"] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Stage I", 1), ("Stage IA", 1), ("Stage IIB", 2), ("Stage IIIC", 3), ("Stage IV", 4), ("Stage IVA", 4)],
)
def test_stages_keep_their_roman_number(text: str, expected: int) -> None:
    assert (
        clinical_row(lambda record: record["diagnoses"][0].update(ajcc_pathologic_stage=text))["stage_num"] == expected
    )


@pytest.mark.parametrize("text", ["Stage X", "Stage 0", "Not Reported", "Stage Tis", None])
def test_what_is_no_stage_is_blank(text: str | None) -> None:
    row = clinical_row(lambda record: record["diagnoses"][0].update(ajcc_pathologic_stage=text))
    assert pd.isna(row["stage_num"])


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(demographic={"vital_status": "Dead"}),
        lambda record: record.update(demographic={"vital_status": "Not Reported", "days_to_death": 100}),
        lambda record: record.update(follow_ups=[]),
        lambda record: record.pop("demographic"),
    ],
)
def test_survival_is_blank_unless_status_and_time_are_known(change: Change) -> None:
    row = clinical_row(change)
    assert row["case_id"] == barcode(1)
    assert pd.isna(row["os_months"])
    assert pd.isna(row["os_event"])


def test_follow_up_is_found_where_older_releases_keep_it() -> None:
    def older(record: dict[str, Any]) -> None:
        record.pop("follow_ups")
        record["diagnoses"][0]["days_to_last_follow_up"] = 304.375
        record["demographic"] = {"vital_status": "Alive", "gender": "male"}

    row = clinical_row(older)
    assert row[["os_months", "os_event", "sex", "age"]].tolist() == [10, 0, "male", 54]


def test_the_diagnosis_that_the_project_studies_counts() -> None:
    def add(record: dict[str, Any]) -> None:
        earlier = {"submitter_id": "A", "diagnosis_is_primary_disease": False, "morphology": "8520/3"}
        unclear = {"submitter_id": "B", "classification_of_tumor": "metastasis", "morphology": "8520/3"}
        record["diagnoses"] = [earlier, unclear, *record["diagnoses"]]

    assert clinical_row(add)["primary_class"] == 0


def test_lower_grade_glioma_has_a_grade_and_glioblastoma_has_none() -> None:
    def graded(grade: str) -> Change:
        return lambda record: record["diagnoses"][0].update(tumor_grade=grade)

    assert clinical_row(graded("G3"), "GBMLGG", "TCGA-LGG")["grade"] == "G3"
    assert clinical_row(graded("Not Reported"), "GBMLGG", "TCGA-LGG")["grade"] is None
    assert clinical_row(graded("G3"), "GBMLGG", "TCGA-GBM")["grade"] is None
    assert "stage_num" not in clinical_row(graded("G2"), "GBMLGG", "TCGA-LGG")


def test_slides_without_any_hit_give_an_empty_table() -> None:
    assert slide_table([]).empty


def write_matrix(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()))
    return path


def test_the_first_primary_sample_of_a_patient_counts_and_normal_ones_never(tmp_path: Path) -> None:
    header = "sample\tTCGA-AA-0001-01B\tTCGA-AA-0001-01A\tTCGA-AA-0001-11A\tTCGA-AA-0002-11\tTCGA-AA-0003-03"
    path = write_matrix(tmp_path / "m.gz", f"{header}\nTP53\t1\t2\t3\t4\t5\nKRAS\t6\t7\t8\t9\t0\n")
    expression, counts = read_matrix(path, "m")
    assert expression.index.tolist() == ["TCGA-AA-0001"]
    assert expression.loc["TCGA-AA-0001"].to_dict() == {"TP53": 2, "KRAS": 7}
    assert counts["samples left out: not a primary tumour"] == 3
    assert counts["samples left out: further primary sample of a patient"] == 1


def test_repeated_symbols_are_averaged_and_incomplete_genes_left_out(tmp_path: Path) -> None:
    header = "sample\tTCGA-AA-0001-01\tTCGA-AA-0002-01"
    path = write_matrix(tmp_path / "m.gz", f"{header}\nA\t1\t2\nB\tNA\t2\nA\t3\t6\n")
    expression, counts = read_matrix(path, "m")
    np.testing.assert_array_equal(expression, [[2], [4]])
    assert expression.columns.tolist() == ["A"]
    assert expression.dtypes.tolist() == ["float32"]
    assert counts["genes left out: missing values"] == 1
    assert counts["gene rows averaged: same symbol"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a matrix"),
        ("<html>\n<body>sorry\n", "no gene or no primary tumour"),
        ("sample\tTCGA-AA-0001-01\nA\thigh\n", "not a matrix"),
        ("sample\tTCGA-AA-0001-01\n", "not a matrix"),
        ("sample\tTCGA-AA-0001-11\nA\t1\n", "no gene or no primary tumour"),
    ],
)
def test_what_is_no_matrix_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=f"hub: {message}.*has the source changed"):
        read_matrix(write_matrix(tmp_path / "m.gz", text), "hub")
