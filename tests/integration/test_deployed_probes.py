"""Probes of a deployed federation: fitted over the real client app, equal to those that a simulation fits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modaltune.evaluation.probes.embeddings import as_probe_row
from modaltune.evaluation.probes.fit import ProbeQuestion
from modaltune.federation.study import HEADLINES, ProbesSpec, Study
from server.finish import metric_rows
from server.rounds import Federation, Result
from simulation.compare import Hospitals, Scene
from simulation.outcomes import Outcome, Scorer
from simulation.probes import embeddings_of, fit_probes, probe_tables
from tests.integration.grids import LocalGrid, Passed, RecordingGrid, Tamper, honest
from tests.integration.helpers import read_rounds

SITES = ("H1", "H2", "H5")
SAME = 1e-9


class Probed(Federation):
    """Keeps the probes that it fitted."""

    found: dict[str, ProbeQuestion]

    def _evaluate(self, weights: Any, probes: Any = None) -> Any:
        self.found = probes
        return super()._evaluate(weights, probes)


@dataclass(frozen=True, kw_only=True)
class Run:
    result: Result
    probes: dict[str, ProbeQuestion]
    rows: list[dict[str, Any]]
    passed: list[Passed]

    def of(self, phase: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["phase"] == phase]


@pytest.fixture(scope="module")
def folders(hospitals: dict[str, Path]) -> dict[str, Path]:
    return {site: hospitals[site] for site in SITES}


@pytest.fixture(scope="module")
def short(study: Study) -> Study:
    training = study.training.model_copy(update={"rounds": 1})
    changes = {"roster": SITES, "training": training, "deadline_seconds": 20.0, "probes": ProbesSpec(questions=40)}
    return study.model_copy(update=changes)


def federate(study: Study, folders: dict[str, Path], out: Path, tamper: Tamper = honest) -> Run:
    passed = list[Passed]()
    federation = Probed(RecordingGrid(LocalGrid(folders, tamper), passed), study, out)
    result = federation.run()
    return Run(result=result, probes=federation.found, rows=read_rounds(out), passed=passed)


@pytest.fixture(scope="module")
def run(short: Study, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return federate(short, folders, tmp_path_factory.mktemp("probed"))


@pytest.fixture(scope="module")
def simulated(run: Run, short: Study, folders: dict[str, Path]) -> Hospitals:
    """The same hospitals as a simulation sees them, with the preprocessing of the run."""
    preprocessing = run.result.preprocessing.to_json()
    return Hospitals(Scene(sites=folders, truth=folders, study=short.to_json(), preprocessing=preprocessing))


def test_deployed_probes_have_the_coefficients_that_a_simulation_fits(run: Run, simulated: Hospitals) -> None:
    expected = fit_probes(simulated, embeddings_of(run.result.learner), SITES, together=False)
    assert run.result.status == "OK"
    assert set(run.probes) == set(expected) == {task.name for task in simulated.study.tasks}
    for task, probe in expected.items():
        np.testing.assert_allclose(run.probes[task].coefficients, probe.optimum.coefficients, rtol=0, atol=SAME)
        np.testing.assert_allclose(run.probes[task].mean, probe.optimum.mean, rtol=0, atol=SAME)
        (row,) = [row for row in run.of("probe") if row["task"] == task]
        assert (row["questions"], tuple(row["left_out"])) == (probe.questions, probe.left_out)
        assert sorted([*row["contributors"], *row["left_out"]]) == list(SITES)


def test_the_scores_of_each_hospital_are_those_that_a_simulation_computes(run: Run, simulated: Hospitals) -> None:
    tables = probe_tables(simulated, embeddings_of(run.result.learner), SITES, together=False)
    outcome = Outcome()
    Scorer(simulated, outcome).record_probes("federated", {"": tables})
    expected = {
        (row["hospital"], row["task"], row["metric"]): row
        for row in outcome.rows
        if row["hospital"] != "all" and row["value"] is not None
    }
    rows = [row for row in metric_rows(run.result.evaluation, simulated.study) if row["metric"].endswith("_probe")]
    assert {(row["hospital"], row["task"], row["metric"]) for row in rows} == set(expected)
    assert {row["metric"] for row in rows} == {
        as_probe_row({"metric": name})["metric"] for names in HEADLINES.values() for name in names
    }
    for row in rows:
        other = expected[row["hospital"], row["task"], row["metric"]]
        assert [row[part] for part in ("value", "low", "high")] == pytest.approx(
            [other[part] for part in ("value", "low", "high")], abs=SAME
        )
        assert row["n"] == other["n"]


def test_what_is_asked_about_probes_has_no_weights_and_no_text_but_the_study(run: Run) -> None:
    asked = [message for message in run.passed if message.down and message.kind == "query.probe"]
    assert asked
    for message in asked:
        assert set(message.content) == {"study", "question"}
        assert set(message.content.config_records["study"]) == {"study", "task", "model", "derivatives"}


def digits(folder: Path) -> str:
    return json.dumps([row for row in read_rounds(folder) if row["phase"] in ("tally", "probe")])
