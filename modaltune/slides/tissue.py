"""Where the tissue is, and which patches of a regular grid hold enough of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from modaltune.slides.reading import Scan

MASK_MPP = 8.0
"""Micrometres per pixel of the overview that the mask is made on."""

THRESHOLD = (0.05, 0.15)
"""Bounds of Otsu's threshold of the saturation: glass stays below them, stained tissue lies above."""

DARKEST = 0.15
"""Brightness below which a pixel is pen, edge or fold, not tissue."""

SMALLEST_MM2 = 0.01
"""Specks below this area (a square of 100 micrometres) are dust."""

MIN_TISSUE = 0.25
"""Share of a patch that has to be tissue."""


def tissue_mask(overview: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
    """Coloured, redder than green, not black, not a speck: Otsu's threshold of the saturation of a smoothed overview.

    Haematoxylin, eosin and DAB all absorb green more than red; green pen does not, blue pen hardly.

    Args:
        overview: RGB ``[H, W, 3]``.
        mpp: its micrometres per pixel.
    Returns:
        ``[H, W]`` True where there is tissue. Red, violet and some blue pen counts as tissue.
    """
    smooth = ndimage.gaussian_filter(overview.astype(np.float32) / 255, sigma=(1, 1, 0))
    brightest, darkest = smooth.max(axis=2), smooth.min(axis=2)
    saturation = (brightest - darkest) / np.maximum(brightest, 1e-6)
    mask = (saturation > np.clip(_otsu(saturation), *THRESHOLD)) & (brightest > DARKEST)
    mask &= smooth[..., 0] > smooth[..., 1]
    mask = ndimage.binary_closing(mask, iterations=2) | mask
    pieces, _ = ndimage.label(mask)
    areas = np.bincount(pieces.ravel()) * (mpp / 1000) ** 2
    areas[0] = 0  # what is not tissue
    return np.asarray(areas[pieces] >= SMALLEST_MM2)


def tissue_patches(mask: NDArray[np.bool_], scan: Scan, edge: int) -> NDArray[np.int64]:
    """Top-left corners ``[N, 2]`` (x, y), row by row, of the whole patches with at least ``MIN_TISSUE`` of tissue.

    The grid starts at (0, 0) and its step is the patch, so that scans of one glass at 20x and 40x share their cells.

    Args:
        mask: ``[H, W]`` over the whole slide.
        scan: size of the slide.
        edge: of a patch, level-0 pixels.
    """
    rows = _borders(scan.height, edge, mask.shape[0])
    columns = _borders(scan.width, edge, mask.shape[1])
    total = np.pad(mask, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.int64).cumsum(axis=1)  # tissue above and left of
    corners = total[np.ix_(rows, columns)]
    tissue = corners[1:, 1:] - corners[:-1, 1:] - corners[1:, :-1] + corners[:-1, :-1]
    area = np.outer(np.diff(rows), np.diff(columns))
    row, column = np.nonzero(tissue >= MIN_TISSUE * np.maximum(area, 1))
    return np.stack([column, row], axis=1).astype(np.int64) * edge


def _borders(length: int, edge: int, pixels: int) -> NDArray[np.int64]:
    """Borders of the whole patches along one side, in mask pixels."""
    return np.rint(np.arange(length // edge + 1) * edge * pixels / length).astype(np.int64)


def _otsu(values: NDArray[np.float32]) -> float:
    """The threshold with the largest variance between the two classes (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=256, range=(0.0, 1.0))
    centres = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()
    above = below[-1] - below
    sums = (counts * centres).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = sums / below - (sums[-1] - sums) / above
    return float(centres[np.argmax(np.nan_to_num(below * above * distance**2, posinf=0.0))])
