"""Cox regression: the partial likelihood of one site with Efron's correction for tied deaths.

n cases, F standardised features, e deaths at u distinct times. Risk sets do not reach beyond a site: each site is a
stratum with a baseline hazard of its own, so the likelihood of all sites is the sum of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.probes.sums import Sums

_WIDEST = 300.0  # log hazard ratios further apart than this are no model, and no numbers that float64 holds

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RiskSets:
    """Who is at risk when somebody dies; depends on times only, so it serves for many coefficients.

    Attributes:
        order: ``[n]`` cases by time; ``event`` and everything below is in this order.
        event: ``[n]`` True when death was observed.
        first: ``[u]`` at each time of death, the risk set is everybody from here on.
        tied: ``[e]`` which of these times a death belongs to.
        share: ``[e]`` Efron: of the deaths at that time, this share has left the risk set.
        passed: ``[n]`` times of death up to a case's own.
    """

    order: Indices
    event: NDArray[np.bool_]
    first: Indices
    tied: Indices
    share: Floats
    passed: Indices

    @classmethod
    def of(cls, months: Floats, event: NDArray[np.bool_]) -> RiskSets:
        """From follow-up ``[n]`` and whether death was observed ``[n]``."""
        order = np.argsort(months, kind="stable")
        months, event = months[order], event[order]
        times, tied, sizes = np.unique(months[event], return_inverse=True, return_counts=True)
        rank = np.arange(len(tied)) - (np.cumsum(sizes) - sizes)[tied]
        return cls(
            order=order,
            event=event,
            first=np.searchsorted(months, times),
            tied=tied,
            share=rank / sizes[tied],
            passed=np.searchsorted(times, months, side="right"),
        )

    def at_risk(self, hazard: Floats) -> Floats:
        """``[e, ...]`` sum over the risk set of each death, from ``[n, ...]`` in this order."""
        dying = np.zeros((len(self.first), *hazard.shape[1:]))
        np.add.at(dying, self.tied, hazard[self.event])
        share = self.share.reshape(-1, *[1] * (hazard.ndim - 1))
        out: Floats = np.cumsum(hazard[::-1], axis=0)[::-1][self.first][self.tied] - share * dying[self.tied]
        return out

    def expected_deaths(self, hazard: Floats, at_risk: Floats) -> Floats:
        """``[n]`` deaths that each case should have had until its own time, under the model."""
        deaths = np.bincount(self.tied, 1 / at_risk, minlength=len(self.first))
        exposure = np.concatenate([[0.0], np.cumsum(deaths)])[self.passed]
        exposure[self.event] -= np.bincount(self.tied, self.share / at_risk)[self.tied]
        out: Floats = hazard * exposure
        return out


def cox_gradient(features: Floats, sets: RiskSets, coefficients: Floats) -> Floats:
    """Gradient ``[F]`` of the negative log partial likelihood, without the rest; features in the order of the sets."""
    if not sets.event.any():
        return np.zeros(features.shape[1])
    score = features @ coefficients
    hazard = np.exp(score - score.max())
    out: Floats = features.T @ (sets.expected_deaths(hazard, sets.at_risk(hazard)) - sets.event)
    return out


def cox_sums(
    features: Floats, months: Floats, event: NDArray[np.bool_], coefficients: Floats, *, derivatives: bool = True
) -> Sums:
    """Negative log partial likelihood and its derivatives by the coefficients.

    Args:
        features: ``[n, F]`` standardised.
        months: ``[n]`` follow-up.
        event: ``[n]`` True when death was observed.
        coefficients: ``[F]`` log hazard ratios (higher = worse).
    """
    if not event.any():
        size = features.shape[1] if derivatives else 0
        return Sums(loss=0.0, gradient=np.zeros(size), hessian=np.zeros((size, size)))
    sets = RiskSets.of(months, event)
    features = features[sets.order]
    score = features @ coefficients
    score = score - score.max()  # cancels between deaths and risk sets
    if score.min() < -_WIDEST:
        return Sums.loss_only(np.inf)
    hazard = np.exp(score)
    at_risk = sets.at_risk(hazard)
    loss = float(np.log(at_risk).sum() - score[sets.event].sum())
    if not derivatives:
        return Sums.loss_only(loss)
    expected = sets.expected_deaths(hazard, at_risk)
    means = sets.at_risk(hazard[:, None] * features) / at_risk[:, None]  # [e, F] over each risk set
    hessian = features.T @ (expected[:, None] * features) - means.T @ means
    return Sums(loss=loss, gradient=features.T @ (expected - sets.event), hessian=(hessian + hessian.T) / 2)
