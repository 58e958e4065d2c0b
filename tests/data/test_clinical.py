from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import pytest

from modaltune.data.clinical import one_row_a_case, with_known_columns
from modaltune.data.site import load_site
from modaltune.errors import CaseTableError, SiteFolderError
from tests.data import tool_files as tools
from tests.data.tool_sites import make_site

WANTED = {"case_id", "stage", "time_months", "event", "age", "sex"}


@pytest.fixture(params=[False, True], ids=["plain names", "names with prefixes"])
def clinical(request: pytest.FixtureRequest, tmp_path: Path) -> pd.DataFrame:
    tools.gdc_clinical(tmp_path / "clinical.tsv", prefixed=request.param)
    return pd.read_csv(tmp_path / "clinical.tsv", sep="\t", na_values=[tools.MISSING])


def known(table: pd.DataFrame, **columns: str) -> pd.DataFrame:
    return with_known_columns(table, columns=columns, wanted=WANTED, where="t")


def column(table: pd.DataFrame, name: str) -> str:
    return next(local for local in table.columns if local.split(".")[-1] == name)


def test_a_case_is_the_submitter_not_the_uuid(clinical: pd.DataFrame) -> None:
    assert known(clinical)["case_id"].tolist() == tools.CASES


def test_months_are_days_over_the_mean_month(clinical: pd.DataFrame) -> None:
    assert known(clinical)["time_months"].iloc[4] == pytest.approx(365 / 30.4375)


def test_who_is_neither_alive_nor_dead_has_no_survival_label(clinical: pd.DataFrame) -> None:
    clinical.loc[:1, column(clinical, "vital_status")] = "Not Reported"
    assert known(clinical)[["time_months", "event"]].iloc[0].isna().all()


def test_a_status_without_days_has_no_survival_label_and_is_counted(
    clinical: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    clinical[column(clinical, "days_to_death")] = clinical[column(clinical, "days_to_death")].mask(clinical.index < 2)
    with caplog.at_level(logging.WARNING):
        assert known(clinical)[["time_months", "event"]].iloc[0].isna().all()
    assert "2 rows without a survival label: a status without a time" in caplog.text


@pytest.mark.parametrize("dead", [False, True])
def test_day_zero_says_nothing_of_the_living_and_is_refused_for_the_dead(dead: bool, tmp_path: Path) -> None:
    site = make_site("cbioportal", tmp_path / "H1")
    file = site / "data_clinical_patient.txt"
    months = tools.truth()["time_months"].iloc[0 if dead else 1]
    file.write_text(file.read_text().replace(f"\t{months}\t", "\t0\t"))
    if dead:
        with pytest.raises(CaseTableError, match=r"not above 0 in 1 row \(first: row 1\)"):
            load_site(site, split_salt="s", labels=tools.LABELS)
    else:
        assert load_site(site, split_salt="s", labels=tools.LABELS).cases["event"].isna().sum() == 1


def test_rows_of_another_disease_of_the_patient_are_passed_over(clinical: pd.DataFrame) -> None:
    other = clinical.iloc[[0]].copy()
    other[column(clinical, "ajcc_pathologic_stage")] = "Stage IV"
    marked = pd.concat([other.assign(diagnosis_is_primary_disease="false"), clinical], ignore_index=True)
    cases = known(marked)
    assert cases["case_id"].tolist() == tools.CASES
    assert cases["stage"].iloc[0] == "Stage IA"


def test_an_endpoint_that_is_mapped_is_not_mixed_with_gdcs(clinical: pd.DataFrame) -> None:
    assert "event" not in known(clinical, time_months="pfs_months")


def test_a_mapping_wins_over_what_is_recognised(clinical: pd.DataFrame) -> None:
    cases = known(clinical, case_id=column(clinical, "case_id"))
    assert len(cases) == len(tools.CASES)
    assert "TCGA" not in str(cases.get("case_id", ""))


def test_blanks_of_a_case_are_filled_from_its_other_rows() -> None:
    table = pd.DataFrame({"case_id": ["a", "b", "a"], "age": [None, 5.0, 7.0], "note": ["x", "y", "z"]})
    merged = one_row_a_case(table, ["case_id", "age"], "t")
    assert merged["age"].tolist() == [7.0, 5.0]
    assert merged.index.tolist() == [0, 1]


def test_a_table_of_ones_own_comes_back_as_it_is() -> None:
    table = pd.DataFrame({"case_id": ["a", "a"], "PATIENT_ID": [1, 2], "vital_status": ["Dead", "Alive"]})
    assert with_known_columns(table, columns={}, wanted=WANTED, where="t") is table


def test_rows_are_counted_in_the_file_even_where_cases_take_several(tmp_path: Path) -> None:
    site = make_site("gdc", tmp_path / "H1")
    file = site / "clinical.tsv"
    file.write_text(file.read_text().replace("\t46\t", "\t460\t"))
    with pytest.raises(CaseTableError, match=r"'age' is outside 0 to 120 in 1 row \(first: row 7\)"):
        load_site(site, split_salt="s", labels=tools.LABELS)


@pytest.mark.parametrize("name", ["censored", "Censorship", "os_censor"])
def test_a_column_named_after_censoring_is_never_an_event(name: str, tmp_path: Path) -> None:
    site = make_site("own", tmp_path / "H1")
    (site / "site.toml").write_text((site / "site.toml").read_text() + f'[columns]\nevent = "{name}"\n')
    with pytest.raises(SiteFolderError, match=f"write censorship = '{name}'"):
        load_site(site, split_salt="s")


def test_flipped_events_are_questioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = make_site("own", tmp_path / "H1")
    table = pd.concat([tools.truth()] * 3).assign(case_id=[f"case {number}" for number in range(36)])
    table["time_months"] = table["time_months"].where(table["event"] == 1, table["time_months"] / 20)
    table.to_csv(site / "cases.csv", index=False)
    (site / "site.toml").write_text(
        'name = "H1"\ntasks = ["survival"]\n[paths]\ncases = "cases.csv"\nexpression="e.csv"'
    )
    pd.DataFrame({"case_id": table["case_id"], "TP53": 1.0}).to_csv(site / "e.csv", index=False)
    with caplog.at_level(logging.WARNING):
        load_site(site, split_salt="s")
    assert (
        "cases.csv: cases with an event live longer than censored ones; check that event 1 means death" in caplog.text
    )
