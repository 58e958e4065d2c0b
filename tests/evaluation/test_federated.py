"""Counts of hospitals against the metrics of all their cases in one table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines.utils import concordance_index

from modaltune.data.preprocessing import Preprocessing
from modaltune.evaluation.federated import SiteCounts, pooled_metrics, site_counts
from modaltune.evaluation.metrics import Score, bootstrap_weights, summarise
from modaltune.evaluation.predictions import COLUMNS, metric_values, scored
from modaltune.federation.settings import EvaluationSpec
from modaltune.federation.study import Study
from modaltune.federation.task import METRICS, Label
from tests.evaluation.invented import predictions

COUNTED = ("balanced_accuracy", "macro_f1")
EXACT = (*COUNTED, "brier", "ece")  # of counts before they are rounded


def counted(table: pd.DataFrame, study: Study, preprocessing: Preprocessing, minimum: int) -> dict[str, SiteCounts]:
    parts = table.groupby("hospital", sort=True)
    return {str(site): site_counts(part, study, preprocessing, minimum) for site, part in parts}


def together(
    table: pd.DataFrame, study: Study, preprocessing: Preprocessing, minimum: int = 1
) -> dict[tuple[str, str], dict[str, Any]]:
    """Metrics from the counts, by task and name."""
    sites = counted(table, study, preprocessing, minimum).values()
    rows = pooled_metrics([site.arrays for site in sites], study)
    return {(row["task"], row["metric"]): row for row in rows}


def resampled(table: pd.DataFrame, study: Study, preprocessing: Preprocessing, task: str, metric: str) -> Score:
    """The metric of one table of all cases, with its bootstrap interval."""
    spec, candidates = study.task(task), preprocessing.tasks[task].candidates
    cases = scored(table, spec, candidates)
    weights = bootstrap_weights(len(cases), 0)
    return summarise([metric_values(cases, spec, candidates, metric, weights)], len(cases))


def pooled(table: pd.DataFrame, study: Study, preprocessing: Preprocessing) -> dict[tuple[str, str], Score]:
    """The same metrics of one table of all cases."""
    found = {}
    for spec in study.tasks:
        candidates = preprocessing.tasks[spec.name].candidates
        cases = scored(table, spec, candidates)
        for metric in METRICS[spec.kind]:
            row = metric_values(cases, spec, candidates, metric, np.ones((1, len(cases))))
            found[spec.name, metric] = summarise([row], len(cases))
    return found


@given(seed=st.integers(0, 10**6), cases=st.integers(2, 60))
@settings(max_examples=8)
def test_scores_from_counts_equal_those_of_the_pooled_cases(
    tiny_study: Study, tiny_preprocessing: Preprocessing, seed: int, cases: int
) -> None:
    table = predictions(tiny_study, tiny_preprocessing, cases, seed)
    expected = pooled(table, tiny_study, tiny_preprocessing)
    for (task, metric), row in together(table, tiny_study, tiny_preprocessing).items():
        if metric in EXACT:
            known = expected[task, metric]
            assert row["value"] == (None if known.value is None else pytest.approx(known.value, abs=1e-12))
            assert row["n"] == known.n
            assert (row["error"] or 0) <= (0 if metric in COUNTED else 0.05 * len(set(table["hospital"])) / known.n)


@pytest.mark.parametrize("bins", [4, 16, 256, 1024])
def test_the_area_from_binned_scores_is_off_by_no_more_than_it_says(
    tiny_study: Study, tiny_preprocessing: Preprocessing, bins: int
) -> None:
    table = predictions(tiny_study, tiny_preprocessing, 150, bins)
    expected = pooled(table, tiny_study, tiny_preprocessing)
    study = tiny_study.model_copy(update={"evaluation": EvaluationSpec(counts=True, bins=bins)})
    for task in ("diagnosis", "stage"):
        row = together(table, study, tiny_preprocessing)[task, "auc_binned"]
        assert abs(row["value"] - expected[task, "auc"].value) <= row["error"] + 1e-12
        assert row["error"] < 1.5 / bins  # half the share of pairs in one bin, for scores spread over all of them


@pytest.mark.parametrize("task", ["diagnosis", "stage"])
@pytest.mark.parametrize("metric", ["auc", "balanced_accuracy", "macro_f1", "brier"])
def test_intervals_from_counts_are_those_of_resampled_patients(
    tiny_study: Study, tiny_preprocessing: Preprocessing, task: str, metric: str
) -> None:
    table = predictions(tiny_study, tiny_preprocessing, 150, 7)
    study = tiny_study.model_copy(update={"evaluation": EvaluationSpec(counts=True, bins=1024)})
    row = together(table, study, tiny_preprocessing)[task, "auc_binned" if metric == "auc" else metric]
    known = resampled(table, study, tiny_preprocessing, task, metric)
    assert known.low is not None
    assert known.high is not None
    width = known.high - known.low
    if (task, metric) == ("diagnosis", "auc"):  # three classes: counts do not tell how their areas move together
        assert row["low"] < known.low < known.high < row["high"]
        assert row["high"] - row["low"] < 2 * width
        return
    assert row["low"] == pytest.approx(known.low, abs=0.15 * width)
    assert row["high"] == pytest.approx(known.high, abs=0.15 * width)


def test_the_interval_of_concordance_is_that_of_resampled_patients(
    tiny_study: Study, tiny_preprocessing: Preprocessing
) -> None:
    table = predictions(tiny_study, tiny_preprocessing, 150, 7)
    table["hospital"] = "H1"  # one hospital: then the stratified index is the index
    row = together(table, tiny_study, tiny_preprocessing)["survival", "c_index_stratified"]
    known = resampled(table, tiny_study, tiny_preprocessing, "survival", "c_index")
    assert row["value"] == pytest.approx(known.value)
    assert known.low is not None
    assert known.high is not None
    assert row["high"] - row["low"] == pytest.approx(known.high - known.low, rel=0.15)
    assert row["events"] == table.loc[table["task"] == "survival", "event"].sum()


def test_concordance_from_pair_counts_is_the_one_stratified_by_hospital(
    tiny_study: Study, tiny_preprocessing: Preprocessing
) -> None:
    table = predictions(tiny_study, tiny_preprocessing, 90, 0)
    cases = table[table["task"] == "survival"]
    top = bottom = 0.0
    for _, part in cases.groupby("hospital"):
        later = part["time_months"].to_numpy()[None, :] > part["time_months"].to_numpy()[:, None]
        pairs = (later & (part["event"].to_numpy() > 0)[:, None]).sum()
        top += pairs * concordance_index(part["time_months"], -part["risk"], part["event"])
        bottom += pairs
    row = together(table, tiny_study, tiny_preprocessing)["survival", "c_index_stratified"]
    assert row["value"] == pytest.approx(top / bottom)
    assert row["n"] == 90


def test_a_task_with_a_small_class_is_left_out_whole_and_named(
    tiny_study: Study, tiny_preprocessing: Preprocessing
) -> None:
    """Of the others the number of all cases, or the scores of all, would tell the small one."""
    table = predictions(tiny_study, tiny_preprocessing, 120, 4)
    rare = (table["task"] == "diagnosis") & (table["hospital"] == "H1") & (table["label"] == "alpha")
    table = table.drop(table.index[rare][4:]).reset_index(drop=True)
    died = (table["task"] == "survival") & (table["hospital"] == "H2") & (table["event"] > 0)
    table.loc[table.index[died][3:], "event"] = 0.0
    sites = counted(table, tiny_study, tiny_preprocessing, 5)
    named = {(name, task) for name, site in sites.items() for task in site.suppressed}
    assert {("H1", "diagnosis"), ("H2", "survival")} <= named
    for name, site in sites.items():
        for key, value in site.arrays.items():
            assert (name, key.rpartition(".")[0]) not in named or not value.any()
    left = [(h, t) not in named for h, t in table[["hospital", "task"]].itertuples(index=False)]
    known = pooled(table[left], tiny_study, tiny_preprocessing)["diagnosis", "balanced_accuracy"]
    row = together(table, tiny_study, tiny_preprocessing, 5)["diagnosis", "balanced_accuracy"]
    assert row["value"] == pytest.approx(known.value)
    assert row["n"] == known.n < (table["task"] == "diagnosis").sum()


def test_a_class_that_nobody_here_has_is_no_small_one(tiny_study: Study, tiny_preprocessing: Preprocessing) -> None:
    table = predictions(tiny_study, tiny_preprocessing, 60, 4)
    table["hospital"] = "H1"
    table = table[(table["task"] != "diagnosis") | (table["label"] != "alpha")]
    assert "diagnosis" not in counted(table, tiny_study, tiny_preprocessing, 5)["H1"].suppressed


def test_an_interval_that_no_resample_defines_is_none(tiny_study: Study, tiny_preprocessing: Preprocessing) -> None:
    """Many classes of one case each: hardly a resample has all of them."""
    values = tuple(Label(value=f"v{number}", text=f"v{number}") for number in range(25))
    task = tiny_study.task("diagnosis").model_copy(update={"labels": values})
    study = tiny_study.model_copy(update={"tasks": (task,)})
    spaces = {"diagnosis": tiny_preprocessing.tasks["diagnosis"].model_copy(update={"candidates": task.values})}
    preprocessing = tiny_preprocessing.model_copy(update={"tasks": spaces})
    table = predictions(study, preprocessing, 200, 0).drop_duplicates("label").assign(hospital="H1")
    rows = pooled_metrics([site_counts(table, study, preprocessing, 1).arrays], study)
    limits = [row[end] for row in rows for end in ("low", "high") if row[end] is not None]
    assert np.isfinite(limits).all()
    assert {row["low"] for row in rows if row["metric"] == "balanced_accuracy"} == {None}


def test_survival_with_few_censored_cases_is_left_out(tiny_study: Study, tiny_preprocessing: Preprocessing) -> None:
    table = predictions(tiny_study, tiny_preprocessing, 40, 4)
    table["hospital"] = "H1"
    survival = table.index[table["task"] == "survival"]
    table.loc[survival, "event"] = 1.0
    table.loc[survival[:2], "event"] = 0.0
    site = counted(table, tiny_study, tiny_preprocessing, 5)["H1"]
    assert "survival" in site.suppressed
    assert not site.arrays["survival.pairs"].any()
    table.loc[survival, "event"] = 1.0  # none is no small group
    site = counted(table, tiny_study, tiny_preprocessing, 5)["H1"]
    assert list(site.arrays["survival.pairs"][:2]) == [40, 40]


def test_nobody_counted_is_undefined_and_not_zero(tiny_study: Study, tiny_preprocessing: Preprocessing) -> None:
    empty = site_counts(pd.DataFrame(columns=list(COLUMNS)), tiny_study, tiny_preprocessing, 5)
    assert empty.suppressed == ()
    for row in pooled_metrics([empty.arrays], tiny_study):
        assert (row["value"], row["n"]) == (None, 0)
    assert pooled_metrics([], tiny_study) == []
