"""n cases, C classes, R weight rows, as in the module."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines.utils import concordance_index
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from modaltune.evaluation.metrics import (
    RESAMPLES,
    balanced_accuracy,
    binary_auc,
    bootstrap_weights,
    c_index,
    macro_auc,
    summarise,
)

ALL = 1 + RESAMPLES


def ones(cases: int) -> np.ndarray:
    return np.ones((1, cases))


def some_scores(cases: int, seed: int, *, ties: bool) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(size=cases)
    return np.round(scores, 0) if ties else scores


def some_labels(cases: int, classes: int, seed: int) -> np.ndarray:
    """Every class at least once."""
    draw = np.random.default_rng([seed, 1])
    return draw.permutation(np.concatenate([np.arange(classes), draw.integers(classes, size=cases - classes)]))


@given(cases=st.integers(2, 40), seed=st.integers(0, 10**6), ties=st.booleans())
@settings(deadline=None, max_examples=50)
def test_the_area_equals_sklearns(cases: int, seed: int, ties: bool) -> None:
    positive, score = some_labels(cases, 2, seed) == 1, some_scores(cases, seed, ties=ties)
    assert binary_auc(positive, score, ones(cases))[0] == pytest.approx(roc_auc_score(positive, score))


@pytest.mark.parametrize("ties", [False, True])
def test_bootstrap_counts_equal_sklearn_on_the_resampled_cases(ties: bool) -> None:
    positive, score = some_labels(25, 2, 0) == 1, some_scores(25, 0, ties=ties)
    weights = bootstrap_weights(25, 0)[:60]
    found = binary_auc(positive, score, weights)
    for row, area in zip(weights.astype(int), found, strict=True):
        drawn = np.repeat(np.arange(25), row)
        assert area == pytest.approx(roc_auc_score(positive[drawn], score[drawn]))


@given(classes=st.integers(2, 5), cases=st.integers(5, 40), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_the_macro_area_equals_sklearns_one_versus_rest(classes: int, cases: int, seed: int) -> None:
    labels = some_labels(cases, classes, seed)
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(classes), size=cases)
    found = macro_auc(labels, probabilities, ones(cases))[0]
    score = probabilities[:, 1] if classes == 2 else probabilities
    assert found == pytest.approx(roc_auc_score(labels, score, multi_class="ovr", average="macro"))


def test_the_macro_area_leaves_out_classes_without_a_case() -> None:
    labels = np.array([0, 1, 0, 1, 0])
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), size=5)
    areas = [roc_auc_score(labels == c, probabilities[:, c]) for c in (0, 1)]
    assert macro_auc(labels, probabilities, ones(5))[0] == pytest.approx(np.mean(areas))


@given(classes=st.integers(2, 5), cases=st.integers(5, 40), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_balanced_accuracy_equals_sklearns(classes: int, cases: int, seed: int) -> None:
    labels = some_labels(cases, classes, seed)
    predicted = np.random.default_rng(seed).integers(classes, size=cases)
    expected = balanced_accuracy_score(labels, predicted)
    assert balanced_accuracy(labels, predicted, ones(cases))[0] == pytest.approx(expected)


def test_balanced_accuracy_of_a_resample_equals_sklearns() -> None:
    labels, predicted = some_labels(30, 3, 0), np.random.default_rng(0).integers(3, size=30)
    weights = bootstrap_weights(30, 1)[:40]
    for row, value in zip(weights.astype(int), balanced_accuracy(labels, predicted, weights), strict=True):
        drawn = np.repeat(np.arange(30), row)
        assert value == pytest.approx(balanced_accuracy_score(labels[drawn], predicted[drawn]))


@given(
    cases=st.integers(2, 30),
    seed=st.integers(0, 10**6),
    tied_times=st.booleans(),
    tied_risks=st.booleans(),
    censored=st.floats(0, 0.8),
)
@settings(deadline=None, max_examples=80)
def test_concordance_equals_lifelines(
    cases: int, seed: int, tied_times: bool, tied_risks: bool, censored: float
) -> None:
    draw = np.random.default_rng(seed)
    months = draw.integers(1, 8, cases).astype(float) if tied_times else draw.exponential(20, cases)
    event, risk = draw.random(cases) >= censored, some_scores(cases, seed, ties=tied_risks)
    found = c_index(months, event, risk, ones(cases))[0]
    try:
        expected = concordance_index(months, -risk, event)
    except ZeroDivisionError:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(expected)


def test_concordance_of_a_resample_equals_lifelines() -> None:
    draw = np.random.default_rng(0)
    months, event, risk = draw.integers(1, 20, 25).astype(float), draw.random(25) < 0.7, draw.normal(size=25)
    weights = bootstrap_weights(25, 2)[:40]
    for row, value in zip(weights.astype(int), c_index(months, event, risk, weights), strict=True):
        drawn = np.repeat(np.arange(25), row)
        assert value == pytest.approx(concordance_index(months[drawn], -risk[drawn], event[drawn]))


def test_an_early_death_with_a_high_risk_is_concordant() -> None:
    months, event, risk = np.array([1.0, 2.0, 3.0]), np.array([True, True, False]), np.array([3.0, 2.0, 1.0])
    assert c_index(months, event, risk, ones(3)) == 1
    assert c_index(months, event, -risk, ones(3)) == 0
    assert c_index(months, event, np.zeros(3), ones(3)) == 0.5


def test_at_equal_times_a_death_comes_before_a_censoring_and_two_deaths_cannot_be_compared() -> None:
    months, risk = np.array([5.0, 5.0]), np.array([1.0, 0.0])
    assert c_index(months, np.array([True, False]), risk, ones(2)) == 1
    assert np.isnan(c_index(months, np.array([True, True]), risk, ones(2)))


def undefined() -> dict[str, np.ndarray]:
    weights, half = np.ones((3, 4)), np.full((4, 2), 0.5)
    one_class, never = np.zeros(4, dtype=np.int64), np.zeros(4, dtype=bool)
    return {
        "area": binary_auc(never, np.arange(4.0), weights),
        "macro area": macro_auc(one_class, np.full((4, 3), 1 / 3), weights),
        "area of two classes": macro_auc(one_class, half, weights),
        "balanced accuracy": balanced_accuracy(one_class, one_class, weights),
        "concordance": c_index(np.arange(1.0, 5.0), never, np.arange(4.0), weights),
        "no case": binary_auc(np.zeros(0, dtype=bool), np.zeros(0), bootstrap_weights(0, 0)),
        "concordance of no case": c_index(np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0), np.zeros((3, 0))),
        "balanced accuracy of no case": balanced_accuracy(one_class[:0], one_class[:0], np.zeros((3, 0))),
        "macro area of no case": macro_auc(one_class[:0], np.zeros((0, 3)), np.zeros((3, 0))),
    }


@pytest.mark.parametrize("name", undefined())
def test_what_is_undefined_is_none(name: str) -> None:
    row = undefined()[name]
    assert np.isnan(row).all()
    score = summarise([row], 4)
    assert (score.value, score.low, score.high, score.n) == (None, None, None, 4)


def test_every_patient_counts_once_in_the_estimate_and_as_drawn_in_the_resamples() -> None:
    weights = bootstrap_weights(7, 0, "task")
    assert weights.shape == (ALL, 7)
    assert RESAMPLES >= 1000
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 7).all()
    np.testing.assert_allclose(weights[1:].mean(axis=0), 1, atol=0.15)


def test_resamples_depend_on_seed_and_name_only() -> None:
    assert np.array_equal(bootstrap_weights(7, 0, "task"), bootstrap_weights(7, 0, "task"))
    assert not np.array_equal(bootstrap_weights(7, 0, "task"), bootstrap_weights(7, 1, "task"))
    assert not np.array_equal(bootstrap_weights(7, 0, "task"), bootstrap_weights(7, 0, "other"))


def test_intervals_contain_the_estimate_and_shrink_with_more_cases() -> None:
    widths = []
    for cases in (40, 200):
        inside, total = 0, 20
        for seed in range(total):
            positive = some_labels(cases, 2, seed) == 1
            score = some_scores(cases, seed, ties=False) + positive
            found = summarise([binary_auc(positive, score, bootstrap_weights(cases, seed))], cases)
            assert found.value is not None
            assert found.low is not None
            assert found.high is not None
            inside += found.low <= found.value <= found.high
            widths.append(found.high - found.low)
        assert inside >= total - 1
    assert np.mean(widths[20:]) < 0.6 * np.mean(widths[:20])


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    # Scores N(1, 1) against N(0, 1): the area is Phi(1 / sqrt 2) = 0.7602.
    covered = 0
    for seed in range(60):
        positive = np.arange(80) < 40
        score = np.random.default_rng(seed).normal(size=80) + positive
        found = summarise([binary_auc(positive, score, bootstrap_weights(80, seed))], 80)
        covered += found.low <= 0.7602 <= found.high  # type: ignore[operator]
    assert 50 <= covered <= 60


def test_the_summary_of_several_models_is_the_mean_of_those_that_are_defined() -> None:
    first, second, undefined_ = np.full(ALL, 0.6), np.full(ALL, 0.8), np.full(ALL, np.nan)
    score = summarise([first, undefined_, second], 9)
    assert (score.value, score.low, score.high, score.n) == pytest.approx((0.7, 0.7, 0.7, 9))


def test_resamples_without_a_value_are_left_out_of_the_interval() -> None:
    row = np.linspace(0.4, 0.6, ALL)
    row[0], row[1::2] = 0.5, np.nan
    score = summarise([row], 9)
    assert score.low == pytest.approx(0.405, abs=0.002)
    assert score.high == pytest.approx(0.595, abs=0.002)


def test_an_estimate_without_any_defined_resample_has_no_interval() -> None:
    row = np.full(ALL, np.nan)
    row[0] = 0.5
    score = summarise([row], 2)
    assert (score.value, score.low, score.high) == (0.5, None, None)
