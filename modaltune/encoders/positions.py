"""Sine-cosine positions of patches on the slide grid, computed on demand (no table)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modaltune.errors import FeatureFileError


def grid_cells(coords: NDArray[np.int64], patch_size_level0: int, grid: int, where: str) -> NDArray[np.int64]:
    """Grid cell of each patch.

    Args:
        coords: ``[N, 2]`` level-0 pixels (x, y).
        patch_size_level0: edge of a patch in level-0 pixels.
        grid: cells per side that the slide encoder knows.
        where: what to name in an error (a file, never a patient).
    Returns:
        ``[N, 2]`` cells (from x, from y), each in ``[0, grid)``.
    """
    cells = coords // patch_size_level0
    if len(cells) and (cells.min() < 0 or cells.max() >= grid):
        raise FeatureFileError(
            f"{where}: patch coordinates reach cell {int(cells.max())} (smallest {int(cells.min())}) but the slide"
            f" encoder's grid is 0..{grid - 1}; check the unit of coords and patch_size_level0"
        )
    return cells


def _sine_cosine(cell: Tensor, width: int) -> Tensor:
    """``[..., ]`` cells -> ``[..., width]``: sines then cosines, in float64."""
    frequency = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64, device=cell.device) / (width / 2))
    angle = cell.double().unsqueeze(-1) * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def position_embedding(cells: Tensor, width: int) -> Tensor:
    """Embedding of grid cells.

    Args:
        cells: ``[..., 2]`` integer cells; the reference calls the first one row, the second one column.
        width: D, divisible by 4.
    Returns:
        ``[..., D]`` float32, column half first.
    """
    row, column = cells[..., 0], cells[..., 1]
    return torch.cat([_sine_cosine(column, width // 2), _sine_cosine(row, width // 2)], dim=-1).float()
