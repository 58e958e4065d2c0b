"""A simulation with --cross-site from end to end; the sites answer in this process instead of Flower's engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from server.cross_site import read_matrices
from simulation.experiment import Experiment
from simulation.outcomes import write_outcomes

pytestmark = pytest.mark.slow


def test_each_hospital_is_left_out_in_turn_and_the_run_folder_says_what_that_changed(
    two_hospitals: Callable[..., Experiment], tmp_path: Path
) -> None:
    made = two_hospitals(tmp_path, rounds=1)
    outcome = made.run(comparisons=(), cross_site=True)
    rows = write_outcomes(tmp_path, [outcome], outcome.summary)
    assert {row["method"] for row in rows} == {"federated", "without_H1", "without_H2"}
    (stage,) = [r for r in rows if r["method"] == "without_H1" and r["hospital"] == "all" and r["metric"] == "auc"
                and r["task"] == "stage"]  # fmt: skip
    assert stage["value"] is None, "only H1 labels the stage"
    assert stage["n"] > 0
    assert {(row["site"], row["hospital"]) for row in outcome.influence} == {
        (site, place) for site in made.sites for place in (*made.sites, "all")
    }
    assert [matrix.task for matrix in read_matrices(tmp_path)] == ["diagnosis", "stage", "survival"]
    assert (tmp_path / "variants" / f"{made.study.name}-without-H1" / "model" / "weights.safetensors").is_file()
