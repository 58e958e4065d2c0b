from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modaltune.cli
from modaltune.data.bags import write_bag
from modaltune.data.cohort import Bag
from modaltune.data.column_names import snake
from modaltune.data.site import load_site, read_site_config
from modaltune.errors import ModalTuneError, SiteFolderError
from modaltune.onboarding.columns import suggestions
from modaltune.onboarding.draft import draft, write_draft
from modaltune.onboarding.folder import Folder, survey

IDS = [f"P{number:03d}" for number in range(12)]
CASES = {
    "case_id": IDS,
    "diagnosis": ["ductal", "lobular"] * 6,
    "stage": ["I", "II"] * 6,
    "time_months": np.arange(12) + 1.0,
    "event": [0, 1] * 6,
    "age": 60,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A hospital's files in canonical columns, without site.toml."""
    path, draw = tmp_path / "St. Mary's", np.random.default_rng(0)
    path.mkdir()
    pd.DataFrame(CASES).to_csv(path / "patients.csv", index=False)
    genes = pd.DataFrame(draw.normal(size=(12, 40)), columns=[f"G{number}" for number in range(40)])
    genes.assign(case_id=IDS).to_parquet(path / "rna.parquet")
    slides = pd.DataFrame({"slide_id": IDS[:3], "case_id": IDS[:3], "file": [f"{case}.h5" for case in IDS[:3]]})
    slides.to_csv(path / "wsi.csv", index=False)
    bag = Bag(features=np.ones((2, 4), np.float32), coords=np.array([[0, 0], [256, 0]]), patch_size_level0=256)
    for file in slides["file"]:
        write_bag(path / "bags" / file, bag, encoder="test")
    pd.DataFrame({"case_id": IDS, "text": "a report"}).to_csv(path / "reports.csv", index=False)
    pd.DataFrame({"ward": [1, 2]}).to_csv(path / "wards.csv", index=False)
    return path


def recase(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> str:
    """Change the cases table and draft a site.toml for it."""
    change(pd.DataFrame(CASES)).to_csv(folder / "patients.csv", index=False)
    return draft(survey(folder))


def active(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def test_the_draft_of_a_clean_folder_loads(folder: Path) -> None:
    write_draft(survey(folder))
    config = read_site_config(folder)
    assert (config.name, config.tasks) == ("St-Mary-s", ("diagnosis", "stage", "survival"))
    paths = config.paths
    assert (paths.cases, paths.expression, paths.slides, paths.features) == (
        "patients.csv", "rna.parquet", "wsi.csv", "bags")  # fmt: skip
    assert len(load_site(folder, split_salt="s").cases) == 12


def test_a_slides_table_may_lack_the_files(folder: Path) -> None:
    slides = pd.read_csv(folder / "wsi.csv").drop(columns="file")
    slides.to_csv(folder / "wsi.csv", index=False)
    pd.DataFrame(CASES).assign(slide_id=IDS).to_csv(folder / "patients.csv", index=False)
    write_draft(survey(folder))
    paths = read_site_config(folder).paths
    assert (paths.cases, paths.slides) == ("patients.csv", "wsi.csv")
    assert len(load_site(folder, split_salt="s").bags) == 3


def test_what_is_only_guessed_stands_in_comments(folder: Path) -> None:
    text = draft(survey(folder))
    assert '# ? modalities = {"reports" = "reports.csv"}' in text
    assert '# not recognised: "wards.csv"' in text
    assert "reports" not in active(text)


@pytest.mark.parametrize("local", ["OS_STATUS", "vital_status", "os_event", "DEATH", "Died"])
def test_an_event_is_never_taken_without_a_person(local: str, folder: Path) -> None:
    text = recase(folder, lambda cases: cases.rename(columns={"event": local}))
    assert f'# ? event = "{local}"' in text
    assert "1 must mean death observed" in text
    assert "event" not in active(text)
    assert tomllib.loads(text)["tasks"] == ["diagnosis", "stage"]


@pytest.mark.parametrize("local", ["censorship", "censored", "Alive", "censorship_dss"])
def test_a_column_that_means_the_opposite_is_named_as_such(local: str, folder: Path) -> None:
    text = recase(folder, lambda cases: cases.rename(columns={"event": local}))
    assert f'# "{local}" is not event: 1 there usually means censored' in text
    assert "# ? event" not in text


def test_days_are_not_months(folder: Path) -> None:
    text = recase(folder, lambda cases: cases.rename(columns={"time_months": "days_to_death"}))
    assert '# "days_to_death" looks like days' in text
    assert "# ? time_months" not in text


def test_other_names_are_suggested_and_a_confirmed_draft_loads(folder: Path) -> None:
    local = {"case_id": "PATIENT_ID", "stage": "AJCC_PATHOLOGIC_STAGE", "time_months": "OS_MONTHS", "event": "OS_EVENT"}
    text = recase(folder, lambda cases: cases.rename(columns=local))
    assert tomllib.loads(text)["tasks"] == ["diagnosis"]
    confirmed = text.replace("# ? ", "").replace('["diagnosis"]', '["diagnosis", "stage", "survival"]')
    (folder / "site.toml").write_text(confirmed)
    assert dict(read_site_config(folder).columns) == {
        name: column for name, column in local.items() if name != "case_id"
    }
    assert load_site(folder, split_salt="s").cases["event"].sum() == 6


def test_a_folder_without_a_task_says_that_one_is_needed(folder: Path) -> None:
    text = recase(folder, lambda cases: cases[["case_id", "age"]].assign(histology="ductal"))
    assert "tasks = []  # name at least one" in text
    assert '# ? diagnosis = "histology"' in text


def test_feature_files_without_a_table_are_explained(folder: Path) -> None:
    (folder / "wsi.csv").unlink()
    text = draft(survey(folder))
    assert "bags/ has feature files but no table names them" in text
    assert "features" not in tomllib.loads(text)["paths"]


def test_an_existing_site_file_is_never_overwritten(folder: Path) -> None:
    (folder / "site.toml").write_text("mine")
    with pytest.raises(SiteFolderError, match="is not overwritten"):
        write_draft(survey(folder))
    assert (folder / "site.toml").read_text() == "mine"


def test_a_folder_without_cases_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SiteFolderError, match="no table with a patient column and labels"):
        survey(tmp_path)
    with pytest.raises(SiteFolderError, match="no such folder"):
        survey(tmp_path / "nowhere")


def test_a_broken_table_is_left_out_and_named(folder: Path) -> None:
    (folder / "broken.parquet").write_bytes(b"PAR1")
    assert '# not recognised: "broken.parquet", "wards.csv"' in draft(survey(folder))


@pytest.mark.parametrize("name", ["OS Months", "osMonths", "os_months", "OS.MONTHS", " Os-Months "])
def test_spellings_of_a_column_are_alike(name: str) -> None:
    assert snake(name) == "os_months"
    assert suggestions([name]) == {"time_months": [name]}


@given(st.lists(st.text(min_size=1, max_size=20), unique=True, max_size=6), st.text(max_size=30))
def test_whatever_columns_and_folders_are_called_the_draft_is_toml(columns: list[str], name: str) -> None:
    table = pd.DataFrame([[1] * len(columns)], columns=columns)
    text = draft(Folder(Path("x") / name.replace("/", "").replace("\0", ""), cases=[name], table=table, ignored=[name]))
    assert tomllib.loads(text)["paths"] == {"cases": name}


def test_the_command_writes_once_and_prints_one_document(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["modaltune", "init", str(folder), "--json"])
    with pytest.raises(SystemExit) as first:
        modaltune.cli.main()
    assert first.value.code == 0
    document = json.loads(capsys.readouterr().out)
    assert document["tasks"] == ["diagnosis", "stage", "survival"]
    with pytest.raises(SystemExit) as second:
        modaltune.cli.main()
    assert second.value.code == ModalTuneError.exit_code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


def test_a_table_of_gdc_or_cbioportal_needs_no_mapping(folder: Path) -> None:
    (folder / "patients.csv").unlink()
    died, alive = (
        {"vital_status": "Dead", "days_to_death": 300},
        {"vital_status": "Alive", "days_to_last_follow_up": 400},
    )
    same = {"ajcc_pathologic_stage": "Stage IIA", "age_at_diagnosis": 20_000}
    rows = [{"case_submitter_id": case} | (died if row % 2 else alive) | same for row, case in enumerate(IDS)]
    gdc = pd.DataFrame(rows).astype(object).fillna("'--")
    gdc.to_csv(folder / "clinical.tsv", sep="\t", index=False)
    text = write_draft(survey(folder)).read_text()
    assert 'tasks = ["stage", "survival"]' in text
    assert "# ? event" not in text
    assert "looks like days" not in text
    cohort = load_site(folder, split_salt="s")
    assert cohort.cases["event"].tolist() == [0, 1] * 6


@pytest.mark.parametrize("name", ["data_clinical_patient.txt", "cases.xlsx", "cases.csv.gz"])
def test_every_format_that_is_read_is_seen(name: str, folder: Path) -> None:
    table = pd.read_csv(folder / "patients.csv")
    (folder / "patients.csv").unlink()
    if name.endswith(".xlsx"):
        table.to_excel(folder / name, index=False)
    else:
        table.to_csv(folder / name, index=False, sep="\t" if ".txt" in name else ",")
    assert survey(folder).cases[0] == name


def test_a_matrix_with_a_row_a_gene_is_expression_and_wants_its_unit(folder: Path) -> None:
    (folder / "rna.parquet").unlink()
    matrix = pd.DataFrame(np.ones((30, 12)), columns=IDS).assign(Hugo_Symbol=[f"G{row}" for row in range(30)])
    matrix[["Hugo_Symbol", *IDS]].to_csv(folder / "expression.tsv", sep="\t", index=False)
    text = draft(survey(folder))
    assert 'expression = "expression.tsv"' in text
    assert '[expression]\n# ? unit = "log2"' in text
    assert tomllib.loads(text.replace("# ? unit", "unit"))["expression"] == {"unit": "log2"}


def test_why_the_cases_table_could_not_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("case_id;stage\nP1;I\n")
    with pytest.raises(SiteFolderError, match=r"not read: cases\.csv: columns are separated by semicolons"):
        survey(tmp_path)
