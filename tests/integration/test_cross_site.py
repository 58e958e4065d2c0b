"""A simulation with --cross-site from end to end; the sites answer in this process instead of Flower's engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from modaltune.data.cohort import Cohort
from server.cross_site import read_matrices
from simulation import experiment
from simulation.experiment import Experiment
from simulation.outcomes import write_outcomes
from tests.integration.grids import federate_here
from tests.integration.helpers import make_study

SITES = ("H1", "H2")
pytestmark = pytest.mark.slow


def test_each_hospital_is_left_out_in_turn_and_the_run_folder_says_what_that_changed(
    hospitals: dict[str, Path], cohorts: dict[str, Cohort], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "run_federation", federate_here)
    study = make_study({site: cohorts[site] for site in SITES}, hospitals["H1"].parent / "gene_sets.gmt")
    study = study.model_copy(update={"training": study.training.model_copy(update={"rounds": 1})})
    folders, said = {site: hospitals[site] for site in SITES}, list[str]()
    outcome = Experiment(study, folders, folders, tmp_path, said.append).run(comparisons=(), cross_site=True)
    rows = write_outcomes(tmp_path, [outcome], outcome.summary)
    assert {row["method"] for row in rows} == {"federated", "without_H1", "without_H2"}
    (stage,) = [r for r in rows if r["method"] == "without_H1" and r["hospital"] == "all" and r["metric"] == "auc"
                and r["task"] == "stage"]  # fmt: skip
    assert stage["value"] is None, "only H1 labels the stage"
    assert stage["n"] > 0
    assert {(row["site"], row["hospital"]) for row in outcome.influence} == {
        (site, place) for site in SITES for place in (*SITES, "all")
    }
    assert [matrix.task for matrix in read_matrices(tmp_path)] == ["diagnosis", "stage", "survival"]
    assert (tmp_path / "variants" / f"{study.name}-without-H1" / "model" / "weights.safetensors").is_file()
