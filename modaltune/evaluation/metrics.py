"""Metrics with bootstrap intervals over patients, vectorised over resamples.

n cases, C candidates, R weight rows: row 0 is all ones (the estimate), the others are bootstrap counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modaltune.seeds import numpy_generator

RESAMPLES = 1000
Floats = NDArray[np.float64]


def bootstrap_weights(cases: int, seed: int, *names: object) -> Floats:
    """``[1 + RESAMPLES, n]`` how often each patient is drawn; the first row counts everyone once."""
    generator = numpy_generator(seed, "bootstrap", *names)
    drawn = (
        generator.multinomial(cases, np.full(cases, 1 / cases), size=RESAMPLES) if cases else np.zeros((RESAMPLES, 0))
    )
    return np.concatenate([np.ones((1, cases)), drawn.astype(np.float64)])


def ratio(top: Floats, bottom: Floats) -> Floats:
    """Quotient of ``[R]`` rows; NaN where nothing was counted."""
    out: Floats = np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)
    return out


def share(top: Floats, bottom: Floats) -> Floats:
    """A quotient that cannot exceed 1; with weights, rounding can make it do so."""
    return np.minimum(ratio(top, bottom), 1.0)


def binary_auc(positive: NDArray[np.bool_], score: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve per weight row; ties count half; NaN with one class. -> ``[R]``."""
    above = score[positive][:, None] - score[~positive][None, :]
    wins = (above > 0) + 0.5 * (above == 0)
    w_positive, w_negative = weights[:, positive], weights[:, ~positive]
    top = ((w_positive @ wins) * w_negative).sum(axis=1)
    return share(top, w_positive.sum(axis=1) * w_negative.sum(axis=1))


def macro_auc(labels: NDArray[np.int64], probabilities: Floats, weights: Floats) -> Floats:
    """Mean of one-vs-rest areas over the classes; with two classes the plain area. -> ``[R]``."""
    classes = probabilities.shape[1]
    if classes == 2:
        return binary_auc(labels == 1, probabilities[:, 1], weights)
    areas = np.stack([binary_auc(labels == c, probabilities[:, c], weights) for c in range(classes)])
    defined = np.isfinite(areas[:, 0])
    return areas[defined].mean(axis=0) if defined.any() else np.full(len(weights), np.nan)


def balanced_accuracy(labels: NDArray[np.int64], predicted: NDArray[np.int64], weights: Floats) -> Floats:
    """Mean recall over the classes present; NaN with one class. -> ``[R]``."""
    present = np.unique(labels)
    if len(present) < 2:
        return np.full(len(weights), np.nan)
    recalls = []
    for value in present:
        inside = weights[:, labels == value]
        recalls.append(ratio(inside @ (predicted[labels == value] == value).astype(float), inside.sum(axis=1)))
    mean: Floats = np.mean(recalls, axis=0)
    return mean


def macro_f1(labels: NDArray[np.int64], predicted: NDArray[np.int64], weights: Floats) -> Floats:
    """Mean F1 over the classes that occur, as label or as prediction; NaN with one class of labels. -> ``[R]``."""
    if len(np.unique(labels)) < 2:
        return np.full(len(weights), np.nan)
    scores = []
    for value in np.union1d(labels, predicted):
        true, said = labels == value, predicted == value
        found = weights @ (true & said).astype(np.float64)
        scores.append(ratio(2 * found, weights @ (true.astype(np.float64) + said)))
    occur = np.isfinite(scores)
    return ratio(np.where(occur, scores, 0.0).sum(axis=0), occur.sum(axis=0).astype(np.float64))


def comparable_pairs(months: Floats, event: NDArray[np.bool_], risk: Floats) -> tuple[Floats, Floats]:
    """``[n, n]`` which pairs (earlier, later) can be compared, and how concordant each of them is (1, ½ or 0).

    A pair is comparable when the earlier time is a death; at equal times a death comes before a censoring. Ties in
    risk count half. Pairs of two deaths at the same time are not comparable.
    """
    earlier = (months[:, None] < months[None, :]) | ((months[:, None] == months[None, :]) & ~event[None, :])
    comparable = (event[:, None] & earlier).astype(np.float64)
    np.fill_diagonal(comparable, 0.0)
    return comparable, concordant_pairs(comparable, risk)


def concordant_pairs(comparable: Floats, score: Floats) -> Floats:
    """``[n, n]`` how concordant comparable pairs are: 1 where the first case has the higher score, ½ where both tie."""
    difference = score[:, None] - score[None, :]
    found: Floats = comparable * ((difference > 0) + 0.5 * (difference == 0))
    return found


def c_index(
    months: Floats, event: NDArray[np.bool_], risk: Floats, weights: Floats, importance: Floats | None = None
) -> Floats:
    """Harrell's concordance per weight row; risk higher = worse. -> ``[R]``, NaN without a comparable pair.

    Args:
        importance: ``[n]`` weight of the pairs in which a case is the earlier one; absent = 1.
    """
    comparable, concordant = comparable_pairs(months, event, risk)
    if importance is not None:
        comparable, concordant = comparable * importance[:, None], concordant * importance[:, None]
    return concordance(comparable, concordant, weights)


def concordance(comparable: Floats, concordant: Floats, weights: Floats) -> Floats:
    """Share of the ``[n, n]`` comparable pairs that are concordant, per weight row. -> ``[R]``, NaN without a pair."""
    top, bottom = (((weights @ pairs) * weights).sum(axis=1) for pairs in (concordant, comparable))
    return share(top, bottom)


@dataclass(frozen=True, kw_only=True)
class Score:
    """An estimate with its 95 % percentile interval over patients; None when undefined."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def summarise(rows: Sequence[Floats], cases: int) -> Score:
    """Mean over models of ``[R]`` metric rows; models without a defined estimate are left out."""
    defined = [row for row in rows if np.isfinite(row[0])]
    if not defined:
        return Score(value=None, low=None, high=None, n=cases)
    stacked = np.stack(defined)
    complete = stacked[:, np.isfinite(stacked).all(axis=0)].mean(axis=0)
    low, high = np.percentile(complete[1:], [2.5, 97.5]) if len(complete) > 1 else (np.nan, np.nan)
    bounds = [float(bound) if np.isfinite(bound) else None for bound in (low, high)]
    return Score(value=float(stacked[:, 0].mean()), low=bounds[0], high=bounds[1], n=cases)
