"""What hospitals with different tasks could do instead; the sites answer in this process instead of Flower's engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modaltune.data.cohort import Cohort
from simulation import experiment
from simulation.experiment import Experiment
from simulation.outcomes import write_outcomes
from tests.integration.grids import federate_here
from tests.integration.helpers import make_study, read_rounds

SITES = ("H1", "H2")
pytestmark = pytest.mark.slow


def test_one_federation_a_task_at_the_cost_of_one_exchanges_no_more_models_than_that(
    hospitals: dict[str, Path], cohorts: dict[str, Cohort], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "run_federation", federate_here)
    study = make_study({site: cohorts[site] for site in SITES}, hospitals["H1"].parent / "gene_sets.gmt")
    study = study.model_copy(update={"training": study.training.model_copy(update={"rounds": 4})})
    folders = {site: hospitals[site] for site in SITES}
    outcome = Experiment(study, folders, folders, tmp_path, lambda _: None).run(comparisons=["per_task_same_cost"])
    rows = write_outcomes(tmp_path, [outcome], outcome.summary)
    assert {row["method"] for row in rows} == {"federated", "per_task_same_cost"}
    exchanges = 0
    for task in study.tasks:
        folder = tmp_path / "variants" / f"{study.name}-{task.name}-same-cost"
        roster = json.loads((folder / "study.json").read_text())["roster"]
        assert roster == [site for site in SITES if task.name in cohorts[site].tasks]
        trained = [row["contributors"] for row in read_rounds(folder) if row["phase"] == "train"]
        assert trained == [roster] * len(trained)
        exchanges += sum(map(len, trained))
    assert 0 < exchanges <= 4 * len(SITES)
