"""Cox regression: the partial likelihood of one site with Efron's correction for tied deaths.

n cases, F standardised features, e deaths. Risk sets do not reach beyond a site: each site is a stratum with a
baseline hazard of its own, so the likelihood of all sites is the sum of theirs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.probes.sums import Sums

_WIDEST = 300.0  # log hazard ratios further apart than this are no model, and no numbers that float64 holds


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
    order = np.argsort(months, kind="stable")
    features, months, event = features[order], months[order], event[order]
    score = features @ coefficients
    score = score - score.max()  # cancels between deaths and risk sets
    if score.min() < -_WIDEST:
        return Sums.loss_only(np.inf)
    hazard = np.exp(score)
    times, tied, sizes = np.unique(months[event], return_inverse=True, return_counts=True)
    rank = np.arange(len(tied)) - (np.cumsum(sizes) - sizes)[tied]
    share = rank / sizes[tied]  # Efron: of the tied deaths, this share has left the risk set
    first = np.searchsorted(months, times)  # the risk set is everybody from here on
    at_risk = _from_end(hazard)[first][tied] - share * np.bincount(tied, hazard[event])[tied]
    loss = float(np.log(at_risk).sum() - score[event].sum())
    if not derivatives:
        return Sums.loss_only(loss)
    weighted = hazard[:, None] * features
    dying = np.zeros((len(times), features.shape[1]))
    np.add.at(dying, tied, weighted[event])
    means = (_from_end(weighted)[first][tied] - share[:, None] * dying[tied]) / at_risk[:, None]  # [e, F]
    exposure = np.concatenate([[0.0], np.cumsum(np.bincount(tied, 1 / at_risk))])
    weight = exposure[np.searchsorted(times, months, side="right")]
    weight[event] -= np.bincount(tied, share / at_risk)[tied]
    hessian = features.T @ (weighted * weight[:, None]) - means.T @ means
    return Sums(loss=loss, gradient=(means - features[event]).sum(axis=0), hessian=(hessian + hessian.T) / 2)


def _from_end(values: Floats) -> Floats:
    """Sums from each row to the last."""
    out: Floats = np.cumsum(values[::-1], axis=0)[::-1]
    return out
