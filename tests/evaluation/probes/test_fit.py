from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modaltune.benchmarks.probes import (
    bench_probes,
    logistic_spec,
    pooled_cox,
    pooled_logistic,
    random_sites,
)
from modaltune.errors import ProbeError
from modaltune.evaluation.probes.fit import (
    MOST_QUESTIONS,
    ProbeQuestion,
    ProbeSpec,
    fit_probe,
    fit_sites,
    hazard_ratios,
    site_sums,
)
from modaltune.evaluation.probes.sums import SiteCases, Sums, contributors, site_tally

Sites = dict[str, SiteCases]
COX = ProbeSpec(kind="cox", ridge=0.1)
seeds = st.integers(0, 10_000)
SAME = 1e-6


def sites_of(seed: int, *, survival: bool = False, classes: int = 3, cases: int | None = None) -> Sites:
    return random_sites(np.random.default_rng(seed), classes=classes, survival=survival, cases=cases)


def dealt_again(sites: Sites, owners: list[int]) -> Sites:
    """The same cases at other sites."""
    features = np.concatenate([cases.features for cases in sites.values()])
    group = np.concatenate([cases.group for cases in sites.values()])
    owner = np.resize(owners, len(group))
    return {f"S{site}": SiteCases(features=features[owner == site], group=group[owner == site]) for site in range(7)}


def only(sites: Sites, site: str, keep: np.ndarray) -> Sites:
    cases = sites[site]
    months = None if cases.months is None else cases.months[keep]
    return {**sites, site: SiteCases(features=cases.features[keep], group=cases.group[keep], months=months)}


@settings(max_examples=10, deadline=None)
@given(seed=seeds, classes=st.integers(2, 4), ridge=st.sampled_from([0.01, 1.0, 100.0]))
def test_a_logistic_probe_equals_scikit_learn_on_pooled_cases(seed: int, classes: int, ridge: float) -> None:
    sites = sites_of(seed, classes=classes)
    fitted = fit_sites(logistic_spec(sites, ridge), sites)
    np.testing.assert_allclose(fitted.optimum.coefficients, pooled_logistic(sites, ridge), atol=SAME)


@settings(max_examples=15, deadline=None)
@given(owners=st.lists(st.integers(0, 6), min_size=30, max_size=30))
def test_a_logistic_probe_does_not_depend_on_who_holds_which_case(owners: list[int]) -> None:
    sites = sites_of(1)
    again = dealt_again(sites, owners)
    spec = logistic_spec(sites)
    expected, found = fit_sites(spec, sites).optimum, fit_sites(spec, again).optimum
    np.testing.assert_allclose(found.coefficients, expected.coefficients, atol=SAME)


@settings(max_examples=5, deadline=None)
@given(seed=seeds, penalizer=st.sampled_from([0.001, 0.1, 1.0]))
def test_a_cox_probe_equals_lifelines_with_sites_as_strata(seed: int, penalizer: float) -> None:
    sites = sites_of(seed, survival=True)
    fitted = fit_sites(ProbeSpec(kind="cox", ridge=penalizer), sites)
    np.testing.assert_allclose(hazard_ratios(fitted), pooled_cox(sites, penalizer), atol=SAME)


def test_probes_without_ridge_equal_the_maximum_likelihood() -> None:
    sites = sites_of(3, survival=True, cases=200)
    fitted = fit_sites(ProbeSpec(kind="cox", ridge=0.0), sites)
    np.testing.assert_allclose(hazard_ratios(fitted), pooled_cox(sites, 0.0), atol=SAME)
    labelled = sites_of(3, classes=2, cases=200)
    fitted = fit_sites(logistic_spec(labelled, np.inf), labelled)
    np.testing.assert_allclose(fitted.optimum.coefficients, pooled_logistic(labelled, np.inf), atol=SAME)


def test_a_site_with_a_single_death_counts_as_lifelines_counts_it() -> None:
    sites = sites_of(4, survival=True, cases=150)
    largest = max(sites, key=lambda site: len(sites[site].group))
    died = np.flatnonzero(sites[largest].group == 1)
    sites = only(sites, largest, np.isin(np.arange(len(sites[largest].group)), died[1:], invert=True))
    assert sites[largest].group.sum() == 1
    np.testing.assert_allclose(hazard_ratios(fit_sites(COX, sites)), pooled_cox(sites, 0.1), atol=SAME)


