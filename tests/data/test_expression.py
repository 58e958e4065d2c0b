from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modaltune.data.expression import ExpressionConfig, load_expression
from modaltune.errors import ExpressionError
from tests.data import tool_files as tools

CASES = pd.Index(tools.CASES, name="case_id")
A, B = tools.CASES[:2]


def load(folder: Path, file: str, **options: object) -> pd.DataFrame:
    config = ExpressionConfig.model_validate(options)
    return load_expression(folder, file, config, cases=CASES, key="case_id", site="H1", cases_file="cases.csv")


def matrix(folder: Path, columns: dict[str, list[float]], genes: list[str], first: str = "sample") -> None:
    table = pd.DataFrame(columns)
    table.insert(0, first, genes)
    table.to_csv(folder / "m.tsv", sep="\t", index=False)


def test_the_logarithm_is_taken_of_the_value_and_one(tmp_path: Path) -> None:
    tools.own_expression(tmp_path / "e.csv")
    logged = load(tmp_path, "e.csv", unit="tpm", log=True)
    np.testing.assert_allclose(logged, np.log2(tools.tpm() + 1), rtol=1e-6)
    assert logged.index.name == "case_id"
    assert set(logged.dtypes) == {np.dtype("float32")}


@pytest.mark.parametrize(("unit", "factor"), [("tpm", 1.0), ("fpkm", 0.5)])
def test_the_unit_chooses_the_column_of_star_counts(unit: str, factor: float, tmp_path: Path) -> None:
    tools.star_folder(tmp_path / "star", tmp_path / "sheet.tsv")
    values = load(tmp_path, "star", unit=unit, sample_map="sheet.tsv")
    np.testing.assert_allclose(values[list(tools.ENSEMBL)], tools.tpm() * factor, rtol=1e-6)


def test_star_counts_by_id_and_by_name_are_the_same(tmp_path: Path) -> None:
    tools.star_folder(tmp_path / "star", tmp_path / "sheet.tsv")
    tools.hgnc(tmp_path / "hgnc.txt")
    by_name = load(tmp_path, "star", unit="counts", sample_map="sheet.tsv")
    by_id = load(tmp_path, "star", unit="counts", sample_map="sheet.tsv", gene_map="hgnc.txt")
    pd.testing.assert_frame_equal(by_name, by_id)


def test_files_may_be_listed_in_a_table_of_two_columns(tmp_path: Path) -> None:
    tools.star_folder(tmp_path / "star", tmp_path / "sheet.tsv", normal=False)
    sheet = pd.read_csv(tmp_path / "sheet.tsv", sep="\t")
    sheet[["File Name", "Case ID"]].set_axis(["sample", "case_id"], axis=1).to_csv(tmp_path / "own.csv", index=False)
    expected = load(tmp_path, "star", unit="tpm", sample_map="sheet.tsv")
    pd.testing.assert_frame_equal(load(tmp_path, "star", unit="tpm", sample_map="own.csv"), expected)


