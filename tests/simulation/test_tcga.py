from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modaltune.data.cohort import Cohort
from modaltune.data.genesets import read_gene_sets
from modaltune.data.image_tokens import HIF_WIDTH, image_tokens
from modaltune.data.site import load_site
from modaltune.data.tcga import DIAGNOSES, GRADES, STAGES, cohort_tasks, hospital_tables, read_tcga
from modaltune.errors import ConfigError, DataError
from modaltune.tasks.vocabulary import configs_folder, load_vocabulary
from simulation.synthetic import build_synthetic
from simulation.tcga import build_tcga

COHORTS = sorted(DIAGNOSES)
pytestmark = pytest.mark.tcga


def labels_of(cohort: str) -> dict[str, tuple[str, ...]]:
    tasks = load_vocabulary(configs_folder() / "labels" / f"{cohort.lower()}.toml")
    return {task.name: task.values for task in tasks if task.kind != "survival"}


def load_all(folders: list[Path], cohort: str) -> dict[str, Cohort]:
    return {folder.name: load_site(folder, split_salt="unused", labels=labels_of(cohort)) for folder in folders}


@pytest.fixture
def small(tcga_dir: Path, tmp_path: Path) -> Path:
    """A data folder with one small cohort, of which a test may take something away."""
    shutil.copytree(tcga_dir / "COADREAD", tmp_path / "data" / "COADREAD")
    shutil.copy(tcga_dir / "pathways.parquet", tmp_path / "data")
    return tmp_path / "data"


def edit(path: Path, change: object) -> None:
    change(pd.read_parquet(path)).to_parquet(path)  # type: ignore[operator]


@pytest.mark.parametrize("cohort", COHORTS)
def test_every_cohort_builds_and_loads(cohort: str, tcga_dir: Path, tmp_path: Path) -> None:
    start = time.process_time()
    folders = build_tcga(tcga_dir, cohort, tmp_path)
    assert time.process_time() - start < 10
    cohorts = load_all(folders, cohort)
    tables = read_tcga(tcga_dir, cohort)
    assert tuple(cohorts) == tables.hospitals
    assert all(site.tasks == cohort_tasks(cohort) for site in cohorts.values())
    assert sorted(case for site in cohorts.values() for case in site.cases.index) == sorted(tables.cases.index)
    assert len(read_gene_sets(tmp_path / "gene_sets.gmt")) >= 100


def test_vocabularies_name_exactly_the_values_that_tables_produce() -> None:
    for cohort, diagnoses in DIAGNOSES.items():
        labels = labels_of(cohort)
        level = "grade" if "grade" in cohort_tasks(cohort) else "stage"
        assert labels["diagnosis"] == diagnoses
        assert labels[level] == (GRADES if level == "grade" else STAGES)


def test_labels_follow_the_clinical_table(tcga_dir: Path) -> None:
    clinical = pd.read_parquet(tcga_dir / "BRCA" / "clinical.parquet").set_index("case_id")
    cases = read_tcga(tcga_dir, "brca").cases
    clinical = clinical.loc[cases.index]
    assert cases["diagnosis"].isna().equals(clinical["primary_class"] == -1)
    assert (cases["diagnosis"] == "invasive lobular carcinoma").equals(clinical["primary_class"] == 1)
    assert (cases["stage"] == "III").equals(clinical["stage_num"] == 3)
    assert (cases["event"] == 1).equals(clinical["os_event"] == 1)
    assert (cases["time_months"] > 0).all()


def test_gliomas_have_a_grade_and_no_stage(tcga_dir: Path) -> None:
    tables = read_tcga(tcga_dir, "GBMLGG")
    assert tables.tasks == ("diagnosis", "grade", "survival")
    assert "stage" not in tables.cases
    assert tables.cases.loc[tables.cases["diagnosis"] == "glioblastoma", "grade"].isna().all()


def test_cases_without_any_modality_are_left_out_and_counted(tcga_dir: Path) -> None:
    for cohort in COHORTS:
        tables = read_tcga(tcga_dir, cohort)
        clinical = pd.read_parquet(tcga_dir / cohort / "clinical.parquet")
        left_out = sum(count for reason, count in tables.counts.items() if reason.startswith("left out"))
        assert len(tables.cases) + left_out == len(clinical)
        measured = (
            tables.expression.index if tables.image is None else tables.expression.index.union(tables.image.index)
        )
        assert set(tables.cases.index) == set(measured)
    assert set(read_tcga(tcga_dir, "RCC").cases["diagnosis"].dropna()) == set(DIAGNOSES["RCC"][:2])


