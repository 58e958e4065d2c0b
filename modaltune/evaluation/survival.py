"""Survival scored at fixed times and with weights for censoring (IPCW), and groups of predicted risk.

n cases, R weight rows as in :mod:`modaltune.evaluation.metrics`; times in months; risk higher = worse.

A case censored early cannot be judged later on. Those still under observation stand for it: they weigh one over the
chance of being observed so long. That chance is estimated on training cases only, except where a model is scored on
cases of other hospitals (``modaltune evaluate``): there on those themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modaltune.data.follow_up import follow_up_columns
from modaltune.evaluation.metrics import Floats, binary_auc, c_index, ratio

LEAST_OBSERVED = 0.1  # later than this share of training cases is followed, weights say more than cases
_DEATHS_FOR_TERTILES = 30


@dataclass(frozen=True, kw_only=True)
class Censoring:
    """Kaplan-Meier estimate of the chance to be still under observation.

    Attributes:
        times: ``[k]`` distinct follow-up times of the cases that it was estimated on, increasing.
        observed: ``[k]`` that chance right after each of them.
    """

    times: Floats
    observed: Floats

    @classmethod
    def of(cls, months: Floats, event: NDArray[np.bool_]) -> Censoring:
        """Estimate from follow-up; at equal times a death comes before a censoring."""
        times, position = np.unique(months, return_inverse=True)
        deaths = np.bincount(position, weights=event, minlength=len(times))
        censored = np.bincount(position, weights=~event, minlength=len(times))
        at_risk = (deaths + censored)[::-1].cumsum()[::-1] - deaths
        stay = 1 - np.divide(censored, at_risk, out=np.zeros(len(times)), where=at_risk > 0)
        return cls(times=times, observed=np.cumprod(stay))

    @classmethod
    def of_training(cls, tables: Iterable[pd.DataFrame], tasks: Iterable[str]) -> dict[str, Censoring]:
        """Estimate from the training cases of cohorts' case tables, for each survival task."""
        return cls.of_cases([table[table["split"] == "train"] for table in tables], tasks)

    @classmethod
    def of_cases(cls, tables: Sequence[pd.DataFrame], tasks: Iterable[str]) -> dict[str, Censoring]:
        """Estimate from every followed case of cohorts' case tables, for each survival task."""
        return {task: cls._of_task(tables, task) for task in tasks}

    @classmethod
    def _of_task(cls, tables: Sequence[pd.DataFrame], task: str) -> Censoring:
        columns = list(follow_up_columns(task))
        known = [table[columns].dropna() for table in tables if {*columns} <= set(table.columns)]
        months, event = pd.concat(known).to_numpy(np.float64).T if known else np.zeros((2, 0))
        return cls.of(months, event > 0)

    def before(self, months: Floats) -> Floats:
        """Chance of being observed until just before each time."""
        return self._step(months, "left")

    def after(self, months: Floats) -> Floats:
        """Chance of being observed beyond each time."""
        return self._step(months, "right")

    def covers(self, months: Floats) -> NDArray[np.bool_]:
        """Whether enough training cases are followed up to each time to weigh by."""
        last = self.times[-1] if len(self.times) else -np.inf
        inside: NDArray[np.bool_] = (months <= last) & (self.before(months) >= LEAST_OBSERVED)
        return inside

    def _step(self, months: Floats, side: str) -> Floats:
        index = np.searchsorted(self.times, months, side=side)  # type: ignore[call-overload]
        out: Floats = np.concatenate([[1.0], self.observed])[index]
        return out


def c_index_ipcw(
    months: Floats, event: NDArray[np.bool_], risk: Floats, censoring: Censoring, weights: Floats
) -> Floats:
    """Uno's concordance: what Harrell's would be without censoring. -> ``[R]``, NaN without a comparable pair.

    Pairs whose earlier time lies beyond the training cases' follow-up are left out (Uno's tau). DOI 10.1002/sim.4154.
    """
    return c_index(months, event, risk, weights, importance=_per_death(months, event, censoring) ** 2)


