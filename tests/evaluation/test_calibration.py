from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve as sklearns_curve
from sklearn.metrics import brier_score_loss, f1_score

from modaltune.evaluation.calibration import brier, calibration_curve, calibration_error
from modaltune.evaluation.metrics import bootstrap_weights, macro_f1
from tests.evaluation.test_metrics import ones, some_labels


def some_chances(cases: int, classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), size=cases)


@given(classes=st.integers(2, 5), cases=st.integers(5, 40), seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_macro_f1_equals_sklearns(classes: int, cases: int, seed: int) -> None:
    labels, predicted = some_labels(cases, classes, seed), np.random.default_rng(seed).integers(classes, size=cases)
    assert macro_f1(labels, predicted, ones(cases))[0] == pytest.approx(f1_score(labels, predicted, average="macro"))


def test_macro_f1_of_a_resample_equals_sklearns_with_classes_that_went_missing() -> None:
    labels, predicted = some_labels(8, 4, 0), np.random.default_rng(0).integers(4, size=8)
    weights = bootstrap_weights(8, 1)[:60]
    for row, value in zip(weights.astype(int), macro_f1(labels, predicted, weights), strict=True):
        drawn = np.repeat(np.arange(8), row)
        assert value == pytest.approx(f1_score(labels[drawn], predicted[drawn], average="macro"))


@given(classes=st.integers(2, 5), cases=st.integers(5, 40), seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_the_brier_score_equals_sklearns(classes: int, cases: int, seed: int) -> None:
    labels, chances = some_labels(cases, classes, seed), some_chances(cases, classes, seed)
    score = chances[:, 1] if classes == 2 else chances
    expected = brier_score_loss(labels, score, scale_by_half=True, labels=range(classes))
    assert brier(labels, chances, ones(cases))[0] == pytest.approx(expected)


def test_brier_score_and_calibration_error_of_a_resample_are_those_of_the_cases_repeated() -> None:
    labels, chances, weights = some_labels(30, 3, 0), some_chances(30, 3, 0), bootstrap_weights(30, 1)[:20]
    for metric in (brier, calibration_error):
        for row, value in zip(weights.astype(int), metric(labels, chances, weights), strict=True):
            drawn = np.repeat(np.arange(30), row)
            assert value == pytest.approx(metric(labels[drawn], chances[drawn], ones(30))[0])


def test_sure_and_right_is_perfect_and_sure_and_wrong_is_as_bad_as_it_gets() -> None:
    labels, sure = np.array([0, 1, 2]), np.eye(3)
    for metric in (brier, calibration_error):
        assert metric(labels, sure, ones(3)) == 0
        assert metric(labels, np.roll(sure, 1, axis=1), ones(3)) == 1


def test_the_calibration_error_is_the_mean_gap_weighted_by_cases() -> None:
    # Two cases at 0.95, one right: gap 0.45. Three at 0.65, all right: gap 0.35.
    chances = np.array([[0.95, 0.05]] * 2 + [[0.65, 0.35]] * 3)
    labels = np.array([0, 1, 0, 0, 0])
    assert calibration_error(labels, chances, ones(5))[0] == pytest.approx((2 * 0.45 + 3 * 0.35) / 5)


def test_probabilities_that_tell_the_truth_have_a_small_error_and_the_line_of_identity_as_curve() -> None:
    draw = np.random.default_rng(0)
    chance = draw.uniform(0, 1, 20_000)
    outcome = draw.random(20_000) < chance
    predicted, observed, count = calibration_curve(outcome, chance)
    np.testing.assert_allclose(predicted, observed, atol=0.04)
    assert count.sum() == 20_000
    labels, both = outcome.astype(np.int64), np.stack([1 - chance, chance], axis=1)
    assert calibration_error(labels, both, ones(20_000))[0] < 0.02


def test_the_calibration_curve_equals_sklearns() -> None:
    outcome, chance = some_labels(200, 2, 0) == 1, np.random.default_rng(0).uniform(size=200)
    observed, predicted = sklearns_curve(outcome, chance, n_bins=10)
    found = calibration_curve(outcome, chance)
    np.testing.assert_allclose(found[0], predicted)
    np.testing.assert_allclose(found[1], observed)


def test_one_class_of_labels_has_no_macro_f1_and_no_case_has_no_score() -> None:
    nobody, chances = np.zeros(0, dtype=np.int64), np.zeros((0, 3))
    assert np.isnan(macro_f1(np.zeros(4, dtype=np.int64), np.array([0, 1, 0, 0]), ones(4))).all()
    assert np.isnan(macro_f1(nobody, nobody, np.zeros((3, 0)))).all()
    assert np.isnan(brier(nobody, chances, np.zeros((3, 0)))).all()
    assert np.isnan(calibration_error(nobody, chances, np.zeros((3, 0)))).all()
