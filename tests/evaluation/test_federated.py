"""Counts of hospitals against the metrics of all their cases in one table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines.utils import concordance_index

from modaltune.data.preprocessing import Preprocessing
from modaltune.evaluation.federated import SiteCounts, pooled_metrics, site_counts
from modaltune.evaluation.metrics import Score, summarise
from modaltune.evaluation.predictions import COLUMNS, metric_values, scored
from modaltune.federation.study import METRICS, Study

EXACT = ("balanced_accuracy", "macro_f1", "brier", "ece")


def predictions(study: Study, preprocessing: Preprocessing, cases: int, seed: int) -> pd.DataFrame:
    """Cases of three hospitals, some empty handed, with a model that is right more often than not."""
    draw = np.random.default_rng(seed)
    parts = []
    for spec in study.tasks:
        names = np.array(preprocessing.tasks[spec.name].candidates)
        index = draw.integers(len(names), size=cases)
        chances = draw.dirichlet(np.ones(len(names)), size=cases) + 0.4 * np.eye(len(names))[index]
        chances /= chances.sum(axis=1, keepdims=True)
        survival = spec.kind == "survival"
        months = draw.exponential(30, cases) + 1
        part = pd.DataFrame({"hospital": draw.choice(["H1", "H2", "H3"], cases), "task": spec.name})
        part["row"] = np.arange(cases)
        part["label"] = None if survival else names[index]
        part["probabilities"] = list(chances)
        part["time_months"] = months if survival else np.nan
        part["event"] = (draw.random(cases) < 0.6).astype(float) if survival else np.nan
        part["risk"] = draw.normal(size=cases).round(1) - 0.05 * months if survival else np.nan
        parts.append(part)
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)]


def counted(table: pd.DataFrame, study: Study, preprocessing: Preprocessing, minimum: int, **options: int) -> list:
    return [
        site_counts(part, study, preprocessing, minimum, **options) for _, part in table.groupby("hospital", sort=True)
    ]


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
    for row in pooled_metrics(counted(table, tiny_study, tiny_preprocessing, 1), tiny_study):
        if row["metric"] in EXACT:
            known = expected[row["task"], row["metric"]]
            assert row["value"] == (None if known.value is None else pytest.approx(known.value, abs=1e-12))
            assert (row["n"], row["error"]) == (known.n, 0)


@pytest.mark.parametrize("bins", [4, 16, 256, 4096])
def test_the_area_from_binned_scores_is_off_by_no_more_than_it_says(
    tiny_study: Study, tiny_preprocessing: Preprocessing, bins: int
) -> None:
    table = predictions(tiny_study, tiny_preprocessing, 150, bins)
    expected = pooled(table, tiny_study, tiny_preprocessing)
    areas = [
        row
        for row in pooled_metrics(counted(table, tiny_study, tiny_preprocessing, 1, bins=bins), tiny_study)
        if row["metric"] == "auc"
    ]
    assert len(areas) == 2
    for row in areas:
        assert abs(row["value"] - expected[row["task"], "auc"].value) <= row["error"] + 1e-12
        assert row["error"] < 1.5 / bins  # half the share of pairs in one bin, for scores spread over all of them


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
    (row,) = [
        row
        for row in pooled_metrics(counted(table, tiny_study, tiny_preprocessing, 1), tiny_study)
        if row["task"] == "survival"
    ]
    assert row["metric"] == "c_index_stratified"
    assert row["value"] == pytest.approx(top / bottom)
    assert row["n"] == 90


def test_small_groups_are_left_out_whole_and_named(tiny_study: Study, tiny_preprocessing: Preprocessing) -> None:
    table = predictions(tiny_study, tiny_preprocessing, 60, 4)
    diagnosis = table["task"] == "diagnosis"
    first = diagnosis & (table["hospital"] == "H1")
    rare = first & (table["label"] == "alpha")
    table = table.drop(table.index[rare][4:])
    died = (table["task"] == "survival") & (table["hospital"] == "H2") & (table["event"] > 0)
    table.loc[table.index[died][3:], "event"] = 0.0
    sites = counted(table, tiny_study, tiny_preprocessing, 5)
    named = {f"{site.site}:{group}" for site in sites for group in site.suppressed}
    assert {"H1:diagnosis/alpha", "H2:survival"} <= named
    cells = [count for site in sites for name, a in site.arrays.items() if "scores" in name for count in a.sum(axis=2)]
    assert all(((rows == 0) | (rows >= 5)).all() for rows in cells)
    left = [f"{h}:{t}/{v}" not in named for h, t, v in table[["hospital", "task", "label"]].itertuples(index=False)]
    known = pooled(table[left], tiny_study, tiny_preprocessing)["diagnosis", "balanced_accuracy"]
    (row,) = [
        row
        for row in pooled_metrics(sites, tiny_study)
        if (row["task"], row["metric"]) == ("diagnosis", "balanced_accuracy")
    ]
    assert row["value"] == pytest.approx(known.value)
    assert row["n"] == known.n < diagnosis.sum()


def test_nobody_counted_is_undefined_and_not_zero(tiny_study: Study, tiny_preprocessing: Preprocessing) -> None:
    empty = site_counts(pd.DataFrame(columns=list(COLUMNS)), tiny_study, tiny_preprocessing, 5)
    assert empty.suppressed == ()
    for row in pooled_metrics([empty], tiny_study):
        assert (row["value"], row["n"]) == (None, 0)
    assert pooled_metrics([SiteCounts(site="H1", arrays={}, suppressed=())], tiny_study) == []
