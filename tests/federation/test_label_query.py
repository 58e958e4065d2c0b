from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from modaltune.data.batch import CaseTensors
from modaltune.data.cohort import Cohort
from modaltune.errors import ConfigError
from modaltune.federation.label_query import (
    HELD_BACK,
    LabelQuery,
    answer_manifest,
    held_back,
    problem_with,
    site_answer,
)
from modaltune.federation.settings import LabelQuerySpec
from modaltune.federation.study import Study
from modaltune.models.learner import Learner

MINIMUM = 3


def assert_small_cells_stay_unknown(tables: list[Any]) -> None:
    """Whoever knows the rule, what is told and all sums finds more than one value for each small cell."""
    same: dict[bytes, list[Any]] = {}
    for table in tables:
        told = held_back(table, MINIMUM).tobytes() + np.asarray(table.sum(axis=0)).tobytes()
        same.setdefault(told, []).append(table)
    for group in same.values():
        stacked = np.stack(group)
        small = ((stacked > 0) & (stacked < MINIMUM)).any(axis=0)
        assert (stacked.min(axis=0) < stacked.max(axis=0))[small].all(), group[0]


@pytest.mark.parametrize(("cells", "most"), [(2, 12), (3, 9), (4, 6)])
def test_no_small_count_can_be_worked_out_from_the_total_and_the_rule(cells: int, most: int) -> None:
    tables = [np.array(table) for table in product(range(most), repeat=cells) if sum(table) >= MINIMUM]
    assert_small_cells_stay_unknown(tables)


@pytest.mark.parametrize(("shape", "most"), [((2, 2), 7), ((3, 2), 5)])
def test_no_small_cell_of_a_cross_table_can_be_worked_out_from_the_columns(shape: tuple[int, int], most: int) -> None:
    every = product(range(most), repeat=shape[0] * shape[1])
    tables = [np.array(table).reshape(shape) for table in every if sum(table) >= MINIMUM]
    assert_small_cells_stay_unknown([table for table in tables if all_told(table.sum(axis=0))])


def all_told(counts: Any) -> bool:
    return bool((held_back(counts, MINIMUM) == counts).all())


def test_a_table_is_told_as_it_is_or_not_at_all() -> None:
    assert held_back(np.array([20, 5, 0]), 5).tolist() == [20, 5, 0]
    assert held_back(np.array([20, 4, 9]), 5).tolist() == [HELD_BACK] * 3
    assert held_back(np.array([[20, 6], [5, 1]]), 5).tolist() == [[HELD_BACK] * 2] * 2


@pytest.fixture
def study(tiny_study: Study) -> Study:
    return tiny_study.model_copy(update={"label_queries": LabelQuerySpec(budget=2, max_candidates=3, by_label=True)})


def query(candidates: int = 2, **changes: Any) -> LabelQuery:
    vectors = np.random.default_rng(0).normal(size=(candidates, 12)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = tuple(f"text {number}" for number in range(candidates))
    return LabelQuery(**({"name": "necrosis", "texts": texts, "vectors": vectors} | changes))


def test_a_site_counts_every_test_case_once(
    study: Study, tiny_learner: Learner, tiny_cases: list[CaseTensors], tiny_cohort: Cohort
) -> None:
    answer = site_answer(tiny_learner, study, tiny_cases, tiny_cohort, query(), 1)
    assert {name: value.shape for name, value in answer.items()} == answer_manifest(study, query()).shapes
    assert answer["cases"][0] == answer["counts"].sum() == (tiny_cohort.cases["split"] == "test").sum()
    assert (answer["by.diagnosis"].sum(axis=0) == answer["counts"]).all()
    assert answer["by.diagnosis"][-1].sum() == tiny_cohort.cases.query("split == 'test'")["diagnosis"].isna().sum()
    assert problem_with(answer, 1, len(tiny_cases)) == ""


@pytest.mark.parametrize("minimum", [2, 5, 8, 31])
def test_an_honest_answer_is_accepted_at_any_minimum(
    study: Study, tiny_learner: Learner, tiny_cases: list[CaseTensors], tiny_cohort: Cohort, minimum: int
) -> None:
    answer = site_answer(tiny_learner, study, tiny_cases, tiny_cohort, query(3), minimum)
    assert problem_with(answer, minimum, len(tiny_cases)) == ""
    if minimum > len(tiny_cases):
        assert answer["cases"][0] == 0
        assert (answer["probability"] == HELD_BACK).all()


def test_the_text_of_a_known_label_is_nearest_to_where_it_points(
    study: Study, tiny_learner: Learner, tiny_cases: list[CaseTensors], tiny_cohort: Cohort
) -> None:
    """The same vectors in another order give the same counts in that order."""
    asked = query(3)
    turned = query(3, vectors=asked.vectors[::-1].copy())
    first = site_answer(tiny_learner, study, tiny_cases, tiny_cohort, asked, 1)
    second = site_answer(tiny_learner, study, tiny_cases, tiny_cohort, turned, 1)
    assert first["counts"].tolist() == second["counts"][::-1].tolist()
    assert torch.allclose(torch.from_numpy(first["probability"]), torch.from_numpy(second["probability"][::-1].copy()))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"counts": [28.0, 2.0]}, "fewer than 5"),
        ({"counts": [20.0, 11.0]}, "do not add up"),
        ({"counts": [20.0, -1.0]}, "fewer than 5"),
        ({"counts": [20.5, 9.5]}, "fewer than 5"),
        ({"counts": [-1.0, -1.0]}, "where counts are held back"),
        ({"cases": [3.0]}, "too small"),
        ({"cases": [300.0]}, "above the approved"),
        ({"probability": [0.9, 0.9]}, "do not add up to 1"),
        ({"cases": [0.0]}, "where there are none"),
        ({"by.diagnosis": [[1.0, 9.0], [10.0, 10.0]]}, "fewer than 5"),
    ],
)
def test_an_answer_that_tells_too_much_is_found(changes: dict[str, Any], problem: str) -> None:
    honest = {"cases": [30.0], "counts": [20.0, 10.0], "probability": [0.6, 0.4], "by.diagnosis": [[-1.0] * 2] * 2}
    answer = {name: np.array(value) for name, value in honest.items()}
    assert problem_with(answer, 5, 40) == ""
    assert problem in problem_with(answer | {name: np.array(value) for name, value in changes.items()}, 5, 40)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"texts": ("one",)}, "2 to 3 different candidates"),
        ({"texts": ("one", "one")}, "2 to 3 different candidates"),
        ({"texts": ("one", "two" * 300)}, "at most 500"),
        ({"texts": ("one", "two\n")}, "printable"),
        ({"vectors": np.ones((2, 12), np.float32)}, "unit length"),
        ({"vectors": np.full((2, 12), np.nan, np.float32)}, "unit length"),
        ({"vectors": np.eye(3, dtype=np.float32)}, "unit length"),
    ],
)
def test_a_query_that_the_study_does_not_allow_is_refused(study: Study, changes: dict[str, Any], problem: str) -> None:
    query().check(study)
    with pytest.raises(ConfigError, match=problem):
        query(**changes).check(study)


def test_without_a_budget_or_a_text_space_nothing_is_answered(study: Study, tiny_study: Study) -> None:
    with pytest.raises(ConfigError, match="allows no label queries"):
        query().check(tiny_study)
    separate = study.model_copy(update={"model": study.model.model_copy(update={"head": "separate"})})
    with pytest.raises(ConfigError, match="separate heads know no text"):
        query().check(separate)