def test_image_tokens_do_not_depend_on_column_order(tcga_dir: Path) -> None:
    table = pd.read_parquet(tcga_dir / "BRCA" / "img_hif.parquet").head(5)
    features, coords, names = image_tokens(table)
    assert features.shape == (5, 25, HIF_WIDTH)
    assert coords.shape == (25, 2)
    assert len(set(names)) == len(np.unique(coords, axis=0)) == 25
    assert np.abs(features).max() < 20
    shuffled = image_tokens(table[table.columns[::-1]])
    np.testing.assert_array_equal(shuffled[0], features)
    assert shuffled[2] == names


def test_every_measurement_is_in_one_token(tcga_dir: Path) -> None:
    table = pd.read_parquet(tcga_dir / "NSCLC" / "img_hif.parquet").head(2)
    measured = [name for name in table.columns if name not in ("case_id", "n_slides_hif")]
    marked = pd.DataFrame([np.arange(1, len(measured) + 1)], columns=measured, dtype=float)
    found = np.expm1(image_tokens(marked)[0])
    np.testing.assert_allclose(np.sort(found[found > 0]), np.arange(1, len(measured) + 1), rtol=1e-3)


def test_nuclei_become_twelve_tokens(tcga_dir: Path) -> None:
    table = pd.read_parquet(tcga_dir / "COADREAD" / "img_nuclei.parquet")
    features, coords, names = image_tokens(table)
    assert features.shape == (len(table), 12, 4)
    assert coords.max() == 5 * 256
    assert names[:2] == ("size mean", "size sd")
    np.testing.assert_allclose(features[:, 0, 0], table["area_mean"], rtol=1e-6)


def test_missing_measurements_are_counted(tcga_dir: Path) -> None:
    hif = pd.read_parquet(tcga_dir / "BRCA" / "img_hif.parquet").head(3)
    with pytest.raises(DataError, match="token 'TUMOR CANCER' has 40 measurements; expected 41"):
        image_tokens(hif.drop(columns="TOTAL_CANCER_CELLS_IN_TUMOR"))
    nuclei = pd.read_parquet(tcga_dir / "COADREAD" / "img_nuclei.parquet").head(3)
    with pytest.raises(DataError, match=r"1 of 30 measurements are missing \(first: 'solidity_sd'"):
        image_tokens(nuclei.drop(columns="solidity_sd"))
    with pytest.raises(DataError, match="1 rows hold NaN"):
        image_tokens(nuclei.assign(area_mean=[1.0, np.nan, 2.0]))


def test_hospitals_share_no_patient_and_splits_are_stratified(tcga_dir: Path, tmp_path: Path) -> None:
    cohorts = load_all(build_tcga(tcga_dir, "RCC", tmp_path), "RCC")
    cases = pd.concat([cohort.cases for cohort in cohorts.values()])
    assert cases.index.is_unique
    shares = cases["split"].value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.65, abs=0.02)
    assert shares["test"] == pytest.approx(0.25, abs=0.02)
    for label, group in cases.groupby("diagnosis"):
        assert (group["split"] == "test").mean() == pytest.approx(0.25, abs=0.06), label


