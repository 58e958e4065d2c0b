"""Probe questions as plain data: what travels gives the same fit, and what a site does not answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from modaltune.benchmarks.probes import logistic_spec, random_sites
from modaltune.errors import ProbeError
from modaltune.evaluation.probes.fit import ProbeQuestion, ProbeSpec, first_question, fit_probe, fit_sites
from modaltune.evaluation.probes.sums import SiteCases, Sums, contributors, pool_tallies, site_tally
from modaltune.federation.probe_query import (
    HELD_BACK,
    TOO_FAR,
    ProbeQuery,
    problem_with_sums,
    problem_with_tally,
    question_arrays,
    site_answer,
    sums_manifest,
    sums_of,
    tally_arrays,
    tally_of,
    told_tally,
)

COX = ProbeSpec(kind="cox", ridge=0.1)
MINIMUM = 3


def sites_of(seed: int, *, survival: bool) -> tuple[ProbeSpec, dict[str, SiteCases]]:
    sites = random_sites(np.random.default_rng(seed), classes=3, survival=survival, width=4, sites=4, cases=400)
    return (COX if survival else logistic_spec(sites)), sites


def largest(sites: dict[str, SiteCases]) -> SiteCases:
    return max(sites.values(), key=lambda cases: len(cases.group))


def first(spec: ProbeSpec, cases: SiteCases) -> ProbeQuestion:
    return first_question(spec, pool_tallies({"H1": site_tally(cases, spec.groups)}))


@pytest.mark.parametrize("survival", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_fit_over_what_travels_is_the_fit_over_sites(survival: bool, seed: int) -> None:
    spec, sites = sites_of(seed, survival=survival)
    tallies = {
        site: tally_of(tally_arrays({"task": site_tally(cases, spec.groups, MINIMUM)}), "task")
        for site, cases in sites.items()
    }
    assert not any(problem_with_tally("task", tally, MINIMUM, 400) for tally in tallies.values())

    def ask(question: ProbeQuestion) -> dict[str, Sums]:
        found = {}
        for site in contributors(tallies):
            arrays = site_answer(sites[site], question, MINIMUM)
            sums_manifest(question).check(site, arrays)
            assert not problem_with_sums(arrays)
            sums = sums_of(arrays)
            assert sums is not None
            found[site] = sums
        return found

    found, expected = fit_probe(spec, tallies, ask), fit_sites(spec, sites, MINIMUM)
    assert np.array_equal(found.optimum.coefficients, expected.optimum.coefficients)


@pytest.mark.parametrize("survival", [False, True])
def test_the_same_question_has_the_same_name_and_another_one_another(survival: bool) -> None:
    spec, sites = sites_of(0, survival=survival)
    question = first(spec, largest(sites))
    query = ProbeQuery(task="a", model="m", question=question)
    again = ProbeQuery(task="a", model="m", question=replace(question, mean=question.mean.copy()))
    assert query.digest == again.digest
    moved = replace(question, coefficients=question.coefficients + 1e-12)
    others = [
        replace(query, task="b"),
        replace(query, model="n"),
        replace(query, question=replace(question, derivatives=False)),
        replace(query, question=moved),
    ]
    assert len({query.digest, *(other.digest for other in others)}) == 5
    assert set(question_arrays(question)) == {"coefficients", "mean", "deviation", "classes"}


def odd_one_out(*, survival: bool) -> tuple[SiteCases, ProbeSpec]:
    """Twenty cases, and one that a large coefficient makes the only one that counts.

    Its hazard is all the hazard there is; or it alone lies on the wrong side of the classes.
    """
    if survival:
        features, months = np.append(np.linspace(-1, 1, 20), 3.0)[:, None], np.arange(1.0, 22)
        return SiteCases(features=features, group=np.arange(21) % 2, months=months), COX
    features = np.concatenate([np.full(10, -1.0), np.full(10, 1.0), [1.0]])[:, None]
    group = np.repeat([0, 1, 0], [10, 10, 1])
    return SiteCases(features=features, group=group), ProbeSpec(kind="logistic")


@pytest.mark.parametrize("survival", [False, True])
@pytest.mark.parametrize("derivatives", [False, True])
def test_a_question_that_makes_one_case_count_is_held_back(survival: bool, derivatives: bool) -> None:
    cases, spec = odd_one_out(survival=survival)
    question = replace(first(spec, cases), derivatives=derivatives)
    assert site_answer(cases, question, MINIMUM)["loss"][0] > 0
    aimed = np.zeros(question.coefficients.shape)
    aimed[0, 0] = 9.0
    aim = replace(question, coefficients=aimed)
    held = site_answer(cases, aim, MINIMUM)
    assert held["loss"][0] == HELD_BACK
    assert sums_of(held) is None
    assert not problem_with_sums(held)
    assert not any(value.any() for name, value in held.items() if name != "loss")
    assert site_answer(cases, aim, 1)["loss"][0] > 0, "a site that may count one case says so"


def test_coefficients_that_no_number_holds_are_said_to_be_too_large() -> None:
    cases, spec = odd_one_out(survival=True)
    question = first(spec, cases)
    answer = site_answer(cases, replace(question, coefficients=np.full((1, 1), 100.0)), 1)
    assert answer["loss"][0] == TOO_FAR
    assert not problem_with_sums(answer)
    sums = sums_of(answer)
    assert sums is not None
    assert sums.loss == np.inf


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"deviation": np.array([1e-3])}, "as no pooled cases would"),
        ({"mean": np.array([1e3])}, "as no pooled cases would"),
        ({"classes": (0, 2)}, "leaves out a class"),
    ],
)
def test_a_question_that_fits_no_pooled_cases_is_refused(change: dict[str, object], reason: str) -> None:
    cases, spec = odd_one_out(survival=False)
    with pytest.raises(ProbeError, match=reason):
        site_answer(cases, replace(first(spec, cases), **change), MINIMUM)  # type: ignore[arg-type]


def test_a_question_so_sharp_that_it_counts_the_cases_on_one_side_of_a_plane_is_held_back() -> None:
    draw = np.random.default_rng(0)
    cases = SiteCases(features=draw.normal(size=(80, 32)), group=np.arange(80) % 2)
    question = first(ProbeSpec(kind="logistic"), cases)
    aimed = draw.choice([-10.0, 10.0], question.coefficients.shape)
    sharp = replace(question, coefficients=aimed, deviation=question.deviation / 8)
    assert site_answer(cases, question, MINIMUM)["loss"][0] > 0
    assert site_answer(cases, sharp, MINIMUM)["loss"][0] == HELD_BACK


def test_the_optimum_of_classes_that_are_easy_to_tell_apart_is_answered() -> None:
    """A good model gives such embeddings: nearly all chances are 0 or 1 there, too."""
    draw, group = np.random.default_rng(1), np.arange(1200) % 2
    direction = draw.normal(size=64)
    features = draw.normal(size=(1200, 64)) + 4 * np.outer(group - 0.5, direction)
    sites = {f"H{n}": SiteCases(features=features[n::3], group=group[n::3]) for n in (1, 2, 0)}
    probe = fit_sites(ProbeSpec(kind="logistic"), sites, MINIMUM)
    chances = probe.probabilities(features)
    assert (chances * (1 - chances)).mean() < 4e-4
    for cases in sites.values():
        assert site_answer(cases, replace(probe.optimum, derivatives=True), MINIMUM)["loss"][0] > 0


def test_a_case_that_is_alone_with_its_features_is_told_neither_by_a_tally_nor_by_sums() -> None:
    features = np.random.default_rng(0).normal(scale=1e-3, size=(80, 4))
    features[7] = 1.0
    cases = SiteCases(features=features, group=np.arange(80) % 2)
    assert site_tally(cases, 2, MINIMUM).cases == 80
    assert not told_tally(cases, 2, MINIMUM).cases
    assert not told_tally(cases, 2, MINIMUM).mean.any()
    with pytest.raises(ProbeError, match="no sums leave"):
        site_answer(cases, first(ProbeSpec(kind="logistic"), cases), MINIMUM)
    assert told_tally(cases, 2, 1).cases == 80, "a site that may count one case tells"


def test_a_site_that_is_left_out_of_the_tally_tells_no_sums() -> None:
    cases, spec = odd_one_out(survival=False)
    assert not site_tally(cases, 2, 11).cases
    with pytest.raises(ProbeError, match="too small to be counted"):
        site_answer(cases, first(spec, cases), 11)
