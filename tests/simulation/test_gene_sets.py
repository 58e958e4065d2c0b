"""Contributions of gene sets to the federated model, over test cases of all hospitals together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from modaltune.data.batch import CaseTensors
from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import Preprocessing
from modaltune.explain.cohort import cohort_table, over_cases
from modaltune.federation.study import Study
from modaltune.models.learner import Learner
from simulation import gene_sets
from simulation.gene_sets import gene_set_contributions


@pytest.fixture
def hospitals(
    tiny_study: Study, tiny_preprocessing: Preprocessing, tiny_cohort: Cohort, tiny_cases: list[CaseTensors]
) -> Any:
    """Two hospitals with the same thirty cases, all of them test cases."""
    cohort = SimpleNamespace(cases=tiny_cohort.cases.assign(split="test"))
    names = ("H1", "H2")
    return SimpleNamespace(
        study=tiny_study,
        preprocessing=tiny_preprocessing,
        truth=dict.fromkeys(names, cohort),
        truth_cases=dict.fromkeys(names, tiny_cases),
    )


def with_study(hospitals: Any, **changes: Any) -> Any:
    return SimpleNamespace(**vars(hospitals) | {"study": hospitals.study.model_copy(update=changes)})


def test_cases_of_all_hospitals_count_and_those_without_expression_do_not(
    hospitals: Any, tiny_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    table = gene_set_contributions(hospitals, tiny_learner)
    assert table is not None
    measured = [case for case in tiny_cases if case.has_expression]
    assert 0 < len(measured) < len(tiny_cases)
    assert set(table["of"]) == {2 * len(measured)}
    study, minimum = hospitals.study, hospitals.study.privacy.min_cell
    known = over_cases(tiny_learner, 2 * measured, study.tasks, hospitals.preprocessing, minimum, study.seed)
    expected = cohort_table(sorted(hospitals.preprocessing.gene_sets), known)
    pd.testing.assert_frame_equal(table.drop(columns=["of", "seed"]), expected)


def test_many_cases_are_sampled_the_same_way_each_time(
    hospitals: Any, tiny_learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gene_sets, "MOST_CASES", 8)
    first, second = (gene_set_contributions(hospitals, tiny_learner) for _ in range(2))
    assert first is not None
    assert second is not None
    everybody = first[first["group"] == "all"]
    assert set(everybody["cases"]) == {8}
    assert (everybody["of"] > 8).all()
    pd.testing.assert_frame_equal(first, second)


def test_no_table_for_a_baseline_without_gene_sets_or_for_few_patients(hospitals: Any, tiny_learner: Learner) -> None:
    study = hospitals.study
    baseline = with_study(hospitals, model=study.model.model_copy(update={"kind": "mlp"}))
    few = with_study(hospitals, privacy=study.privacy.model_copy(update={"min_cell": 1000}))
    without = SimpleNamespace(
        **vars(hospitals) | {"preprocessing": hospitals.preprocessing.model_copy(update={"gene_sets": {}})}
    )
    for data in (baseline, few, without):
        assert gene_set_contributions(data, tiny_learner) is None
