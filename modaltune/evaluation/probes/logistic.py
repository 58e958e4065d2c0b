"""Multinomial logistic regression: sums over the cases of one site.

n cases, F standardised features, K classes. With two classes the first is the reference and there is one row of
coefficients, as in scikit-learn; with more every class has its row. The last column is the intercept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.probes.sums import Sums


def logits(features: Floats, coefficients: Floats) -> Floats:
    """``[n, K]`` from ``[n, F]`` and ``[K, F + 1]`` (two classes: ``[1, F + 1]``)."""
    found: Floats = features @ coefficients[:, :-1].T + coefficients[:, -1]
    return np.hstack([np.zeros((len(found), 1)), found]) if len(coefficients) == 1 else found


def log_probabilities(features: Floats, coefficients: Floats) -> Floats:
    """``[n, K]`` log-probabilities of the classes."""
    found = logits(features, coefficients)
    out: Floats = found - logsumexp(found, axis=1, keepdims=True)
    return out


def logistic_sums(
    features: Floats, labels: NDArray[np.int64], coefficients: Floats, *, derivatives: bool = True
) -> Sums:
    """Negative log-likelihood of the labels and its derivatives by the coefficients, row by row.

    Args:
        features: ``[n, F]`` standardised.
        labels: ``[n]`` from 0 to K - 1.
        coefficients: ``[K, F + 1]`` (two classes: ``[1, F + 1]``).
    """
    found = log_probabilities(features, coefficients)
    loss = -float(found[np.arange(len(labels)), labels].sum())
    if not derivatives:
        return Sums.loss_only(loss)
    rows = len(coefficients)
    first = found.shape[1] - rows  # the reference class has no row
    design = np.hstack([features, np.ones((len(features), 1))])
    chance = np.exp(found[:, first:])
    observed = labels[:, None] == np.arange(first, first + rows)
    gradient = ((chance - observed).T @ design).ravel()
    width = design.shape[1]
    hessian = np.zeros((rows, width, rows, width))
    for a in range(rows):
        for b in range(a, rows):
            weight = chance[:, a] * ((a == b) - chance[:, b])
            hessian[a, :, b, :] = hessian[b, :, a, :] = (design * weight[:, None]).T @ design
    return Sums(loss=loss, gradient=gradient, hessian=hessian.reshape(rows * width, rows * width))
