"""A baseline in a real federation: the same messages, the same checks, and a hospital that it cannot use."""

from __future__ import annotations

from pathlib import Path

import pytest

from modaltune.federation.study import Study
from modaltune.models.baselines.registry import baseline_study
from modaltune.models.modaltune import trainable_state
from modaltune.storage import digest_state
from server.rounds import Federation
from simulation.compare import Hospitals, Scene, everybodys_test_cases, predict_site
from tests.integration.grids import LocalGrid, Passed, RecordingGrid
from tests.integration.helpers import Finished

pytestmark = pytest.mark.integration
WITHOUT_SLIDES = "H3"  # of the synthetic hospitals


@pytest.fixture(scope="module")
def abmil(study: Study) -> Study:
    return baseline_study(
        study.model_copy(update={"model": study.model.model_copy(update={"width_scale": 0.125})}), "abmil"
    )


@pytest.fixture(scope="module")
def finished(abmil: Study, hospitals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder, passed = tmp_path_factory.mktemp("abmil"), list[Passed]()
    result = Federation(RecordingGrid(LocalGrid(hospitals), passed), abmil, folder).run()
    return Finished(result=result, folder=folder, passed=passed)


def test_a_baseline_is_federated_like_the_studys_model(finished: Finished) -> None:
    assert finished.result.status == "OK"
    state = trainable_state(finished.result.learner)
    assert {name.split(".")[0] for name in state} == {"modaltune", "head"}
    assert finished.result.weights_hash == digest_state(state)
    assert {message.kind for message in finished.passed} == {
        "query.capability",
        "query.statistics",
        "train",
        "evaluate",
    }


def test_a_hospital_without_the_modality_counts_no_example_and_no_step(finished: Finished) -> None:
    rounds = [row for row in finished.rounds if row["phase"] == "train"]
    assert all(row["steps"][WITHOUT_SLIDES] == 0 for row in rounds)
    assert all(row["steps"]["H1"] > 0 for row in rounds)


def test_its_rows_count_the_cases_that_it_could_read_and_the_budget_is_its_own(
    finished: Finished, abmil: Study, hospitals: dict[str, Path]
) -> None:
    scene = Scene(
        sites=hospitals,
        truth=hospitals,
        study=abmil.to_json(),
        preprocessing=finished.result.preprocessing.to_json(),
    )
    data = Hospitals(scene)
    assert data.budget() == finished.result.steps
    table = everybodys_test_cases(data, lambda site: predict_site(data, finished.result.learner, site))
    assert WITHOUT_SLIDES not in set(table["hospital"])
    assert "H1" in set(table["hospital"])
