from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import FederationError
from modaltune.federation.study import Study
from simulation.cross_site import Trained, influence_rows, matrix_rows, study_without


def cohorts(**tasks: tuple[str, ...]) -> dict[str, Cohort]:
    nobody = pd.DataFrame(index=pd.Index([], name="case_id"))
    return {site: Cohort(site=site, tasks=held, cases=nobody, expression=None, bags={}) for site, held in tasks.items()}


def test_a_hospital_is_left_out_with_the_tasks_that_only_it_labels(tiny_study: Study) -> None:
    held = cohorts(H1=("diagnosis", "stage"), H2=("diagnosis",), H3=("diagnosis", "survival"))
    study = tiny_study.model_copy(update={"quorum": 3, "site_cases": {"H1": 5, "H2": 6}})
    without = study_without(study, "H1", held)
    assert without.roster == ("H2", "H3")
    assert [task.name for task in without.tasks] == ["diagnosis", "survival"]
    assert (without.quorum, without.site_cases) == (2, {"H2": 6})
    assert Study.from_json(without.to_json()) == without, "it is a study that a coordinator could send"
    with pytest.raises(FederationError, match="no other hospital labels any task"):
        study_without(tiny_study, "H1", cohorts(H1=("diagnosis",), H2=(), H3=()))


def predictions(skill: float) -> pd.DataFrame:
    """Survival of 60 cases at each of two hospitals."""
    parts = []
    for number, site in enumerate(("H1", "H2")):
        draw = np.random.default_rng(number)
        months, noise = draw.exponential(20, 60), draw.normal(size=60)
        columns = {"time_months": months, "event": 1.0, "risk": noise - skill * np.log(months), "row": range(60)}
        parts.append(
            pd.DataFrame({"hospital": site, "task": "survival", "label": None, "probabilities": None} | columns)
        )
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def trained(tiny_study: Study, tiny_preprocessing: Preprocessing) -> tuple[Trained, dict[str, Trained]]:
    """All hospitals; without H1 it is worse; without H2 it is the same and nobody labels diagnosis and stage."""
    survival = tuple(task for task in tiny_study.tasks if task.kind == "survival")
    study = tiny_study.model_copy(update={"roster": ("H1", "H2"), "tasks": (tiny_study.tasks[0], *survival)})
    alone = study.model_copy(update={"tasks": survival})
    everybody = Trained(study=study, preprocessing=tiny_preprocessing, table=predictions(1.0))
    without = {
        "H1": Trained(study=alone, preprocessing=tiny_preprocessing, table=predictions(0.2)),
        "H2": Trained(study=alone, preprocessing=tiny_preprocessing, table=predictions(1.0)),
    }
    return everybody, without


def test_the_matrix_has_each_model_at_each_hospital_and_names_what_it_cannot_do(
    trained: tuple[Trained, dict[str, Trained]],
) -> None:
    rows = matrix_rows(*trained)
    assert {row["method"] for row in rows} == {"without_H1", "without_H2"}
    known = [row for row in rows if row["task"] == "survival"]
    assert len(known) == 2 * 3
    assert all(row["low"] < row["value"] < row["high"] for row in known)
    assert {row["hospital"]: row["n"] for row in known} == {"H1": 60, "H2": 60, "all": 120}
    untrained = [row for row in rows if row["task"] == "diagnosis"]
    assert {row["metric"] for row in untrained} == {"auc", "balanced_accuracy"}
    assert all(row["value"] is None for row in untrained)


def test_influence_is_what_is_lost_without_a_hospital_and_nothing_where_models_are_equal(
    trained: tuple[Trained, dict[str, Trained]],
) -> None:
    rows = {(row["site"], row["hospital"]): row for row in influence_rows(*trained)}
    assert set(rows) == {(site, place) for site in ("H1", "H2") for place in ("H1", "H2", "all")}
    assert rows["H1", "H2"]["low"] > 0, "H2 loses when H1 leaves"
    assert (rows["H2", "H1"]["value"], rows["H2", "H1"]["low"], rows["H2", "H1"]["high"]) == (0, 0, 0)
    matrix = {(row["method"], row["hospital"]): row for row in matrix_rows(*trained) if row["task"] == "survival"}
    lost = matrix["without_H2", "H1"]["value"] - matrix["without_H1", "H1"]["value"]
    assert rows["H1", "H1"]["value"] == pytest.approx(lost)
