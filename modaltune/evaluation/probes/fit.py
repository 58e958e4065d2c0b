"""A probe over sites: the coefficients that pooled cases would give, from answers that are sums.

n cases, F features, G groups, K classes with cases. Features are standardised by their pooled moments. Ridge:

- logistic, as scikit-learn's ``LogisticRegression(C=...)`` on standardised features: the summed loss plus half the
  squared coefficients divided by C; intercepts are not penalised. Two classes have one row, more have one each.
- Cox, as lifelines' ``CoxPHFitter(penalizer=..., l1_ratio=0)`` with ``strata`` = site: lifelines divides features by
  their deviation with n - 1 over all strata, and adds n times half the penalizer times the squared coefficients of
  those, n counting all rows, also in strata without a death.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from modaltune.errors import ProbeError
from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.probes.cox import cox_sums
from modaltune.evaluation.probes.logistic import log_probabilities, logistic_sums
from modaltune.evaluation.probes.newton import minimise
from modaltune.evaluation.probes.sums import SiteCases, Sums, Tally, contributors, pool_sums, pool_tallies, site_tally

C, PENALIZER = 1.0, 0.1
"""Ridge of the published evaluation."""
MOST_QUESTIONS = 40


@dataclass(frozen=True, kw_only=True)
class ProbeSpec:
    """What is fitted.

    Attributes:
        groups: classes, with or without cases; two (censored, died) for Cox.
        ridge: scikit-learn's C (infinite = none), or lifelines' penalizer (0 = none).
    """

    kind: Literal["logistic", "cox"]
    groups: int = 2
    ridge: float = C


@dataclass(frozen=True, kw_only=True)
class ProbeQuestion:
    """What sites are asked: coefficients ``[R, D]`` on features standardised by mean and deviation ``[F]``.

    Attributes:
        classes: those with cases somewhere, in order; others have no coefficients.
        derivatives: whether gradient and Hessian are wanted, or the loss only.
    """

    coefficients: Floats
    mean: Floats
    deviation: Floats
    classes: tuple[int, ...]
    derivatives: bool = True

    def standardised(self, features: Floats) -> Floats:
        """``[n, F]``; a feature that never varies becomes 0."""
        out: Floats = (features - self.mean) / np.where(self.deviation > 0, self.deviation, np.inf)
        return out


Ask = Callable[[ProbeQuestion], Mapping[str, Sums]]
"""Puts a question to the contributing sites; every one of them must answer."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A fitted probe.

    Attributes:
        optimum: the last question: coefficients, standardisation, classes.
        left_out: sites without a contribution: no case, or a group that is too small to be counted.
        questions: how many were asked of each site after the tally.
        loss: objective per case; unknown where the probe came from elsewhere.
    """

    spec: ProbeSpec
    optimum: ProbeQuestion
    left_out: tuple[str, ...] = ()
    questions: int = 0
    loss: float = math.nan

    def probabilities(self, features: Floats) -> Floats:
        """``[n, G]`` of a logistic probe; 0 for classes that no training case had."""
        out = np.zeros((len(features), self.spec.groups))
        found = log_probabilities(self.optimum.standardised(features), self.optimum.coefficients)
        out[:, list(self.optimum.classes)] = np.exp(found)
        return out

    def risk(self, features: Floats) -> Floats:
        """``[n]`` log hazard ratio to the mean case of a Cox probe (higher = worse)."""
        out: Floats = self.optimum.standardised(features) @ self.optimum.coefficients[0]
        return out


def hazard_ratios(probe: Probe) -> Floats:
    """``[F]`` log hazard ratios of a Cox probe per unit of the features as they came; 0 where one never varies."""
    deviation = probe.optimum.deviation
    out: Floats = probe.optimum.coefficients[0] / np.where(deviation > 0, deviation, np.inf)
    return out


def site_sums(cases: SiteCases, question: ProbeQuestion) -> Sums:
    """Answer of one site."""
    features = question.standardised(cases.features)
    if cases.months is not None:
        event = cases.group.astype(bool)
        return cox_sums(features, cases.months, event, question.coefficients[0], derivatives=question.derivatives)
    labels = np.searchsorted(np.asarray(question.classes), cases.group)
    return logistic_sums(features, labels, question.coefficients, derivatives=question.derivatives)


def fit_sites(spec: ProbeSpec, sites: Mapping[str, SiteCases], minimum: int = 1, needed: int = 0) -> Probe:
    """Fit over sites in memory; those with a group of too few cases contribute nothing.

    Deployed sites also hold back answers that few cases dominate, see :mod:`modaltune.federation.probe_query`.

    Args:
        minimum: smallest group of cases that a site counts.
        needed: contributing sites without which nothing is fitted.
    Raises:
        ProbeError: fewer sites contribute, or see :func:`fit_probe`.
    """
    tallies = {site: site_tally(cases, spec.groups, minimum) for site, cases in sites.items()}
    asked = contributors(tallies)
    if len(asked) < needed:
        raise ProbeError(f"{len(asked)} of {len(sites)} sites contribute, min_contributors = {needed}")
    return fit_probe(spec, tallies, lambda question: {site: site_sums(sites[site], question) for site in asked})


def fit_probe(spec: ProbeSpec, tallies: Mapping[str, Tally], ask: Ask, most_questions: int = MOST_QUESTIONS) -> Probe:
    """Fit by asking sites.

    Raises:
        ProbeError: one class, no death, or no optimum.
    """
    pooled = pool_tallies(tallies)
    first = first_question(spec, pooled)
    shape, penalty = first.coefficients.shape, _penalty(spec, first, pooled.cases)
    directions = _free_directions(shape)

    def question(coefficients: Floats, derivatives: bool) -> ProbeQuestion:
        return ProbeQuestion(
            coefficients=coefficients.reshape(shape),
            mean=first.mean,
            deviation=first.deviation,
            classes=first.classes,
            derivatives=derivatives,
        )

    def objective(coefficients: Floats, derivatives: bool) -> Sums:
        sums = pool_sums(ask(question(coefficients, derivatives)))
        loss = sums.loss / pooled.cases + 0.5 * float(penalty @ coefficients**2)
        if not derivatives or not len(sums.gradient):
            return Sums.loss_only(loss)
        gradient = sums.gradient / pooled.cases + penalty * coefficients
        return Sums(loss=loss, gradient=gradient, hessian=sums.hessian / pooled.cases + np.diag(penalty) + directions)

    found = minimise(objective, math.prod(shape), most_questions)
    left_out = tuple(sorted(set(tallies) - set(contributors(tallies))))
    optimum = question(found.coefficients, True)
    return Probe(spec=spec, optimum=optimum, left_out=left_out, questions=found.questions, loss=found.loss)


def first_question(spec: ProbeSpec, pooled: Tally) -> ProbeQuestion:
    """Coefficients zero, on the features as the pooled tally standardises them."""
    classes = tuple(int(group) for group in np.flatnonzero(pooled.counts))
    if spec.kind == "cox" and not pooled.counts[1]:
        raise ProbeError("no death among the training cases that the sites may count")
    if spec.kind == "logistic" and len(classes) < 2:
        raise ProbeError("one class only among the training cases that the sites may count")
    width = len(pooled.mean)
    rows = 1 if spec.kind == "cox" or len(classes) == 2 else len(classes)
    deviation = np.sqrt(pooled.squares / pooled.cases)
    constant = deviation <= 1e-12 * (1 + np.abs(pooled.mean))
    return ProbeQuestion(
        coefficients=np.zeros((rows, width + (spec.kind == "logistic"))),
        mean=pooled.mean,
        deviation=np.where(constant, 0.0, deviation),
        classes=classes,
    )


def _penalty(spec: ProbeSpec, first: ProbeQuestion, cases: float) -> Floats:
    """``[D]`` curvature that ridge adds to the objective per case."""
    out = np.zeros(first.coefficients.shape)
    if spec.kind == "cox":
        out[:] = spec.ridge * cases / max(cases - 1, 1.0)
    else:
        out[:, :-1] = 1 / (spec.ridge * cases)
    return out.ravel()


def _free_directions(shape: tuple[int, int]) -> Floats:
    """Curvature for what the loss cannot see: with three classes and more, the same shift of all their coefficients.

    The gradient has no part in that direction, so the steps stay as they are and the Hessian can be inverted.
    """
    rows, width = shape
    shift = np.ones((rows, rows)) if rows > 1 else np.zeros((1, 1))
    return np.asarray(np.kron(shift, np.eye(width)), dtype=np.float64)
