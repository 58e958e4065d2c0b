"""One cell from settings to run folder; the hospitals answer in this process, through the real handlers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from modaltune.federation.study import Study
from server.rounds import Federation, Result
from simulation import experiment
from simulation.studies.cell import run_cell
from simulation.studies.cells import Cell, expand
from simulation.studies.runner import cell_folder, state_of
from simulation.studies.spec import StudyFile
from tests.integration.grids import LocalGrid

pytestmark = pytest.mark.integration


def federate_here(study: Study, folders: Mapping[str, Path], out: Path, progress: Any = None) -> Result:
    return Federation(LocalGrid({site: folders[site] for site in study.roster}), study, out, progress).run()


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
    run_cell(one, folder, None)
    assert state_of(tmp_path, one) == "done"
    assert {row["method"] for row in rows(folder)} == {"federated", "linear"}
    assert all(row["n"] for row in rows(folder, hospital="H5", method="federated"))
    assert json.loads((folder / "study.json").read_text())["roster"] == ["H1", "H2", "H3", "H4"]
    assert (folder / "report.html").is_file()
    assert not list(folder.glob("sites")) + list(folder.glob("truth"))


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
    assert all(row["value"] is not None for row in rows(folder, hospital="RCC", method="federated", metric="auc"))
    probed = rows(folder, hospital="COADREAD", metric="auc_probe", task="diagnosis")
    assert {row["method"] for row in probed} == {"federated", "untrained", "linear"}
    assert all(0 <= row["value"] <= 1 for row in probed)
