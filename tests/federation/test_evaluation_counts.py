"""Counts of test cases: honest ones pass, what tells of too few cases or is no count of cases does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from modaltune.data.preprocessing import Preprocessing
from modaltune.evaluation.federated import site_counts
from modaltune.federation.evaluation_counts import (
    counted_sites,
    counts_manifest,
    disclosed,
    labelled_cases,
    problem_with_counts,
    rounded,
)
from modaltune.federation.settings import EvaluationSpec
from modaltune.federation.study import Study
from tests.evaluation.invented import predictions

CASES, MINIMUM = 150, 5
Counts = dict[str, Any]


@pytest.fixture
def honest(tiny_study: Study, tiny_preprocessing: Preprocessing) -> Counts:
    table = predictions(tiny_study, tiny_preprocessing, CASES, 3)
    table["hospital"] = "H1"
    return rounded(site_counts(table, tiny_study, tiny_preprocessing, MINIMUM).arrays)


def problem(counts: Counts, study: Study, **labelled: float) -> str | None:
    return problem_with_counts(counts, study, MINIMUM, CASES, labelled)


def test_honest_counts_fit_and_pass(honest: Counts, tiny_study: Study, tiny_preprocessing: Preprocessing) -> None:
    counts_manifest(tiny_study, tiny_preprocessing).check("H1", honest)
    assert problem(honest, tiny_study, diagnosis=CASES, stage=CASES, survival=CASES) is None
    assert counted_sites({"H1": honest}, tiny_study) == {"diagnosis": ["H1"], "stage": ["H1"], "survival": ["H1"]}


@pytest.mark.parametrize("seed", range(8))
def test_honest_counts_of_small_hospitals_pass(tiny_study: Study, tiny_preprocessing: Preprocessing, seed: int) -> None:
    table = predictions(tiny_study, tiny_preprocessing, 40, seed)
    for _, part in table.groupby("hospital"):
        counts = rounded(site_counts(part, tiny_study, tiny_preprocessing, MINIMUM).arrays)
        labelled = {str(task): float(n) for task, n in part["task"].value_counts().items()}
        assert problem_with_counts(counts, tiny_study, MINIMUM, len(part), labelled) is None


def put(name: str, place: Any, value: float) -> Any:
    def change(counts: Counts) -> None:
        counts[name] = counts[name].copy()
        counts[name][place] = value

    return change


def lone_case(counts: Counts) -> None:
    """A class of one case, consistent everywhere."""
    for name in ("confusion", "brier", "calibration", "scores"):
        counts[f"diagnosis.{name}"] = np.zeros_like(counts[f"diagnosis.{name}"])
    counts["diagnosis.confusion"][0, 0] = 1
    counts["diagnosis.scores"][0, 1, 3] = counts["diagnosis.scores"][1:, 0, 3] = 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lone_case, "a class with fewer than 5 cases"),
        (put("diagnosis.confusion", (0, 0), 0.25), "no whole number of cases"),
        (put("diagnosis.confusion", (0, 0), 1000.0), "different numbers of cases"),
        (put("diagnosis.scores", (0, 0, 0), 77.0), "different numbers of cases"),
        (put("stage.scores", (0, 0, 0), -1.0), "no whole number of cases"),
        (put("stage.calibration", 9, 1e5), "confidence beyond"),
        (put("stage.brier", 0, 1e5), "Brier scores that no cases have"),
        (put("stage.brier", 1, 0.0), "Brier scores that no cases have"),
        (put("survival.pairs", slice(4, 7), 0.0), "pairs that no cases have"),
        (put("survival.pairs", 0, 3.0), "fewer than 5 cases, deaths or others"),
        (put("survival.pairs", 1, 149.0), "fewer than 5 cases, deaths or others"),
        (put("survival.pairs", 1, 2.0), "fewer than 5 cases, deaths or others"),
        (put("survival.pairs", 2, 1e9), "pairs that no cases have"),
        (put("survival.pairs", 4, 0.123), "no whole number of pairs"),
        (put("survival.pairs", 6, 1e12), "pairs that no cases have"),
    ],
)
def test_what_is_no_count_of_enough_cases_is_named(honest: Counts, tiny_study: Study, change: Any, reason: str) -> None:
    change(honest)
    found = problem(honest, tiny_study)
    assert found is not None
    assert reason in found


def test_more_cases_than_there_are_and_others_than_were_scored(honest: Counts, tiny_study: Study) -> None:
    assert "more cases than there are" in str(problem_with_counts(honest, tiny_study, MINIMUM, CASES - 1, {}))
    assert "other cases than its scores" in str(problem(honest, tiny_study, diagnosis=CASES + 5))
    assert problem(honest, tiny_study, diagnosis=CASES) is None


def test_labelled_cases_are_those_of_all_metrics() -> None:
    metrics = {"diagnosis.brier.n": 30.0, "diagnosis.auc.n": 30.0, "survival.c_index.n": 20.0, "stage.auc.value": 0.5}
    assert labelled_cases(metrics) == {"diagnosis": 30.0, "survival": 20.0}
    assert labelled_cases({**metrics, "diagnosis.macro_f1.n": 32.0})["diagnosis"] == np.inf


def test_who_approves_reads_what_the_counts_tell(tiny_study: Study) -> None:
    assert disclosed(tiny_study) == "none"
    study = tiny_study.model_copy(update={"evaluation": EvaluationSpec(counts=True, bins=32)})
    assert "probability in 32 steps" in disclosed(study)


def test_counts_of_very_many_cases_are_not_rounded(honest: Counts) -> None:
    honest["survival.pairs"] = np.array([15_000.0, 7_500.0, 56_246_250.0, 28_123_125.0, 0.0, 0.0, 0.0])
    honest["survival.pairs"][4:] = (2.109375e11 + 0.25, 4.21875e11 + 0.25, 8.4375e11 + 0.25)
    np.testing.assert_array_equal(rounded(honest)["survival.pairs"], honest["survival.pairs"])


def test_sums_over_scores_leave_with_two_decimals(honest: Counts) -> None:
    """A lone case in a step of confidence would show its probability, which those who know its inputs know."""
    for name in ("diagnosis.brier", "diagnosis.calibration"):
        told = rounded({name: np.full(3, 0.426790123)})[name]
        np.testing.assert_array_equal(told, [0.43] * 3)
