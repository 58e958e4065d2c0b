"""Standardisation with pooled statistics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

_CLIP = 8.0  # standardised values beyond this many deviations carry no more information


class Scale(BaseModel):
    """Pooled mean and standard deviation; a deviation of 0 means the value never varies and becomes 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """``[..., n]`` values -> standardised and clipped, float32."""
        deviation = np.asarray(self.deviation)
        scaled = values - np.asarray(self.mean)
        scaled /= np.where(deviation > 0, deviation, np.inf)
        out: NDArray[np.float32] = np.clip(scaled, -_CLIP, _CLIP, out=scaled).astype(np.float32)
        return out
