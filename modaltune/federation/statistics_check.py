"""Whether sums of the preprocessing round are those of some cases: asked before they leave, and before they count."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from modaltune.federation.statistics import Sums
from modaltune.federation.study import Study
from modaltune.suppression import tells_small_counts

_LARGEST = 1e12
"""Of a single measurement."""
_ROUNDING = 1e-9
_FAR, _FARTHEST = 30.0, 1e4
"""How many usual deviations half the measurements of a site, or one of them, may lie from the other sites'."""


def problem_with_statistics(sums: Sums, study: Study, minimum: int, most_cases: int) -> str:
    """What is wrong with sums that otherwise fit their manifest; empty = they may leave, and count.

    Args:
        minimum: smallest number of cases that may be told.
        most_cases: training cases that the site may have.
    """
    survival = {f"labels.{task.name}" for task in study.tasks if task.kind == "survival"}
    cases = sums["cases"]
    if (cases < 0).any() or tells_small_counts(cases, minimum):
        return f"cases is no number, or below {minimum}"
    if cases[0] > most_cases:
        return "cases is above the number that it may be"
    for name, values in sums.items():
        if name.startswith("labels.") or name.endswith(".count"):
            counts = values.sum(keepdims=True) if name in survival else values
            whole = (values >= 0).all() and (values == np.floor(values)).all()
            if not whole or tells_small_counts(counts, minimum):
                return f"{name} counts fewer than {minimum} cases"
            largest = values.sum() if name.startswith("labels.") else values.max(initial=0)
            if name != "patches.count" and largest > cases[0]:
                return f"{name} counts more cases than there are"
        if name.endswith(".count") and (problem := _problem_with_moments(name.removesuffix(".count"), sums)):
            return problem
    return ""


def problems_beside_others(replies: Mapping[str, Sums]) -> dict[str, str]:
    """Sites whose measurements are of another size than everybody's, in another unit or made up: site -> what is wrong.

    The mean and deviation of each measurement are held against the medians over sites. Three sites are needed to tell.
    """
    out: dict[str, str] = {}
    counted = [name.removesuffix(".count") for name in next(iter(replies.values()), {}) if name.endswith(".count")]
    for group in counted:
        holders = sorted(site for site, sums in replies.items() if sums[f"{group}.count"].any())
        if len(holders) < 3:
            continue
        means, spreads = np.moveaxis(np.array([_mean_and_spread(replies[site], group) for site in holders]), 1, 0)
        shared = (~np.isnan(means)).sum(axis=0) > 2
        if not shared.any():
            continue
        means, spreads = means[:, shared], spreads[:, shared]
        usual = np.nanmedian(spreads, axis=0)
        usual = np.maximum(usual, np.nanmedian(usual))
        off = np.maximum(np.abs(means - np.nanmedian(means, axis=0)), spreads) / np.where(usual > 0, usual, np.inf)
        for site, distances in zip(holders, off, strict=True):
            known = distances[~np.isnan(distances)]
            if len(known) and (np.median(known) > _FAR or known.max() > _FARTHEST):
                out.setdefault(site, f"{group} is of another size than at the other sites; is it in the study's unit?")
    return out


def _mean_and_spread(sums: Sums, group: str) -> NDArray[np.float64]:
    """``[2, F]``; not-a-number for what the site did not measure."""
    total, squares = sums[f"{group}.sum"], sums[f"{group}.squares"]
    count = np.broadcast_to(sums[f"{group}.count"], total.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(count > 0, total / count, np.nan)
        return np.stack([mean, np.sqrt(np.maximum(squares / count - mean**2, 0))])


def _problem_with_moments(group: str, sums: Sums) -> str:
    """Sums are of something: nothing where nobody was counted, and as Cauchy and Schwarz want them elsewhere."""
    total, squares = sums[f"{group}.sum"], sums[f"{group}.squares"]
    count = np.broadcast_to(sums[f"{group}.count"], total.shape)
    if ((count <= 0) & ((total != 0) | (squares != 0))).any():
        return f"{group} has sums of no cases"
    if ((squares > count * _LARGEST**2) | (np.abs(total) > count * _LARGEST)).any():
        return f"{group} has sums beyond {_LARGEST:g} a case"
    if (squares * count * (1 + _ROUNDING) < total**2).any():
        return f"{group} has sums that no cases have"
    return ""
