"""How far predicted probabilities can be believed.

n cases, C classes, R weight rows as in :mod:`modaltune.evaluation.metrics`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modaltune.evaluation.metrics import Floats, ratio

BINS = 10  # equal widths between 0 and 1


def brier(labels: NDArray[np.int64], probabilities: Floats, weights: Floats) -> Floats:
    """Half the squared distance between ``[n, C]`` probabilities and the truth: 0 to 1; NaN without a case. -> ``[R]``.

    The half makes it the usual score of the second class when there are two.
    """
    return ratio(weights @ brier_terms(labels, probabilities), weights.sum(axis=1))


def brier_terms(labels: NDArray[np.int64], probabilities: Floats) -> Floats:
    """Each case's part of the Brier score. -> ``[n]``."""
    truth = np.eye(probabilities.shape[1])[labels]
    terms: Floats = 0.5 * ((probabilities - truth) ** 2).sum(axis=1)
    return terms


def calibration_error(labels: NDArray[np.int64], probabilities: Floats, weights: Floats) -> Floats:
    """Expected calibration error: mean distance of confidence and accuracy over bins of confidence. -> ``[R]``.

    Confidence is the probability of the most probable class. With few cases a bin the error of a calibrated model is
    above zero too, and above the estimate in bootstrap resamples; compare it at equal n only.
    """
    confidence = probabilities.max(axis=1)
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    inside = bin_members(confidence)
    gaps = np.abs(weights @ (inside * (correct - confidence)[:, None]))
    return ratio(gaps.sum(axis=1), weights.sum(axis=1))


def calibration_curve(outcome: NDArray[np.bool_], chance: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean predicted chance, observed share and number of cases of every bin that has cases."""
    inside = bin_members(chance)
    count = inside.sum(axis=0)
    filled = count > 0
    predicted = (chance @ inside)[filled] / count[filled]
    observed = (outcome.astype(np.float64) @ inside)[filled] / count[filled]
    return predicted, observed, count[filled]


def bin_members(chance: Floats) -> Floats:
    """``[n, BINS]`` one where a chance lies in the bin."""
    inside: Floats = np.eye(BINS)[np.minimum((chance * BINS).astype(int), BINS - 1)]
    return inside
