"""Pictures to look at: the slide, the outline of its tissue mask and the patches that were taken."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from openslide import OpenSlide
from PIL import Image, ImageDraw
from scipy import ndimage

from modaltune.slides.reading import Scan, read_overview

LONGEST_EDGE = 1536
_OUTLINE = (0, 160, 60)
_GRID = (20, 60, 220)


def thumbnail_png(slide: OpenSlide, scan: Scan, mask: NDArray[np.bool_], coords: NDArray[np.int64], edge: int) -> bytes:
    """A PNG of the slide with the mask outlined in green and the patches in blue.

    Args:
        slide: the open slide.
        scan: its size and resolution.
        mask: ``[H, W]`` tissue over the whole slide.
        coords: ``[N, 2]`` top-left corners of the patches, level-0 pixels.
        edge: of a patch, level-0 pixels.
    """
    picture = read_overview(slide, scan, scan.mpp * max(1.0, max(scan.width, scan.height) / LONGEST_EDGE))
    height, width = picture.shape[:2]
    large = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    picture[large & ~ndimage.binary_erosion(large, iterations=2)] = _OUTLINE
    image = Image.fromarray(picture)
    draw, scale = ImageDraw.Draw(image), np.array([width / scan.width, height / scan.height])
    for corner in coords:
        left, top = corner * scale
        right, bottom = (corner + edge) * scale
        draw.rectangle((left, top, right - 1, bottom - 1), outline=_GRID)
    out = BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()
