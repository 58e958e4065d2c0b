"""Occlusion: what a contribution is, and what contributes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from modaltune.data.batch import CaseTensors, without_modality
from modaltune.data.preprocessing import Preprocessing, TaskSpace
from modaltune.evaluation.predictions import embed_cases, expected_risk, probabilities_of
from modaltune.explain import occlusion
from modaltune.explain.occlusion import (
    Target,
    contributions,
    modality_contributions,
    occlude,
    target_of_case,
    targets_of_cohort,
)
from modaltune.federation.study import Study
from modaltune.models.learner import Learner

TASKS = ("diagnosis", "stage", "survival")


def said(learner: Learner, case: CaseTensors, task: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return probabilities_of(learner, embed_cases(learner, [case]), task)[0]


def test_a_gene_set_is_occluded_by_the_pooled_mean_of_its_genes(
    tiny_learner: Learner, tiny_cases: list[CaseTensors], tiny_preprocessing: Preprocessing
) -> None:
    case = tiny_cases[0].loaded()
    found = occlude(tiny_learner, case, tiny_preprocessing)
    assert found.names == ("FIRST", "SECOND", "THIRD")
    genes = list(tiny_preprocessing.genes)
    for place, name in enumerate(found.names):
        hidden = case.expression.clone()
        hidden[[genes.index(gene) for gene in tiny_preprocessing.gene_sets[name]]] = 0
        for task in TASKS:
            alone = said(tiny_learner, replace(case, expression=hidden), task)
            np.testing.assert_allclose(found.gene_sets[task][place], alone, atol=1e-6)
            assert not np.allclose(alone, found.whole[task], atol=1e-6), "the test needs a set that matters"


def test_a_modality_is_occluded_by_taking_it_away(
    tiny_learner: Learner, tiny_cases: list[CaseTensors], tiny_preprocessing: Preprocessing
) -> None:
    case = tiny_cases[0].loaded()
    found = occlude(tiny_learner, case, tiny_preprocessing)
    assert set(found.modalities) == {"slides", "expression"}
    for name in found.modalities:
        expected = said(tiny_learner, without_modality(case, name), "stage")
        np.testing.assert_allclose(found.modalities[name]["stage"], expected, atol=1e-6)


def test_what_a_case_does_not_have_contributes_nothing(
    tiny_learner: Learner, tiny_cases: list[CaseTensors], tiny_preprocessing: Preprocessing
) -> None:
    for case in tiny_cases:
        found = occlude(tiny_learner, case.loaded(), tiny_preprocessing)
        assert ("slides" in found.modalities) == bool(case.patch_count)
        assert ("expression" in found.modalities) == case.has_expression
        assert bool(found.names) == case.has_expression
        for modality in ("slides", "expression"):
            if modality not in found.modalities:
                for task in TASKS:
                    unchanged = said(tiny_learner, without_modality(case.loaded(), modality), task)
                    np.testing.assert_array_equal(unchanged, found.whole[task])


def test_a_set_at_the_average_contributes_exactly_nothing(
    tiny_learner: Learner, tiny_cases: list[CaseTensors], tiny_preprocessing: Preprocessing
) -> None:
    case = tiny_cases[0].loaded()
    genes = list(tiny_preprocessing.genes)
    flat = case.expression.clone()
    flat[[genes.index(gene) for gene in tiny_preprocessing.gene_sets["FIRST"]]] = 0
    found = occlude(tiny_learner, replace(case, expression=flat), tiny_preprocessing)
    for task in TASKS:
        np.testing.assert_array_equal(found.gene_sets[task][0], found.whole[task])
        assert (found.gene_sets[task][1] != found.whole[task]).any()


def test_contributions_do_not_depend_on_how_many_sets_are_run_at_once(
    tiny_learner: Learner,
    tiny_cases: list[CaseTensors],
    tiny_preprocessing: Preprocessing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, told = tiny_cases[0].loaded(), list[int]()
    together = occlude(tiny_learner, case, tiny_preprocessing)
    monkeypatch.setattr(occlusion, "GRAPH_LIMIT", 1)
    alone = occlude(tiny_learner, case, tiny_preprocessing, told.append)
    assert told == [1, 2, 3]
    for task in TASKS:
        np.testing.assert_allclose(alone.gene_sets[task], together.gene_sets[task], atol=1e-6)


def test_the_same_case_gets_the_same_contributions(
    tiny_learner: Learner, tiny_cases: list[CaseTensors], tiny_preprocessing: Preprocessing
) -> None:
    first, second = (occlude(tiny_learner, tiny_cases[0].loaded(), tiny_preprocessing) for _ in range(2))
    for task in TASKS:
        np.testing.assert_array_equal(first.gene_sets[task], second.gene_sets[task])


def test_explaining_leaves_the_model_as_it_was(
    tiny_learner: Learner, tiny_cases: list[CaseTensors], tiny_preprocessing: Preprocessing
) -> None:
    before = {name: value.clone() for name, value in tiny_learner.state_dict().items()}
    occlude(tiny_learner, tiny_cases[0].loaded(), tiny_preprocessing)
    assert all(torch.equal(value, before[name]) for name, value in tiny_learner.state_dict().items())


def test_scores_have_the_direction_of_their_task(tiny_study: Study) -> None:
    nominal = TaskSpace(candidates=("alpha", "beta", "gamma"), texts=("",) * 3)
    said_alpha = np.array([0.7, 0.2, 0.1])
    target = target_of_case(tiny_study.task("diagnosis"), nominal, said_alpha)
    assert (target.direction, target.score(said_alpha)) == ("alpha", pytest.approx(0.7))
    stages = TaskSpace(candidates=("I", "III", "IV"), texts=("",) * 3)
    stage = target_of_case(tiny_study.task("stage"), stages, said_alpha)
    assert (stage.direction, stage.score(said_alpha)) == ("III or IV", pytest.approx(0.3))
    bins = TaskSpace(candidates=("early", "late"), texts=("", ""), bin_edges=(9.0,), bin_times=(4.0, 40.0))
    survival = Target(task=tiny_study.task("survival"), space=bins)
    early, late = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert survival.score(early) > survival.score(late)
    assert (survival.direction, survival.unit) == ("shorter survival", "months")
    np.testing.assert_array_equal(survival.score(np.stack([early, late])), expected_risk(np.eye(2), bins))


def test_of_two_labels_one_target_says_all(tiny_study: Study) -> None:
    spec = tiny_study.task("diagnosis")
    two = targets_of_cohort(spec, TaskSpace(candidates=("alpha", "beta"), texts=("", "")))
    three = targets_of_cohort(spec, TaskSpace(candidates=("alpha", "beta", "gamma"), texts=("",) * 3))
    assert [target.label for target in two] == ["beta"]
    assert [target.label for target in three] == ["alpha", "beta", "gamma"]


def test_contributions_are_in_the_unit_of_the_page(
    tiny_learner: Learner, tiny_cases: list[CaseTensors], tiny_preprocessing: Preprocessing, tiny_study: Study
) -> None:
    found = occlude(tiny_learner, tiny_cases[0].loaded(), tiny_preprocessing)
    target = target_of_case(tiny_study.task("stage"), tiny_preprocessing.tasks["stage"], found.whole["stage"])
    change = target.score(found.whole["stage"]) - target.score(found.gene_sets["stage"][1])
    assert contributions(target, found)["SECOND"] == pytest.approx(100 * change)
    gone = target.score(found.whole["stage"]) - target.score(found.modalities["slides"]["stage"])
    assert modality_contributions(target, found)["slides"] == pytest.approx(100 * gone)
