"""What hospitals with different tasks could do instead; the sites answer in this process instead of Flower's engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from modaltune.data.cohort import Cohort
from simulation.experiment import Experiment
from simulation.outcomes import write_outcomes
from tests.integration.helpers import read_rounds

pytestmark = pytest.mark.slow


def test_one_federation_a_task_at_the_cost_of_one_exchanges_no_more_models_than_that(
    two_hospitals: Callable[..., Experiment], cohorts: dict[str, Cohort], tmp_path: Path
) -> None:
    made = two_hospitals(tmp_path, rounds=4)
    outcome, study = made.run(comparisons=["per_task_same_cost"]), made.study
    rows = write_outcomes(tmp_path, [outcome], outcome.summary)
    assert {row["method"] for row in rows} == {"federated", "per_task_same_cost"}
    exchanges = 0
    for task in study.tasks:
        folder = tmp_path / "variants" / f"{study.name}-{task.name}-same-cost"
        roster = json.loads((folder / "study.json").read_text())["roster"]
        assert roster == [site for site in made.sites if task.name in cohorts[site].tasks]
        trained = [row["contributors"] for row in read_rounds(folder) if row["phase"] == "train"]
        assert trained == [roster] * len(trained)
        exchanges += sum(map(len, trained))
    assert 0 < exchanges <= 4 * len(made.sites)