@pytest.mark.parametrize("survival", [False, True])
def test_with_suppression_small_sites_are_named_and_the_others_fit_alone(survival: bool) -> None:
    sites = sites_of(5, survival=survival, classes=2, cases=200)
    spec = COX if survival else logistic_spec(sites)
    fitted = fit_sites(spec, sites, minimum=5)
    small = {s for s, held in sites.items() if any(0 < n < 5 for n in np.bincount(held.group))}
    assert small
    assert set(fitted.left_out) == small | {site for site, held in sites.items() if not len(held.group)}
    rest = {site: held for site, held in sites.items() if site not in small}
    expected = hazard_ratios(fitted) if survival else fitted.optimum.coefficients
    found = pooled_cox(rest, 0.1) if survival else pooled_logistic(rest, 1.0)
    np.testing.assert_allclose(expected, found, atol=SAME)


def test_a_class_that_nobody_has_gets_no_coefficients_and_no_probability() -> None:
    sites = {name: replace(held, group=np.where(held.group == 2, 3, held.group)) for name, held in sites_of(6).items()}
    fitted = fit_sites(ProbeSpec(kind="logistic", groups=5), sites)
    assert fitted.optimum.classes == (0, 1, 3)
    chances = fitted.probabilities(np.concatenate([held.features for held in sites.values()]))
    assert chances.shape[1] == 5
    assert (chances[:, [2, 4]] == 0).all()
    np.testing.assert_allclose(chances.sum(axis=1), 1)


def test_a_feature_that_never_varies_is_ignored() -> None:
    sites = sites_of(7, survival=True)
    more = {
        name: replace(held, features=np.hstack([held.features, np.full((len(held.group), 1), 4.2)]))
        for name, held in sites.items()
    }
    for ridge in (0.0, 0.1):
        spec = ProbeSpec(kind="cox", ridge=ridge)
        found = fit_sites(spec, more).optimum.coefficients[0]
        np.testing.assert_allclose(found[:-1], fit_sites(spec, sites).optimum.coefficients[0], atol=1e-9)
        assert found[-1] == 0


def test_the_risk_is_higher_for_those_who_die_earlier() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(80, 1))
    cases = SiteCases(features=features, group=np.ones(80, np.int64), months=np.exp(-features[:, 0]))
    risk = fit_sites(COX, {"H1": cases}).risk(features)
    assert (np.diff(risk[np.argsort(cases.months)]) <= 0).all()


def test_one_class_no_death_and_no_case_are_said_in_one_line() -> None:
    one = SiteCases(features=np.ones((8, 2)), group=np.zeros(8, np.int64))
    with pytest.raises(ProbeError, match="one class only"):
        fit_sites(ProbeSpec(kind="logistic"), {"H1": one})
    with pytest.raises(ProbeError, match="no death"):
        fit_sites(COX, {"H1": replace(one, months=np.ones(8))})
    with pytest.raises(ProbeError, match="no site has training cases"):
        fit_sites(COX, {"H1": SiteCases(features=np.ones((0, 2)), group=np.zeros(0, np.int64))})


@pytest.mark.parametrize("kind", ["logistic", "cox"])
def test_separation_without_ridge_is_said_and_ridge_cures_it(kind: str) -> None:
    features = np.concatenate([np.linspace(-2, -1, 20), np.linspace(1, 2, 20)])[:, None]
    months = np.arange(40.0, 0, -1) if kind == "cox" else None
    group = np.ones(40, np.int64) if kind == "cox" else (features[:, 0] > 0).astype(np.int64)
    sites = {"H1": SiteCases(features=features, group=group, months=months)}
    with pytest.raises(ProbeError, match="grow without end"):
        fit_sites(ProbeSpec(kind=kind, ridge=0.0 if kind == "cox" else np.inf), sites)  # type: ignore[arg-type]
    assert fit_sites(ProbeSpec(kind=kind, ridge=0.1), sites).questions < MOST_QUESTIONS  # type: ignore[arg-type]


def test_a_budget_of_questions_is_kept() -> None:
    sites, asked = sites_of(8), []
    spec = logistic_spec(sites)
    tallies = {site: site_tally(cases, spec.groups) for site, cases in sites.items()}

    def ask(question: ProbeQuestion) -> dict[str, Sums]:
        asked.append(question)
        return {site: site_sums(sites[site], question) for site in contributors(tallies)}

    with pytest.raises(ProbeError, match="after 3 questions"):
        fit_probe(spec, tallies, ask, most_questions=3)
    assert len(asked) == 3


def test_sites_in_another_order_give_the_same_bits() -> None:
    sites = sites_of(9, survival=True)
    first, second = fit_sites(COX, sites), fit_sites(COX, dict(reversed(sites.items())))
    assert np.array_equal(first.optimum.coefficients, second.optimum.coefficients)


def test_the_benchmark_reproduces_the_claim() -> None:
    found = bench_probes(partitions=1, growth=({"width": 4},))
    for name in ("scikit-learn", "scikit-learn lbfgs", "lifelines"):
        assert found[f"difference to {name}"]["largest"] < SAME
    assert found["cox, 4 width, 5 sites, 500 cases"]["questions"] < 10
