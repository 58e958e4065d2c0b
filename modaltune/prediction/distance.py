"""How far a case lies from the training data: a check for wrong units and wrong encoders, no more.

Inputs are standardised with the pooled mean and deviation of the training cases, so their mean square is 1 over these.
Standardised values are clipped at 8, see :mod:`modaltune.data.scale`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modaltune.data.batch import CaseTensors
from modaltune.data.preprocessing import Preprocessing

OUTLIER = 5.0
"""Pooled standard deviations beyond which one gene's value counts as an outlier."""
MOST_OUTLIERS = 0.05
"""Share of outliers above which a case is far."""
FARTHEST = 2.0
"""Root mean square of the standardised values above which a case is far; 1 is usual."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Root mean squares and share of outliers of one case; NaN where it has nothing, or nothing was standardised."""

    expression: float
    outliers: float
    slides: float

    @property
    def far(self) -> bool:
        """Whether the case lies far from the training data; comparisons with NaN are False."""
        return self.outliers > MOST_OUTLIERS or self.expression > FARTHEST or self.slides > FARTHEST


def distance_of(case: CaseTensors, preprocessing: Preprocessing, measured: NDArray[np.bool_]) -> Distance:
    """Distance of a case whose patches are in memory.

    Args:
        measured: ``[G]`` which genes of the panel the site measures.
    """
    expression, outliers, slides = math.nan, math.nan, math.nan
    if case.has_expression and preprocessing.expression is not None:
        varies = np.asarray(preprocessing.expression.deviation) > 0
        values = case.expression.numpy()[: len(measured)][measured & varies]
        if len(values):
            expression, outliers = _rms(values), float((np.abs(values) > OUTLIER).mean())
    if len(case.patches) and preprocessing.patches is not None:
        slides = _rms(case.patches.numpy())
    return Distance(expression=expression, outliers=outliers, slides=slides)


def _rms(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))
