from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from modaltune.federation.label_names import labels_in_disguise

TASKS = ("diagnosis", "stage", "survival")
STAGING = (
    *("T", "N", "M", "pT", "cN", "t_stage", "stage_num", "ajcc_pathologic_t", "ajcc_pathologic_stage"),
    *("ajcc_pathologic_tumor_stage", "pathologic_T", "Tumour stage", "tumorStage"),
)
LABELS = (
    *("mol_subtype", "tumor_type_cdr", "project_id", "primary_diagnosis", "PAM50", "mhrd_high", "tumor_grade"),
    *("has_img", "has_rna_log2tpm", "mt_gene_available", "n_slides", "Survival", "event", "OS months", "tumor.type"),
    *("censorship", "isDead", "osMonths", "tumorType", "hasImg", "overall_survival", "Overall Survival (Months)"),
    *("vitalStatus", "deceased", "alive", "survival_time", "death_days_to", "slide_count"),
    *("cdr_os_months", "cdr_pfi_event", "DSS", "days_to_death", "days_to_last_follow_up", "vital_status"),
)
INNOCENT = (
    *("age", "sex", "race", "text", "ERBB2", "OS9", "STAG1", "MT-ND1", "HLA-DMA", "TBXT", "PROJ1"),
    *("n_mitoses", "ldh", "crp", "haemoglobin", "percentage_tumour", "gradient", "tumour_area", "hash_code"),
)
OF_TCGA = {"case_id", "tss", "centre", "hospital", "age", "sex", "race", "year_of_diagnosis", "mt_split"}


@pytest.mark.parametrize("name", [*STAGING, *LABELS])
def test_a_label_in_disguise_is_found_however_it_is_spelt(name: str) -> None:
    assert labels_in_disguise(["age", name], TASKS) == [name]


@pytest.mark.parametrize("name", INNOCENT)
def test_a_measurement_is_no_label(name: str) -> None:
    assert labels_in_disguise([name], TASKS) == []


def test_staging_is_a_label_only_where_a_part_of_it_is_a_task() -> None:
    assert labels_in_disguise(STAGING, ["survival"]) == []
    assert labels_in_disguise(STAGING, ["survival", "t_stage"]) == list(STAGING)


def test_the_name_of_a_task_is_never_an_input() -> None:
    assert labels_in_disguise(["HER2 status"], ["her2_status"]) == ["HER2 status"]


@pytest.mark.tcga
def test_no_label_of_a_real_clinical_table_passes(tcga_dir: Path) -> None:
    for table in sorted(tcga_dir.glob("*/clinical.parquet")):
        names = pq.read_schema(table).names  # type: ignore[no-untyped-call]
        assert set(names) - set(labels_in_disguise(names, TASKS)) == OF_TCGA, table.parent.name