def auc_at(
    horizon: float,
    months: Floats,
    event: NDArray[np.bool_],
    risk: Floats,
    censoring: Censoring,
    weights: Floats,
) -> Floats:
    """Cumulative/dynamic area: deaths up to the horizon against cases alive after it. -> ``[R]``, NaN if undefined."""
    dead, alive = event & (months <= horizon), months > horizon
    if not _usable(censoring, horizon):
        return np.full(len(weights), np.nan)
    inside = dead | alive
    importance = np.where(dead, _per_death(months, event, censoring), 1.0)
    return binary_auc(dead[inside], risk[inside], (weights * importance)[:, inside])


def brier_at(
    horizon: float,
    months: Floats,
    event: NDArray[np.bool_],
    survival: Floats,
    censoring: Censoring,
    weights: Floats,
) -> Floats:
    """Squared error of the predicted survival at the horizon (Graf's score). -> ``[R]``, NaN if undefined.

    Args:
        survival: ``[n]`` predicted chance of being alive at the horizon.
    """
    dead, alive = event & (months <= horizon), months > horizon
    if not _usable(censoring, horizon) or not np.isfinite(survival).all():
        return np.full(len(weights), np.nan)
    still = censoring.after(np.array([horizon]))[0]
    error = dead * survival**2 * _per_death(months, event, censoring) + alive * (1 - survival) ** 2 / still
    return ratio(weights @ error, weights.sum(axis=1))


def survival_at(horizon: float, probabilities: Floats, edges: Sequence[float]) -> Floats:
    """Chance ``[n]`` of being alive at the horizon, from probabilities ``[n, S]`` of dying in each time bin.

    Linear inside a bin; NaN after the last inner edge, where the bins say no more than "later".

    Args:
        edges: ``S - 1`` inner edges in months.
    """
    if not edges or horizon > edges[-1]:
        return np.full(len(probabilities), np.nan)
    grid = np.concatenate([[0.0], edges])
    alive = 1 - np.concatenate([np.zeros((len(probabilities), 1)), probabilities.cumsum(axis=1)[:, :-1]], axis=1)
    right = max(1, int(np.searchsorted(grid, horizon)))
    share = (horizon - grid[right - 1]) / (grid[right] - grid[right - 1])
    out: Floats = alive[:, right - 1] * (1 - share) + alive[:, right] * share
    return out


def risk_cuts(risk: Floats, event: NDArray[np.bool_]) -> tuple[float, ...]:
    """Cut points of training risks: tertiles, or the median when fewer than 30 training cases died."""
    if len(risk) == 0:
        return ()
    shares = (1 / 3, 2 / 3) if event.sum() >= _DEATHS_FOR_TERTILES else (0.5,)
    return tuple(float(cut) for cut in np.quantile(risk, shares))


def risk_groups(risk: Floats, cuts: Sequence[float]) -> NDArray[np.int64]:
    """Group of each case: 0 = lowest risk."""
    return np.searchsorted(np.asarray(cuts), risk, side="left").astype(np.int64)


def logrank_p(months: Floats, event: NDArray[np.bool_], groups: NDArray[np.int64]) -> float | None:
    """Log-rank p of the hypothesis that all groups have one survival curve; None with one group or without a death."""
    from lifelines.statistics import multivariate_logrank_test  # slow to load, and hospitals never need it

    if len(np.unique(groups)) < 2 or not event.any():
        return None
    p = float(multivariate_logrank_test(months, groups, event).p_value)
    return p if np.isfinite(p) else None


def _per_death(months: Floats, event: NDArray[np.bool_], censoring: Censoring) -> Floats:
    """One over the chance of having been observed until the death; 0 for censored cases and beyond the follow-up."""
    usable = event & censoring.covers(months)
    out: Floats = np.divide(1.0, censoring.before(months), out=np.zeros(len(months)), where=usable)
    return out


def _usable(censoring: Censoring, horizon: float) -> bool:
    at = np.array([horizon])
    return bool(censoring.covers(at)[0] and censoring.after(at)[0] >= LEAST_OBSERVED)