def test_samples_without_barcodes_take_their_type_from_the_map(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    matrix(tmp_path, {"S1": [30.0], "S2": [40.0], "S3": [50.0], "S4": [60.0]}, ["TP53"])
    lines = ["#Sample\tPatient\tType", "SAMPLE_ID\tPATIENT_ID\tSAMPLE_TYPE"]
    lines += [f"S1\t{A}\tPrimary", f"S2\t{A}\tMetastasis", f"S3\t{B}\tSolid Tissue Normal"]
    (tmp_path / "data_clinical_sample.txt").write_text("\n".join(lines) + "\n")
    with caplog.at_level(logging.WARNING):
        values = load(tmp_path, "m.tsv", unit="tpm", sample_map="data_clinical_sample.txt")
    assert values.to_dict() == {"TP53": {A: 30.0}}
    assert "2 of 4 samples are of another type" in caplog.text
    assert "1 of 4 samples are not in the sample map" in caplog.text


@pytest.mark.parametrize(("types", "value"), [(["01"], 30.0), (["06"], 50.0), (["03"], 70.0)])
def test_only_the_declared_sample_types_are_used(types: list[str], value: float, tmp_path: Path) -> None:
    columns = {f"{A}-01A": [30.0], f"{A}-06A": [50.0], f"{A}-03A": [70.0], f"{A}-11A": [90.0]}
    matrix(tmp_path, columns, ["TP53"])
    assert load(tmp_path, "m.tsv", unit="tpm", samples=types).to_dict() == {"TP53": {A: value}}


def test_several_samples_of_a_case_are_an_error_or_their_mean(tmp_path: Path) -> None:
    matrix(tmp_path, {f"{A}-01A": [30.0], f"{A}-01B": [50.0], f"{B}-01A": [70.0]}, ["TP53"])
    with pytest.raises(ExpressionError, match="1 cases have several samples of type 01; remove all but one, or set"):
        load(tmp_path, "m.tsv", unit="tpm")
    assert load(tmp_path, "m.tsv", unit="tpm", repeats="mean").to_dict() == {"TP53": {A: 40.0, B: 70.0}}


def test_strangers_with_several_samples_disturb_nobody(tmp_path: Path) -> None:
    matrix(tmp_path, {"TCGA-ZZ-0001-01A": [30.0], "TCGA-ZZ-0001-01B": [50.0], f"{B}-01A": [70.0]}, ["TP53"])
    assert load(tmp_path, "m.tsv", unit="tpm").to_dict() == {"TP53": {B: 70.0}}


def test_a_wide_table_may_have_a_row_a_sample(tmp_path: Path) -> None:
    rows = {"case_id": [f"{A}-11A-01R", f"{A}-01A-11R", B], "TP53": [1.0, 2.0, 3.0]}
    pd.DataFrame(rows).to_csv(tmp_path / "e.csv", index=False)
    assert load(tmp_path, "e.csv").to_dict() == {"TP53": {A: 2.0, B: 3.0}}


def test_case_ids_that_look_like_samples_are_left_alone(tmp_path: Path) -> None:
    cases = pd.Index([f"{A}-11A"])
    pd.DataFrame({"case_id": [f"{A}-11A"], "TP53": [2.0]}).to_csv(tmp_path / "e.csv", index=False)
    values = load_expression(
        tmp_path, "e.csv", ExpressionConfig(), cases=cases, key="case_id", site="H1", cases_file="cases.csv"
    )
    assert list(values.index) == [f"{A}-11A"]


def test_repeated_genes_are_summed_before_the_logarithm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    matrix(tmp_path, {f"{A}-01A": [30.0, 33.0, 7.0]}, ["TP53", "TP53", "CDH1"])
    with caplog.at_level(logging.WARNING):
        values = load(tmp_path, "m.tsv", unit="tpm", log=True)
    assert values.to_dict() == {"TP53": {A: 6.0}, "CDH1": {A: 3.0}}
    assert "1 genes occur more than once" in caplog.text


def test_repeated_genes_of_logarithms_are_an_error_or_their_mean(tmp_path: Path) -> None:
    matrix(tmp_path, {f"{A}-01A": [3.0, 5.0]}, ["TP53", "TP53"])
    with pytest.raises(ExpressionError, match="1 genes occur more than once; keep one of each, or set repeats"):
        load(tmp_path, "m.tsv", unit="log2")
    assert load(tmp_path, "m.tsv", unit="log2", repeats="mean").to_dict() == {"TP53": {A: 4.0}}


def test_outdated_symbols_and_unknown_genes_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tools.hgnc(tmp_path / "hgnc.txt")
    matrix(tmp_path, {f"{A}-01A": [3.0, 4.0, 5.0, 6.0]}, ["p53", "UVO", "LOC1", "ENSG00000999999.1"], first="gene")
    with caplog.at_level(logging.WARNING):
        values = load(tmp_path, "m.tsv", unit="log2", gene_map="hgnc.txt")
    assert values.columns.tolist() == ["TP53", "CDH1", "LOC1"]
    assert "2 of 4 genes are unknown to HGNC" in caplog.text


@pytest.mark.parametrize(("first", "second"), [("gene_id", "gene_name"), ("Hugo_Symbol", "Entrez_Gene_Id")])
def test_annotation_columns_of_a_matrix_are_not_samples(first: str, second: str, tmp_path: Path) -> None:
    table = pd.DataFrame({first: ["TP53", "CDH1"], second: ["TP53", "CDH1"], f"{A}-01": [40.0, 2.0]})
    table.to_csv(tmp_path / "m.txt", sep="\t", index=False)
    assert load(tmp_path, "m.txt", unit="tpm").to_dict() == {"TP53": {A: 40.0}, "CDH1": {A: 2.0}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "too large for logarithms or z-scores; declare unit and log"),
        ({"unit": "tpm"}, "tpm without logarithm; consider log = true"),
    ],
)
def test_units_that_should_not_be_so_are_questioned(
    options: dict[str, object], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tools.own_expression(tmp_path / "e.csv")
    with caplog.at_level(logging.WARNING):
        load(tmp_path, "e.csv", **options)
    assert message in caplog.text
