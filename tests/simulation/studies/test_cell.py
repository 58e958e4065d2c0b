"""One cell from settings to run folder; the hospitals answer in this process, through the real handlers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from modaltune.federation.study import Study
from simulation import experiment
from simulation.studies.cell import models_at, run_cell
from simulation.studies.cells import Cell, expand
from simulation.studies.results import shown, tidy
from simulation.studies.runner import cell_folder, state_of
from simulation.studies.spec import ShowSpec, StudyFile
from tests.integration.grids import federate_here

pytestmark = pytest.mark.integration


def cell(**data: Any) -> Cell:
    about = {"name": "one", "methods": ["linear"], "data": data, "training": {"rounds": 1}}
    return expand(StudyFile.model_validate(about))[0]


def rows(folder: Path, **chosen: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "metrics.json").read_text())
    return [row for row in found if all(row[key] == value for key, value in chosen.items())]


def test_a_cell_scores_the_hospital_that_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "run_federation", federate_here)
    one = cell(kind="synthetic", cases=100, leave_out=["H5"])
    folder = cell_folder(tmp_path, one)
    command = f"modaltune-simulate study one --only {one.name}"
    run_cell(one, folder, None, command)
    assert state_of(tmp_path, one) == "done"
    report = (folder / "report.html").read_text()
    assert f"<code>{command}</code>" in report
    assert 'id="gene-sets"' in report
    assert {row["method"] for row in rows(folder)} == {"federated", "linear"}
    assert all(row["n"] for row in rows(folder, hospital="H5", method="federated"))
    assert json.loads((folder / "study.json").read_text())["roster"] == ["H1", "H2", "H3", "H4"]
    assert not list(folder.glob("sites")) + list(folder.glob("truth"))


def baseline_cell(kind: str, **data: Any) -> Cell:
    about = {"name": "one", "methods": ["linear", "gigapath_lp"], "data": {"kind": "synthetic", "cases": 100, **data}}
    axes = [{"name": "model.kind", "values": [kind]}]
    return expand(StudyFile.model_validate({**about, "training": {"rounds": 1}, "axes": axes}))[0]


def test_a_baseline_is_a_cell_with_its_own_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "run_federation", federate_here)
    one = baseline_cell("mlp")
    run_cell(one, folder := cell_folder(tmp_path, one), None)
    study = Study.from_json((folder / "study.json").read_text())
    assert (study.model.kind, study.training.objective) == ("mlp", "hazards")
    assert {row["method"] for row in rows(folder)} == {"federated"}, "the others do not depend on the model"
    assert 'id="gene-sets"' not in (folder / "report.html").read_text()
    assert all(row["value"] is not None for row in rows(folder, hospital="all", metric="auc"))


def test_the_linear_probe_is_scored_beside_modaltune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "run_federation", federate_here)
    one = baseline_cell("modaltune", hospitals=["H1", "H2"])
    run_cell(one, folder := cell_folder(tmp_path, one), None)
    probes = {f"gigapath_lp/{way}" for way in ("federated", "local", "pooled")}
    assert {row["method"] for row in rows(folder)} == {"federated", "linear", *probes}
    notes = json.loads((folder / "summary.json").read_text())["notes"]
    assert any("stand-in" in note for note in notes)
    for name in ("", "gigapath_lp/federated, "):
        assert any(
            note.startswith(f"{name}probe of stage: without H1 and H2 (a class of fewer than 5") for note in notes
        )


def test_a_baseline_that_nobody_has_the_data_for_is_not_applicable_and_says_why(tmp_path: Path) -> None:
    one = baseline_cell("abmil", modalities=["expression"])
    run_cell(one, folder := cell_folder(tmp_path, one), None)
    assert state_of(tmp_path, one) == "done"
    found = rows(folder)
    assert {(row["method"], row["hospital"], row["value"], row["n"]) for row in found} == {
        ("federated", "all", None, 0)
    }
    assert json.loads((folder / "summary.json").read_text())["notes"] == ["no training case has slides"]
    table = tidy([one], tmp_path)
    assert table["value"].isna().all()
    assert shown(table, ["model.kind"], ShowSpec())["undefined"].tolist() == [1] * 3


def test_a_cohorts_row_rests_on_models_of_its_own_hospitals_and_of_everybody() -> None:
    cohorts = {"RCC-H1": "RCC", "RCC-H2": "RCC", "BLCA-H1": "BLCA"}
    owners = [(model, hospital) for model in ("", *cohorts) for hospital in cohorts]
    found = models_at(pd.DataFrame(owners, columns=["model", "hospital"]), ["RCC-H1", "RCC-H2"], cohorts)
    assert [set(table["model"]) for table in found] == [{""}, {"RCC-H1"}, {"RCC-H2"}]
    assert all(set(table["hospital"]) == {"RCC-H1", "RCC-H2"} for table in found)


@pytest.mark.tcga
@pytest.mark.slow
def test_several_cancers_train_one_model_that_is_probed_on_another(
    tmp_path: Path, tcga_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "run_federation", federate_here)
    one = cell(kind="tcga", cohorts=["RCC", "BLCA"], modalities=["expression"], probe=["COADREAD"])
    folder = cell_folder(tmp_path, one)
    run_cell(one, folder, tcga_dir)
    assert {row["hospital"] for row in rows(folder)} >= {"all", "RCC", "BLCA", "RCC-H1", "BLCA-H1", "COADREAD"}
    for metric in ("auc", "auc_probe"):
        found = rows(folder, hospital="RCC", method="federated", metric=metric)
        assert all(row["value"] is not None for row in found)
        assert {row["task"] for row in found} == {"diagnosis", "stage"}
    (told,) = rows(folder, task="cancer", metric="balanced_accuracy_probe")
    assert told["hospital"] == "all"
    assert told["value"] > 0.5
    probed = rows(folder, hospital="COADREAD", metric="auc_probe", task="diagnosis")
    assert {row["method"] for row in probed} == {"federated", "untrained", "linear"}
    assert all(0 <= row["value"] <= 1 for row in probed)