def test_a_seed_changes_the_split_only(tcga_dir: Path, tmp_path: Path) -> None:
    first, again, other = (
        load_all(build_tcga(tcga_dir, "RCC", tmp_path / name, hospitals=["H1"], seed=seed), "RCC")["H1"].cases
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    pd.testing.assert_frame_equal(first, again)
    assert not first["split"].equals(other["split"])
    pd.testing.assert_frame_equal(first.drop(columns="split"), other.drop(columns="split"))


def test_tasks_and_modalities_can_be_taken_away_without_moving_anybody(tcga_dir: Path, tmp_path: Path) -> None:
    whole = load_all(build_tcga(tcga_dir, "BRCA", tmp_path / "whole", hospitals=["H4", "H5"]), "BRCA")
    folders = build_tcga(
        tcga_dir,
        "BRCA",
        tmp_path / "part",
        hospitals=["H4", "H5"],
        tasks={"H4": ["survival"]},
        without={"H4": ["slides"], "H5": ["expression"]},
    )
    part = load_all(folders, "BRCA")
    assert list(part) == ["H4", "H5"]
    assert part["H4"].tasks == ("survival",)
    assert not part["H4"].bags
    assert part["H5"].expression is None
    for name, cohort in part.items():
        assert cohort.cases["split"].equals(whole[name].cases.loc[cohort.cases.index, "split"])


def test_other_hospitals_and_absent_optional_tables_are_fine(small: Path, tmp_path: Path) -> None:
    (small / "pathways.parquet").unlink()
    (small / "COADREAD" / "img_nuclei.parquet").unlink()

    def rename(clinical: pd.DataFrame) -> pd.DataFrame:
        kept = clinical[clinical["hospital"].isin(["H2", "H3"])]
        return kept.assign(hospital=kept["hospital"].map({"H2": "Hold out 1", "H3": "X9"}))

    edit(small / "COADREAD" / "clinical.parquet", rename)
    folders = build_tcga(small, "COADREAD", tmp_path / "out")
    assert [folder.name for folder in folders] == ["Hold-out-1", "X9"]
    assert not (tmp_path / "out" / "gene_sets.gmt").exists()
    assert all(not cohort.bags for cohort in load_all(folders, "COADREAD").values())


def test_follow_up_of_zero_is_clipped_and_what_is_no_follow_up_is_no_label(small: Path) -> None:
    def change(clinical: pd.DataFrame) -> pd.DataFrame:
        clinical.loc[clinical["hospital"] == "H1", "os_months"] = -1.0
        clinical.loc[clinical["hospital"] == "H2", "os_months"] = 0.0
        clinical.loc[clinical["hospital"] == "H3", "os_months"] = np.nan
        return clinical

    edit(small / "COADREAD" / "clinical.parquet", change)
    tables = read_tcga(small, "COADREAD")
    assert (hospital_tables(tables, "H2").cases["time_months"] == 0.1).all()
    for hospital, reason in (
        ("H1", "kept without survival because follow-up is negative"),
        ("H3", "kept without survival"),
    ):
        cases = hospital_tables(tables, hospital).cases
        assert cases[["time_months", "event"]].isna().all(axis=None)
        assert tables.counts[reason] == len(cases)


def test_a_hospital_left_without_task_or_case_is_named(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hospital H1 is left without a usable case \(it has expression"):
        build_tcga(small, "COADREAD", tmp_path / "out", without={"H1": ["expression"]})

    def blank(clinical: pd.DataFrame) -> pd.DataFrame:
        clinical.loc[clinical["hospital"] == "H4", ["stage_num", "os_months"]] = np.nan
        clinical.loc[clinical["hospital"] == "H4", "primary_class"] = -1
        return clinical

    edit(small / "COADREAD" / "clinical.parquet", lambda table: table.assign(stage_num=np.nan))
    with pytest.raises(ConfigError, match="hospital H1 has no labelled case for stage; it has labels for diagnosis"):
        build_tcga(small, "COADREAD", tmp_path / "out", tasks={"H1": ["stage"]})
    edit(small / "COADREAD" / "clinical.parquet", blank)
    with pytest.raises(ConfigError, match="hospital H4 has no labelled case for any task"):
        build_tcga(small, "COADREAD", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hospitals": ["H9"]}, "unknown hospital 'H9'; choose from H1, H2, H3, H4, H5"),
        ({"tasks": {"H1": ["grade"]}}, "unknown task 'grade'; choose from diagnosis, stage, survival"),
        ({"without": {"H1": ["image"]}}, "unknown modality 'image'"),
    ],
)
def test_a_wrong_option_lists_the_right_ones(
    options: dict[str, object], message: str, small: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_tcga(small, "COADREAD", tmp_path / "out", **options)  # type: ignore[arg-type]


def test_missing_data_says_how_to_get_it(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown cohort 'LUAD'; .* has COADREAD"):
        read_tcga(small, "LUAD")
    with pytest.raises(DataError, match=r"no such folder; .*docs/data.md"):
        read_tcga(tmp_path / "nowhere", "BRCA")
    with pytest.raises(DataError, match=r"no COHORT/clinical.parquet .*docs/data.md"):
        read_tcga(tmp_path, "BRCA")
    build_synthetic(tmp_path / "sites", cases=60)
    with pytest.raises(DataError, match="H1: a site folder, not tables of cohorts; modaltune predict reads it"):
        read_tcga(tmp_path / "sites" / "H1", "BRCA")
    edit(small / "COADREAD" / "clinical.parquet", lambda table: table.drop(columns=["age", "stage_num"]))
    with pytest.raises(DataError, match=r"'age', 'stage_num' is missing; .*docs/data.md"):
        read_tcga(small, "COADREAD")


def test_a_missing_expression_table_is_named(small: Path) -> None:
    (small / "COADREAD" / "rna.parquet").unlink()
    with pytest.raises(DataError, match=r"COADREAD/rna.parquet: no such file; .*docs/data.md"):
        read_tcga(small, "COADREAD")
    assert read_tcga(small, "COADREAD", expression="rna_log2tpm").expression.shape[1] == 1564


def test_an_unknown_hospital_lists_the_known_ones(tcga_dir: Path) -> None:
    with pytest.raises(ConfigError, match="BLCA: unknown hospital 'H9'; it has H1, H2, H3, H4, H5"):
        hospital_tables(read_tcga(tcga_dir, "BLCA"), "H9")
