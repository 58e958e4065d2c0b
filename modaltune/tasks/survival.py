"""Event times as bins: edges from a pooled histogram, never from one patient's time.

Times are months. A histogram counts observed deaths in cells of fixed width, the last cell open.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CELL_MONTHS = 3.0
CELLS = 80  # 0-240 months; later deaths fall into the last cell


def event_histogram(months: NDArray[np.float64], event: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Observed deaths per cell: ``[cases]`` months and event -> ``[CELLS]`` counts."""
    cell = np.minimum((months[event] / CELL_MONTHS).astype(int), CELLS - 1)
    return np.bincount(cell, minlength=CELLS).astype(np.float64)


def bin_edges(histogram: NDArray[np.float64], bins: int) -> tuple[float, ...]:
    """Inner edges that share the deaths equally: ``bins - 1`` increasing months; outer bins are open.

    Edges lie inside a cell by linear interpolation. Returns () when there are fewer deaths than bins.
    """
    total = histogram.sum()
    if total < bins:
        return ()
    cumulative = np.concatenate([[0.0], histogram.cumsum()])
    grid = np.arange(CELLS + 1) * CELL_MONTHS
    wanted = np.arange(1, bins) * total / bins
    edges = np.interp(wanted, cumulative + np.arange(CELLS + 1) * 1e-9, grid)
    return tuple(float(edge) for edge in edges)


def bin_times(histogram: NDArray[np.float64], edges: tuple[float, ...]) -> tuple[float, ...]:
    """Mean death time of each bin in months, from cell centres; increasing."""
    centres = (np.arange(CELLS) + 0.5) * CELL_MONTHS
    index = np.searchsorted(np.asarray(edges), centres, side="right")
    bounds = [0.0, *edges, CELLS * CELL_MONTHS]
    means = []
    for number in range(len(edges) + 1):
        weight = histogram[index == number]
        middle = (bounds[number] + bounds[number + 1]) / 2
        mean = float((weight * centres[index == number]).sum() / weight.sum()) if weight.sum() else middle
        means.append(float(np.clip(mean, bounds[number], bounds[number + 1])))
    return tuple(means)


def time_bin(months: float, edges: tuple[float, ...]) -> int:
    """Bin that contains a time: 0 is the earliest."""
    return int(np.searchsorted(np.asarray(edges), months, side="right"))
