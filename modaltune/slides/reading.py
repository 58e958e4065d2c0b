"""Whole-slide images through OpenSlide: what their header says, and pixels at a stated size.

Coordinates are level-0 pixels (x, y); sizes of tissue are micrometres; mpp is micrometres per pixel of level 0.
Messages name no file: slide names carry patient barcodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from openslide import OpenSlide, OpenSlideError, OpenSlideUnsupportedFormatError
from PIL import Image

from modaltune.errors import SlideError

PLAUSIBLE_MPP = (0.05, 10.0)
"""Headers outside were not written by a scanner: 72 dots per inch, for instance, is 353 micrometres."""

_BLOCK = 128  # overview pixels read at once: 4096 level-0 pixels of a 40x slide without pyramid, 64 MB
_LEVEL_TOLERANCE = 1.01  # a level of downsample 2.0005 serves a request for 2


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A slide's size and resolution.

    Attributes:
        width: of level 0, pixels.
        height: of level 0, pixels.
        mpp: micrometres per pixel of level 0.
        mpp_from: ``header`` or ``option``.
        magnification: objective power of level 0; 10 / mpp, rounded, where the header has none.
    """

    width: int
    height: int
    mpp: float
    mpp_from: str
    magnification: float


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what OpenSlide says about a file, on opening it or later, into one line without the file's name.

    Raises:
        SlideError: not a slide, damaged, or in a form that OpenSlide does not read.
    """
    try:
        yield
    except OpenSlideUnsupportedFormatError as error:
        raise SlideError("not a slide that OpenSlide knows; export it as SVS, pyramidal TIFF or DICOM") from error
    except (OpenSlideError, OSError) as error:
        said = str(error)
        for name in (path, path.with_suffix(""), path.parent, path.name, path.stem):  # MRXS has a folder beside it
            said = re.sub(rf"(?<!\w){re.escape(str(name))}(?!\w)", "the file", said)
        raise SlideError(f"cannot be read: {' '.join(said.split())}; copy or export it again") from error


def read_scan(slide: OpenSlide, slide_mpp: float | None) -> Scan:
    """Size and resolution of an open slide.

    Args:
        slide: the slide.
        slide_mpp: micrometres per pixel of a slide whose header has none that is plausible.
    Raises:
        SlideError: the resolution is unknown, or differs between x and y.
    """
    across, down = (_number(slide, f"openslide.mpp-{axis}") for axis in "xy")
    found = (across + down) / 2
    low, high = PLAUSIBLE_MPP
    if not low <= found <= high:
        if slide_mpp is None:
            problem = f"says {found:.1f}" if found else "has no"
            raise SlideError(
                f"the header {problem} micrometres per pixel, expected {low} to {high}; "
                "look it up at the scanner and give --slide-mpp (about 0.25 for 40x, 0.5 for 20x), or type --mpp where "
                "the patches have the same"
            )
        across = down = slide_mpp
    if abs(across - down) > 0.05 * across:
        raise SlideError(f"pixels are {across:.3f} x {down:.3f} micrometres, expected squares; export it again")
    mpp = (across + down) / 2
    width, height = slide.dimensions
    return Scan(
        width=width,
        height=height,
        mpp=mpp,
        mpp_from="header" if low <= found <= high else "option",
        magnification=_number(slide, "openslide.objective-power") or round(10 / mpp),
    )


def read_patch(slide: OpenSlide, x: int, y: int, edge: int, size: int) -> Image.Image:
    """The square of ``edge`` level-0 pixels at (x, y), as RGB of ``size`` pixels; nothing scanned is white."""
    level = slide.get_best_level_for_downsample(max(1.0, edge / size * _LEVEL_TOLERANCE))
    span = max(1, round(edge / slide.level_downsamples[level]))
    patch = _on_white(slide.read_region((x, y), level, (span, span)))
    return patch if span == size else patch.resize((size, size), Image.Resampling.LANCZOS)


def read_overview(slide: OpenSlide, scan: Scan, mpp: float) -> NDArray[np.uint8]:
    """The whole slide at about ``mpp`` micrometres a pixel, ``[H, W, 3]``, in memory that its size does not change."""
    width, height = (max(1, round(edge * scan.mpp / mpp)) for edge in (scan.width, scan.height))
    step_x, step_y = scan.width / width, scan.height / height
    level = slide.get_best_level_for_downsample(max(1.0, min(step_x, step_y) * _LEVEL_TOLERANCE))
    scale = slide.level_downsamples[level]
    out = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, _BLOCK):
        for left in range(0, width, _BLOCK):
            part = out[top : top + _BLOCK, left : left + _BLOCK]
            rows, columns = part.shape[:2]
            span = (max(1, round(columns * step_x / scale)), max(1, round(rows * step_y / scale)))
            region = slide.read_region((round(left * step_x), round(top * step_y)), level, span)
            part[:] = np.asarray(_on_white(region).resize((columns, rows), Image.Resampling.BOX))
    return out


def _number(slide: OpenSlide, name: str) -> float:
    """A number of the header; 0 when it is absent or no finite number."""
    try:
        value = float(slide.properties.get(name, 0))
    except ValueError:
        return 0.0
    return value if np.isfinite(value) else 0.0


def _on_white(region: Image.Image) -> Image.Image:
    """RGB of an RGBA region; what was not scanned is transparent there."""
    out = Image.new("RGB", region.size, "white")
    out.paste(region, mask=region.getchannel("A"))
    return out
