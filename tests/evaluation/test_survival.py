"""n cases, R weight rows, as in the module. Times are continuous where others break ties in another way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines import KaplanMeierFitter
from lifelines.statistics import logrank_test

from modaltune.evaluation.metrics import bootstrap_weights, c_index
from modaltune.evaluation.survival import (
    Censoring,
    auc_at,
    brier_at,
    c_index_ipcw,
    logrank_p,
    risk_cuts,
    risk_groups,
    survival_at,
)

ONE = np.ones((1, 60))


def follow_up(cases: int, seed: int, *, censored: float = 60.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Months, event and a risk that is right more often than not."""
    draw = np.random.default_rng(seed)
    death, leaves = draw.exponential(30, cases), draw.uniform(0, 2 * censored, cases)
    return np.minimum(death, leaves), death <= leaves, draw.normal(size=cases) - 0.03 * death


def structured(months: np.ndarray, event: np.ndarray) -> Any:
    return np.array(list(zip(event, months, strict=True)), dtype=[("event", bool), ("time", float)])


@given(seed=st.integers(0, 10**6), cases=st.integers(1, 60))
@settings(max_examples=40)
def test_the_chance_of_being_observed_equals_lifelines_with_roles_swapped(seed: int, cases: int) -> None:
    months, event, _ = follow_up(cases, seed)
    fitted = KaplanMeierFitter().fit(months, ~event)
    asked = np.linspace(0, months.max(), 20)
    np.testing.assert_allclose(Censoring.of(months, event).after(asked), fitted.predict(asked), atol=1e-12)


def test_at_equal_times_a_death_comes_before_a_censoring() -> None:
    found = Censoring.of(np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, True, False, True]))
    # 4 at risk at 1, one leaves: 3/4. At 2 one has died of 3 at risk, one of the 2 others leaves: 3/4 * 1/2.
    np.testing.assert_allclose(found.after(np.array([0.5, 1, 2, 3])), [1, 0.75, 0.375, 0.375])
    np.testing.assert_allclose(found.before(np.array([1.0, 2, 3])), [1, 0.75, 0.375])


def test_at_equal_times_a_death_weighs_by_the_chance_of_being_observed_just_before() -> None:
    months, event = np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, True, False, True])
    # Chances as above: 3/4 until just before 2, 3/8 after it. One death by then, one alive after it, error 1/4 each:
    # (1/4 / (3/4) + 1/4 / (3/8)) / 4 = 1/4; with the chance at the time of death it would be 1/3.
    found = brier_at(2, months, event, np.full(4, 0.5), Censoring.of(months, event), np.ones((1, 4)))
    assert found[0] == pytest.approx(0.25)


def test_only_training_cases_shape_the_weights() -> None:
    table = pd.DataFrame(
        {"split": ["train", "test", "train", "val"], "time_months": [5.0, 1, 9, 2], "event": [1, 0, 0, 0]}
    )
    other = table.rename(columns={"time_months": "relapse_free_time_months", "event": "relapse_free_event"})
    tasks = ("survival", "relapse_free_survival")
    found = Censoring.of_training([table, table[["split"]], other.assign(relapse_free_time_months=4.0)], tasks)
    assert {task: known.times.tolist() for task, known in found.items()} == {tasks[0]: [5, 9], tasks[1]: [4]}
    assert Censoring.of_training([], tasks)["survival"].times.tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_concordance_and_areas_and_squared_errors_equal_scikit_survivals(seed: int) -> None:
    theirs = pytest.importorskip("sksurv.metrics", reason="needs scikit-survival (GPL: never a dependency)")
    train, test = follow_up(200, seed)[:2], follow_up(60, seed + 100)
    months, event, risk = test
    inside = months < 0.9 * train[0].max()
    months, event, risk = months[inside], event[inside], risk[inside]
    censoring, ones = Censoring.of(*train), np.ones((1, len(months)))
    last = float(train[0][censoring.covers(train[0])].max())
    known, asked = structured(*train), structured(months, event)
    expected = theirs.concordance_index_ipcw(known, asked, risk, tau=last)[0]
    assert c_index_ipcw(months, event, risk, censoring, ones)[0] == pytest.approx(expected, rel=1e-9)
    for horizon in (12.0, 36.0):
        area = theirs.cumulative_dynamic_auc(known, asked, risk, [horizon])[0][0]
        assert auc_at(horizon, months, event, risk, censoring, ones)[0] == pytest.approx(area, rel=1e-9)
        alive = np.clip(0.5 - 0.2 * risk, 0, 1)
        error = theirs.brier_score(known, asked, alive[:, None], [horizon])[1][0]
        assert brier_at(horizon, months, event, alive, censoring, ones)[0] == pytest.approx(error, rel=1e-9)


