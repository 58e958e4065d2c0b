"""The release gate on metric rows and predictions that were made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from modaltune.data.preprocessing import Preprocessing, TaskSpace
from modaltune.evaluation.predictions import metric_rows
from modaltune.federation.study import Study
from server.release_gate import judge
from tests.server.predictions import CASES, rows_of, two_sites


def test_a_good_model_passes(gate_study: Study, gate_preprocessing: Preprocessing) -> None:
    predictions = two_sites(federated=0.6, local=0.3)
    verdict = judge(gate_study, rows_of(gate_study, gate_preprocessing, predictions), gate_preprocessing, predictions)
    assert verdict.problems == ()
    assert {(found.hospital, found.task) for found in verdict.comparisons} == {("H1", "survival"), ("H2", "survival")}
    assert (
        verdict.events[("all", "survival")] == verdict.events[("H1", "survival")] + verdict.events[("H2", "survival")]
    )


def test_a_site_that_its_own_model_serves_better_stops_the_release(
    gate_study: Study, gate_preprocessing: Preprocessing
) -> None:
    predictions = pd.concat([two_sites(federated=0.9, local=0.3, sites=("H1",)), two_sites(0.0, 0.9, sites=("H2",))])
    verdict = judge(gate_study, rows_of(gate_study, gate_preprocessing, predictions), gate_preprocessing, predictions)
    assert len(verdict.problems) == 1
    assert verdict.problems[0].startswith("H2 is served worse than by its own model: survival c_index -0.")
    worse = next(found for found in verdict.comparisons if found.hospital == "H2")
    assert worse.difference.high is not None
    assert worse.difference.high < 0


def test_a_difference_that_chance_explains_does_not_stop_it(
    gate_study: Study, gate_preprocessing: Preprocessing
) -> None:
    predictions = two_sites(federated=0.5, local=0.52)
    verdict = judge(gate_study, rows_of(gate_study, gate_preprocessing, predictions), gate_preprocessing, predictions)
    assert verdict.problems == ()


def test_only_the_seed_of_the_released_model_is_judged(gate_study: Study, gate_preprocessing: Preprocessing) -> None:
    good, bad = two_sites(0.9, 0.3), two_sites(0.0, 0.9).assign(seed=1)
    rows = rows_of(gate_study, gate_preprocessing, good) + [
        row | {"seed": 1, "n": 1} for row in rows_of(gate_study, gate_preprocessing, good)
    ]
    assert judge(gate_study, rows, gate_preprocessing, pd.concat([good, bad])).problems == ()


def row(**changes: Any) -> dict[str, Any]:
    made = {"method": "federated", "task": "survival", "metric": "c_index", "hospital": "H1", "value": 0.7, "low": 0.6}
    return made | {"high": 0.8, "n": 50, "seed": 0, "events": 20} | changes


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n": 19}, "survival at H1 rests on 19 test cases, release.min_cases = 20"),
        ({"events": 9}, "survival at H1 rests on 9 deaths, release.min_events = 10"),
        ({"events": None}, "survival at H1 rests on fewer deaths than the hospital tells"),
        ({"hospital": "all", "n": 3}, "survival at all hospitals rests on 3 test cases, release.min_cases = 20"),
        ({"value": None}, "survival has no test score at any hospital"),
        ({"method": "pooled"}, "survival has no test score at any hospital"),
    ],
)
def test_a_metric_on_too_few_patients_stops_the_release(gate_study: Study, change: dict[str, Any], reason: str) -> None:
    assert judge(gate_study, [row()], None, None).problems == ()
    assert judge(gate_study, [row(**change)], None, None).problems == (reason,)


def test_a_score_at_a_time_with_few_deaths_or_survivors_is_not_released(
    gate_study: Study, gate_preprocessing: Preprocessing
) -> None:
    predictions = two_sites(federated=0.6, local=0.3)
    rows = rows_of(gate_study, gate_preprocessing, predictions)
    mine = predictions[(predictions["method"] == "federated") & (predictions["hospital"] == "H1")]
    died, alive = ((mine["time_months"] <= 60) & (mine["event"] == 1)).sum(), (mine["time_months"] > 60).sum()
    least = gate_study.release.model_copy(update={"min_events": int(min(died, alive)) + 1, "min_cases": 1})
    verdict = judge(gate_study.model_copy(update={"release": least}), rows, gate_preprocessing, predictions)
    assert verdict.at_horizon["H1", "survival", "auc_60m"] == min(died, alive)
    assert ("H1", "survival", "auc_60m") in verdict.thin
    assert any(line.startswith("auc_60m rests on fewer than") and "H1" in line for line in verdict.not_assessed)


def test_a_task_that_is_only_probed_is_not_judged(gate_study: Study) -> None:
    probed = row(task="cancer", metric="auc_probe", hospital="all")
    assert judge(gate_study, [row(), probed], None, None).problems == ()


def test_the_study_sets_the_thresholds(gate_study: Study) -> None:
    release = gate_study.release.model_copy(update={"min_cases": 51})
    verdict = judge(gate_study.model_copy(update={"release": release}), [row()], None, None)
    assert verdict.problems == ("survival at H1 rests on 50 test cases, release.min_cases = 51",)


def test_what_nobody_could_assess_is_said_and_stops_nothing(gate_study: Study) -> None:
    found = row()
    del found["events"]
    verdict = judge(gate_study, [found], None, None)
    assert verdict.problems == ()
    assert verdict.not_assessed == (
        "No hospital was compared with a model of its own: none was trained.",
        "The number of deaths, or of cases of the rarest class, was not reported: survival at H1.",
    )


def test_a_hospital_without_a_model_of_its_own_is_named(gate_study: Study, gate_preprocessing: Preprocessing) -> None:
    predictions = two_sites(0.6, 0.3)
    predictions = predictions[(predictions["method"] != "local") | (predictions["model"] == "H1")]
    verdict = judge(gate_study, rows_of(gate_study, gate_preprocessing, predictions), gate_preprocessing, predictions)
    assert [sentence for sentence in verdict.not_assessed if "survival at H2" in sentence]
    assert verdict.problems == ()


@pytest.mark.parametrize("lost", [1, CASES])
def test_a_hospital_whose_predictions_are_no_numbers_stops_the_release(
    lost: int, gate_study: Study, gate_preprocessing: Preprocessing
) -> None:
    predictions = two_sites(0.6, 0.3)
    inside = (predictions["hospital"] == "H2") & (predictions["method"] == "federated")
    predictions.loc[predictions.index[inside][:lost], "risk"] = np.nan
    verdict = judge(gate_study, rows_of(gate_study, gate_preprocessing, predictions), gate_preprocessing, predictions)
    assert verdict.problems == (f"survival at H2: {lost} of {CASES} predictions are not finite numbers",)
    assert [sentence for sentence in verdict.not_assessed if sentence.startswith("Without a score")]


def diagnoses(beta: int) -> pd.DataFrame:
    """Right predictions of 30 cases of alpha at H1 and some of beta at H2."""
    labels = ["alpha"] * 30 + ["beta"] * beta
    chances = [[0.8, 0.1, 0.1]] * 30 + [[0.1, 0.8, 0.1]] * beta
    hospitals = ["H1"] * 30 + ["H2"] * beta
    about = {"task": "diagnosis", "method": "federated", "model": "", "seed": 0, "row": range(30 + beta)}
    return pd.DataFrame({"hospital": hospitals, "label": labels, "probabilities": chances, **about})


def test_a_class_without_a_test_case_stops_the_release(tiny_study: Study, gate_preprocessing: Preprocessing) -> None:
    diagnosis = tiny_study.task("diagnosis")
    study = tiny_study.model_copy(update={"tasks": (diagnosis,), "roster": ("H1", "H2")})
    predictions = diagnoses(beta=30)
    for candidates, rarest in ((("alpha", "beta"), 30), (("alpha", "beta", "rare"), 0)):
        space = TaskSpace(candidates=candidates, texts=candidates)
        preprocessing = gate_preprocessing.model_copy(update={"tasks": {"diagnosis": space}})
        seen = predictions.assign(probabilities=[row[: len(candidates)] for row in predictions["probabilities"]])
        rows = metric_rows({"diagnosis": [seen]}, study, preprocessing, method="federated", hospital="all", seed=0)
        verdict = judge(study, rows, preprocessing, seen)
        assert verdict.events["all", "diagnosis"] == rarest
        refused = ("diagnosis at all hospitals rests on 0 test cases of the rarest class, release.min_events = 10",)
        assert verdict.problems == (() if rarest else refused)
    assert {"diagnosis: no test case of beta at H1.", "diagnosis: no test case of rare at H1, H2."} <= {
        *verdict.not_assessed
    }


def test_the_invented_cases_are_many_enough_for_the_defaults() -> None:
    assert np.all(two_sites(0.5, 0.5).groupby(["method", "hospital"]).size() == CASES)
