"""What is too few to be told."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def has_small_group(counts: NDArray[Any], minimum: int) -> bool:
    """Whether a group has some cases, but fewer than the least that may be told."""
    return bool(((counts > 0) & (counts < minimum)).any())


def tells_small_counts(counts: NDArray[Any], minimum: int) -> bool:
    """Whether counts are no whole numbers, or one of them is neither none nor the least that may be told."""
    return bool(((counts < minimum) & (counts != 0)).any() or (counts != np.floor(counts)).any())
