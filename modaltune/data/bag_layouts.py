"""How tools note where patches lie, recognised from the attributes in a file.

=======  ===========================================================================================================
TRIDENT  ``coords`` in level-0 pixels; attributes give the patch edge in them and the magnifications
CLAM     the same; ``patch_size`` counts pixels of a pyramid level whose ``downsample`` leads to level 0
STAMP    ``coords`` in micrometres on a grid of ``tile_size_um``; each tile is ``tile_size_px`` pixels
plain    ``coords`` in level-0 pixels without attributes; the edge is stated for the site
=======  ===========================================================================================================

STAMP's positions become cells of its grid times ``tile_size_px``: the same cells as through the other layouts at any
scanner resolution, and the same pixels where level 0 has the resolution of the tiles.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modaltune.errors import FeatureFileError

_OFF_GRID = 0.1  # of a tile: what rounding to whole pixels moves neighbours, with room
_DRIFT = 0.01  # the same for each cell between two tiles
_DOUBTFUL = 1.25  # ratio of two statements about one length
_ONE_NUMBER = 1.01  # ratio of the two axes of one length
_LEAST = {"patch_size_level0": 1, "patch_size": 1, "downsample": 1, "tile_size_px": 1}
_MPP_AT_1X = 10.0  # micrometres per pixel times magnification, by convention
SUFFIXES = (".h5", ".hdf5", ".pt", ".pth")
"""How the names of feature files end where they are found by name."""
Attributes = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class BagSource:
    """What a feature file says about how it was made; None where it says nothing.

    Attributes:
        layout: TRIDENT, CLAM, STAMP or plain.
        dtype: numbers as stored, e.g. ``float16``.
        encoder: name of the patch encoder.
        patch_size: edge of a patch in pixels as the encoder saw it.
        mpp: micrometres per pixel of the patches; where a file states a magnification, 10 divided by it.
    """

    layout: str
    dtype: str
    encoder: str | None = None
    patch_size: int | None = None
    mpp: float | None = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the patches of a slide lie: ``coords [N, 2]`` and ``edge`` in one unit of pixels."""

    coords: NDArray[np.int64]
    edge: int
    source: BagSource


def place(
    coords: NDArray[np.generic], said: Attributes, *, dtype: str, edge: int | None = None, where: str
) -> Placement:
    """Read positions as the tool meant them.

    Args:
        coords: ``[N, 2]`` numbers as stored.
        said: the attributes of the file, of its features and of its coords.
        dtype: of the features.
        edge: patch edge in level-0 pixels, for files that do not state it.
        where: what messages call the file.
    Raises:
        FeatureFileError: the attributes are incomplete, contradict each other or the coordinates.
    """
    encoder = _name(said.get("encoder", said.get("extractor")))
    if "tile_size_um" in said or str(said.get("unit")) == "um":
        return _stamp(coords, said, dtype, encoder, where)
    layout, size, mpp = "plain", None, None
    if "patch_size_level0" in said:
        layout, edge = "TRIDENT", round(_number(said, "patch_size_level0", where))
        size, mpp = _trident_patch(said, edge, where)
    elif "patch_size" in said and "downsample" in said:
        downsample = int(_number(said, "downsample", where))  # CLAM steps by whole multiples: 4.0002 is 4
        layout, edge = "CLAM", round(_number(said, "patch_size", where)) * downsample
    if edge is None:
        raise FeatureFileError(
            f"{where}: no attribute 'patch_size_level0' of 'coords' gives the patch edge in level-0 pixels; set"
            " patch_size_level0 under [features] in site.toml to what the patches were cut with"
        )
    source = BagSource(layout=layout, dtype=dtype, encoder=encoder, patch_size=size, mpp=mpp)
    return Placement(coords=_whole(coords, where), edge=edge, source=source)


def _trident_patch(said: Attributes, edge: int, where: str) -> tuple[int | None, float | None]:
    """Patch edge as the encoder saw it, and its micrometres per pixel."""
    if "patch_size" not in said or "target_magnification" not in said:
        return None, None
    size, target = _number(said, "patch_size", where), _number(said, "target_magnification", where)
    if "level0_magnification" in said:
        wanted = size * _number(said, "level0_magnification", where) / target
        if not 1 / _DOUBTFUL < edge / wanted < _DOUBTFUL:
            raise FeatureFileError(
                f"{where}: patch_size_level0 is {edge} but patch_size and the magnifications make it {wanted:g};"
                " correct the slide's magnification and extract it again"
            )
    return round(size), _MPP_AT_1X / target


def _stamp(coords: NDArray[np.generic], said: Attributes, dtype: str, encoder: str | None, where: str) -> Placement:
    if str(said.get("feat_type", "tile")) != "tile":
        raise FeatureFileError(f"{where}: STAMP features of a whole slide or patient; expected those of its tiles")
    pitch = _number(said, "tile_size_um" if "tile_size_um" in said else "tile_size", where)
    size = round(_number(said, "tile_size_px", where)) if "tile_size_px" in said else math.ceil(pitch)
    if not np.isfinite(coords.astype(np.float64)).all():
        raise FeatureFileError(f"{where}: 'coords' hold NaN or infinity; extract this slide again")
    cells = np.stack([_cells(axis, pitch, where) for axis in coords.astype(np.float64).T], axis=1)
    mpp = pitch / size if "tile_size_px" in said else None
    source = BagSource(layout="STAMP", dtype=dtype, encoder=encoder, patch_size=size if mpp else None, mpp=mpp)
    return Placement(coords=cells * size, edge=size, source=source)


def _cells(micrometres: NDArray[np.float64], pitch: float, where: str) -> NDArray[np.int64]:
    """Grid cells along one axis.

    Tiles are cut at whole pixels of the slide, so that far from the origin positions drift from multiples of the
    pitch; steps between neighbours do not.
    """
    places, inverse = np.unique(micrometres, return_inverse=True)
    gaps = np.diff(places, prepend=0.0) / pitch
    steps = np.rint(gaps)
    if (np.abs(gaps - steps)[1:] > _OFF_GRID + _DRIFT * steps[1:]).any():
        raise FeatureFileError(
            f"{where}: 'coords' are not on a grid of tile_size_um = {pitch:g}; expected STAMP's micrometres without"
            " overlap. Extract this slide again"
        )
    out: NDArray[np.int64] = np.cumsum(steps).astype(np.int64)[inverse]
    return out


def _whole(coords: NDArray[np.generic], where: str) -> NDArray[np.int64]:
    with np.errstate(invalid="ignore"):
        values = coords.astype(np.int64)
    if not np.array_equal(values, coords):
        raise FeatureFileError(
            f"{where}: 'coords' are not whole numbers; expected level-0 pixels (STAMP's micrometres come with the"
            " attribute tile_size_um)"
        )
    return values


def _number(said: Attributes, name: str, where: str) -> float:
    """A positive attribute; of a pair, as CLAM writes for two axes, the mean."""
    value = np.asarray(said.get(name, ()))
    numeric = value.size in (1, 2) and np.issubdtype(value.dtype, np.number)
    low, high = (float(value.min()), float(value.max())) if numeric else (0.0, 0.0)
    if not (_LEAST.get(name, 0.0) <= low <= high <= _ONE_NUMBER * low and 0 < high < np.inf):
        raise FeatureFileError(f"{where}: attribute {name!r} must be one positive number")
    return (low + high) / 2


def _name(value: object) -> str | None:
    """An encoder's name for messages; anything longer or stranger is none."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if value is not None and re.fullmatch(r"[\w.+/:@-]{1,64}", text) else None
