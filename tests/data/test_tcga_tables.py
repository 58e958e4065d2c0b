"""What a mistaken table of a cohort says, on invented tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from modaltune.data.image_tokens import NUCLEI_FAMILIES
from modaltune.data.tcga import hospital_tables, read_tcga
from modaltune.errors import DataError
from simulation.tcga import left_out

CLINICAL: dict[str, list[Any]] = {
    "case_id": ["a", "b", "c", "d"],
    "hospital": ["H1"] * 4,
    "primary_class": [0, 1, -1, 1],
    "stage_num": [1.0, 4.0, np.nan, 2.0],
    "os_months": [3.0, 40.0, np.nan, 12.0],
    "os_event": [1, 0, 0, 1],
    "age": [60.0, 71.0, np.nan, 55.0],
    "sex": ["female"] * 4,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "BLCA").mkdir()
    pd.DataFrame({"case_id": CLINICAL["case_id"], "TP53": 1.0}).to_parquet(tmp_path / "BLCA" / "rna.parquet")
    return tmp_path


def write(folder: Path, **columns: list[Any]) -> None:
    pd.DataFrame(CLINICAL | columns).to_parquet(folder / "BLCA" / "clinical.parquet")


def test_numbers_written_as_text_are_read_as_numbers(folder: Path) -> None:
    write(folder)
    expected = read_tcga(folder, "BLCA").cases
    write(folder, primary_class=["0", "1", "-1", "1"], stage_num=["1", "4", "", "2"], os_event=["1", "0", "0", "1"])
    pd.testing.assert_frame_equal(read_tcga(folder, "BLCA").cases, expected)
    assert expected["diagnosis"].notna().tolist() == [True, True, False, True]
    assert expected["stage"].tolist() == ["I", "IV", None, "II"]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("primary_class", [7, 7, 7, 7], r"is none of -1, 0, 1 in 4 rows \(first: row 1\); expected one of"),
        ("stage_num", [1, 2, 3, 5], r"is none of 1, 2, 3, 4 in 1 row \(first: row 4\)"),
        ("stage_num", ["I", "II", None, "III"], r"is not a number in 3 rows \(first: row 1\); expected a number"),
        ("os_event", [1, 2, 2, 1], r"is none of 0, 1 in 2 rows \(first: row 2\)"),
        ("os_months", ["3", "unknown", "4", "5"], r"is not a number in 1 row \(first: row 2\)"),
        (
            "os_months",
            [900.0, 1200.0, 40.0, 30.0],
            r"is above 720 in 2 rows .*; expected months, not days",
        ),
        (
            "age",
            [22000, 20000, 18000, 30000],
            r"is outside 0 to 120 in 4 rows .*; expected years, not days",
        ),
        ("age", ["60", "[Not Available]", "50", "40"], r"is not a number in 1 row \(first: row 2\)"),
    ],
)
def test_a_wrong_code_or_unit_names_file_column_rows_and_what_is_expected(
    column: str, values: list[Any], message: str, folder: Path
) -> None:
    write(folder, **{column: values})
    with pytest.raises(DataError, match=f"BLCA/clinical.parquet: '{column}' {message}"):
        read_tcga(folder, "BLCA")


def test_text_among_image_measurements_names_its_column(folder: Path) -> None:
    write(folder)
    names = [f"{name}_{part}" for columns in NUCLEI_FAMILIES.values() for name in columns for part in ("mean", "sd")]
    table = pd.DataFrame(1.0, index=range(4), columns=names).assign(case_id=CLINICAL["case_id"])
    table.assign(area_mean=["1", "2", "NA", "3"]).to_parquet(folder / "BLCA" / "img_nuclei.parquet")
    with pytest.raises(DataError, match=r"img_nuclei: 1 measurements are not numeric \(first: column 'area_mean'\)"):
        hospital_tables(read_tcga(folder, "BLCA"), "H1")


def test_cases_that_lose_their_only_modality_are_counted(folder: Path) -> None:
    write(folder)
    pd.DataFrame({"case_id": ["a", "b", "c"], "TP53": 1.0}).to_parquet(folder / "BLCA" / "rna.parquet")
    names = [f"{name}_{part}" for columns in NUCLEI_FAMILIES.values() for name in columns for part in ("mean", "sd")]
    image = pd.DataFrame(1.0, index=range(2), columns=names).assign(case_id=["c", "d"])
    image.to_parquet(folder / "BLCA" / "img_nuclei.parquet")
    tables = read_tcga(folder, "BLCA")
    found = left_out(tables, {"H1": ["expression"]})
    assert found == ("2 cases: left out at H1: nothing but expression, which is taken away.",)
    assert left_out(tables, {}) == ()