def test_without_censoring_weights_change_nothing() -> None:
    months, event, risk = follow_up(60, 3, censored=1e9)
    assert event.all()
    censoring = Censoring.of(months, event)
    assert c_index_ipcw(months, event, risk, censoring, ONE) == pytest.approx(c_index(months, event, risk, ONE))
    alive = np.linspace(0, 1, 60)
    plain = np.mean(((months > 12) - alive) ** 2)
    assert brier_at(12, months, event, alive, censoring, ONE)[0] == pytest.approx(plain)


def test_weighting_undoes_censoring_that_spares_early_deaths() -> None:
    # The risk orders early deaths well and late ones at random: Harrell's index sees few late pairs and is too high.
    draw = np.random.default_rng(0)
    death = draw.exponential(30, 4000)
    risk = np.where(death < 20, -death, draw.uniform(-60, -20, 4000))
    leaves = draw.uniform(0, 80, 4000)
    months, event = np.minimum(death, leaves), death <= leaves
    ones = np.ones((1, 2000))
    half = slice(0, 2000)
    within = np.minimum(death, 72.0)  # 10 % are observed so long
    truth = c_index(within[half], death[half] <= 72, risk[half], ones)[0]
    censoring = Censoring.of(months[2000:], event[2000:])
    harrell = c_index(months[half], event[half], risk[half], ones)[0]
    uno = c_index_ipcw(months[half], event[half], risk[half], censoring, ones)[0]
    assert abs(uno - truth) < 0.4 * abs(harrell - truth)


@pytest.mark.parametrize("metric", ["concordance", "area", "error"])
def test_a_resample_equals_the_same_cases_repeated(metric: str) -> None:
    months, event, risk = follow_up(40, 7)
    alive, censoring = 1 / (1 + np.exp(risk)), Censoring.of(*follow_up(80, 8)[:2])

    def score(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        if metric == "concordance":
            return c_index_ipcw(months[rows], event[rows], risk[rows], censoring, weights)
        if metric == "area":
            return auc_at(12, months[rows], event[rows], risk[rows], censoring, weights)
        return brier_at(12, months[rows], event[rows], alive[rows], censoring, weights)

    weights = bootstrap_weights(40, 1)[:20]
    for row, value in zip(weights.astype(int), score(np.arange(40), weights), strict=True):
        drawn = np.repeat(np.arange(40), row)
        assert value == pytest.approx(score(drawn, np.ones((1, 40)))[0], nan_ok=True)


def test_a_horizon_that_training_cases_were_not_followed_to_is_undefined() -> None:
    months, event, risk = follow_up(60, 1)
    short = Censoring.of(np.array([1.0, 2.0, 3.0]), np.array([True, False, True]))
    nobody = Censoring.of(np.zeros(0), np.zeros(0, dtype=bool))
    for censoring in (short, nobody):
        assert np.isnan(auc_at(12, months, event, risk, censoring, ONE)).all()
        assert np.isnan(brier_at(12, months, event, risk, censoring, ONE)).all()
    assert np.isnan(c_index_ipcw(months, event, risk, nobody, ONE)).all()


def test_predicted_survival_falls_from_bin_to_bin_and_ends_with_the_last_edge() -> None:
    chances = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    for months, expected in ((0, [1, 1]), (5, [0.9, 0.5]), (10, [0.8, 0]), (20, [0.65, 0]), (30, [0.5, 0])):
        np.testing.assert_allclose(survival_at(months, chances, (10.0, 30.0)), expected)
    assert np.isnan(survival_at(31, chances, (10.0, 30.0))).all()
    assert np.isnan(survival_at(5, chances, ())).all()


def test_risk_is_cut_into_thirds_and_with_few_deaths_into_halves() -> None:
    risk = np.arange(90.0)
    thirds = risk_cuts(risk, risk < 30)
    assert np.bincount(risk_groups(risk, thirds)).tolist() == [30, 30, 30]
    halves = risk_cuts(risk, risk < 29)
    assert np.bincount(risk_groups(risk, halves)).tolist() == [45, 45]
    assert risk_cuts(risk[:0], risk[:0] > 0) == ()


def test_the_logrank_p_equals_lifelines_and_needs_two_groups() -> None:
    months, event, risk = follow_up(60, 5)
    high = risk > np.median(risk)
    expected = logrank_test(months[high], months[~high], event[high], event[~high]).p_value
    assert logrank_p(months, event, high.astype(np.int64)) == pytest.approx(expected)
    assert logrank_p(months, event, np.zeros(60, dtype=np.int64)) is None
    assert logrank_p(months, np.zeros(60, dtype=bool), high.astype(np.int64)) is None
