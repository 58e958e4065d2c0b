from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from modaltune.benchmarks.probes import random_sites
from modaltune.evaluation.probes.cox import RiskSets, cox_gradient, cox_sums
from modaltune.evaluation.probes.logistic import logistic_sums
from modaltune.evaluation.probes.newton import minimise
from modaltune.evaluation.probes.sums import SiteCases, Sums, pool_tallies, site_tally


@pytest.fixture(scope="module")
def cases() -> SiteCases:
    everybody = random_sites(np.random.default_rng(0), classes=2, survival=True, width=3, sites=1, cases=60)
    return max(everybody.values(), key=lambda held: int(held.group.sum()))


def cox(cases: SiteCases, coefficients: np.ndarray) -> Sums:
    assert cases.months is not None
    return cox_sums(cases.features, cases.months, cases.group.astype(bool), coefficients)


def logistic(cases: SiteCases, coefficients: np.ndarray) -> Sums:
    labels = np.arange(len(cases.group)) % 3
    return logistic_sums(cases.features, labels, coefficients.reshape(3, -1))


@pytest.mark.parametrize(("function", "size"), [(cox, 3), (logistic, 12)])
def test_derivatives_are_those_of_the_loss(cases: SiteCases, function, size: int) -> None:  # type: ignore[no-untyped-def]
    scaled = SiteCases(features=cases.features / cases.features.std(axis=0), group=cases.group, months=cases.months)
    point = np.random.default_rng(1).normal(0, 0.3, size)
    sums = function(scaled, point)
    slope = approx_fprime(point, lambda x: function(scaled, x).loss)
    curvature = approx_fprime(point, lambda x: function(scaled, x).gradient)
    np.testing.assert_allclose(sums.gradient, slope, atol=1e-3, rtol=1e-4)
    np.testing.assert_allclose(sums.hessian, curvature, atol=1e-3, rtol=1e-4)


def test_the_partial_likelihood_is_efrons() -> None:
    """Two tied deaths and a survivor with hazards a, b, c: ab / ((a + b + c)((a + b) / 2 + c))."""
    features, coefficients = np.array([[0.0], [1.0], [2.0]]), np.array([0.7])
    a, b, c = np.exp(features[:, 0] * 0.7)
    sums = cox_sums(features, np.array([3.0, 3.0, 5.0]), np.array([True, True, False]), coefficients)
    assert sums.loss == pytest.approx(-np.log(a * b / ((a + b + c) * ((a + b) / 2 + c))))


def test_a_censoring_at_the_time_of_a_death_is_still_at_risk() -> None:
    together = cox_sums(np.eye(2), np.array([3.0, 3.0]), np.array([True, False]), np.zeros(2))
    assert together.loss == pytest.approx(np.log(2))


def test_the_gradient_alone_is_that_of_the_sums(cases: SiteCases) -> None:
    assert cases.months is not None
    event, point = cases.group.astype(bool), np.array([0.2, -0.1, 0.05])
    for observed in (event, np.zeros_like(event)):
        sets = RiskSets.of(cases.months, observed)
        found = cox_gradient(cases.features[sets.order], sets, point)
        expected = cox_sums(cases.features, cases.months, observed, point).gradient
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_site_without_deaths_adds_nothing(cases: SiteCases) -> None:
    assert cases.months is not None
    sums = cox_sums(cases.features, cases.months, np.zeros(len(cases.group), bool), np.ones(3))
    assert sums.loss == 0
    assert not sums.gradient.any()
    assert not sums.hessian.any()


def test_sums_travel_as_their_upper_triangle_and_come_back(cases: SiteCases) -> None:
    sums = cox(cases, np.zeros(3))
    packed = sums.packed()
    assert {name: array.shape for name, array in packed.items()} == {"loss": (1,), "gradient": (3,), "hessian": (6,)}
    back = Sums.unpacked(packed)
    assert back.loss == sums.loss
    np.testing.assert_array_equal(back.hessian, sums.hessian)


@pytest.mark.parametrize("sites", [1, 3, 10])
def test_pooled_tallies_are_those_of_all_cases_even_far_from_zero(sites: int) -> None:
    generator = np.random.default_rng(2)
    features, group = generator.normal(1e6, 1e-2, (90, 4)), generator.integers(0, 3, 90)
    owner = generator.integers(0, sites, 90)
    parts = [SiteCases(features=features[owner == s], group=group[owner == s]) for s in range(sites)]
    pooled = pool_tallies({f"H{n}": site_tally(part, 3) for n, part in enumerate(parts)})
    np.testing.assert_array_equal(pooled.counts, np.bincount(group))
    np.testing.assert_allclose(pooled.mean, features.mean(axis=0), rtol=1e-15)
    np.testing.assert_allclose(pooled.squares, ((features - features.mean(axis=0)) ** 2).sum(axis=0), rtol=1e-7)


def test_a_tally_with_a_small_group_is_empty() -> None:
    cases = SiteCases(features=np.ones((14, 2)), group=np.array([0] * 10 + [1] * 4))
    assert site_tally(cases, 3, minimum=4).cases == 14
    assert site_tally(cases, 3, minimum=5).cases == 0
    assert not site_tally(cases, 3, minimum=5).mean.any()


def test_a_step_that_goes_too_far_is_halved_with_losses_only() -> None:
    """On sqrt(1 + x^2) Newton's step leads from x to -x^3: away from the optimum beyond |x| = 1."""
    asked = []

    def objective(x: np.ndarray, derivatives: bool) -> Sums:
        asked.append(derivatives)
        root = np.sqrt(1 + (x - 3) ** 2)
        return Sums(loss=float(root[0]), gradient=(x - 3) / root, hessian=np.diag(root**-3))

    found = minimise(objective, 1, 100)
    np.testing.assert_allclose(found.coefficients, 3, atol=1e-8)
    assert not all(asked)
    assert found.questions == len(asked)
