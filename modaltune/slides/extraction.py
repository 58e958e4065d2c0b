"""One slide to one bag: mask, grid, pixels read by several processes, features in the order of the grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openslide import OpenSlide
from torch.utils.data import DataLoader, Dataset

from modaltune.data.cohort import Bag
from modaltune.errors import SlideError
from modaltune.slides.patch_encoder import PatchEncoder
from modaltune.slides.reading import Scan, read_overview, read_patch, read_scan, reading
from modaltune.slides.thumbnails import thumbnail_png
from modaltune.slides.tissue import MASK_MPP, tissue_mask, tissue_patches

UPSAMPLING_LIMIT = 1.1
"""A target finer than the slide by more than this would invent detail."""


@dataclass(frozen=True, kw_only=True)
class Patches:
    """What patches to cut.

    Attributes:
        mpp: micrometres per pixel of a patch.
        size: edge of a patch in those pixels.
        slide_mpp: micrometres per level-0 pixel of slides whose header has none; kept bags must have it too.
        assumed_mpp: the same where ``slide_mpp`` is not given; not held against kept bags.
        upsample: whether slides coarser than ``mpp`` are enlarged; refused otherwise.
    """

    mpp: float = 0.5
    size: int = 256
    slide_mpp: float | None = None
    assumed_mpp: float | None = None
    upsample: bool = False

    def edge(self, scan: Scan) -> int:
        """Edge of a patch in level-0 pixels of a slide.

        Raises:
            SlideError: the slide is coarser than the patches, or smaller than one.
        """
        if scan.mpp > UPSAMPLING_LIMIT * self.mpp and not self.upsample:
            raise SlideError(
                f"scanned at {scan.mpp:.3f} micrometres per pixel, coarser than the {self.mpp} asked for; "
                "give a larger --mpp for all slides, or --upsample"
            )
        edge = round(self.size * self.mpp / scan.mpp)
        if edge > min(scan.width, scan.height):
            raise SlideError(f"{scan.width} x {scan.height} pixels hold no patch of {edge}; not a whole slide?")
        return edge


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How patches are read: by ``workers`` processes (0: by this one), ``batch`` patches at a time."""

    workers: int
    batch: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the patches of one slide lie, and the picture of it."""

    scan: Scan
    edge: int
    coords: NDArray[np.int64]
    picture: bytes


def lay_out(path: Path, patches: Patches) -> Layout:
    """Find the tissue of a slide and its patches.

    Raises:
        SlideError: unreadable, of unknown or too coarse resolution.
    """
    with reading(path), OpenSlide(path) as slide:
        scan = read_scan(slide, patches.slide_mpp or patches.assumed_mpp)
        edge = patches.edge(scan)
        mask = tissue_mask(read_overview(slide, scan, MASK_MPP), MASK_MPP)
        coords = tissue_patches(mask, scan, edge)
        return Layout(scan=scan, edge=edge, coords=coords, picture=thumbnail_png(slide, scan, mask, coords, edge))


def encode_patches(
    path: Path, layout: Layout, patches: Patches, pace: Pace, encoder: PatchEncoder, say: Callable[[int], None]
) -> Bag:
    """The bag of a slide; ``say`` is told the number of patches after each batch.

    Raises:
        SlideError: no tissue, a region cannot be read, or features are not finite.
    """
    if not len(layout.coords):
        raise SlideError("no tissue found; look at its thumbnail")
    features = []
    for pixels in _batches(path, layout, patches, pace, encoder):
        features.append(encoder.encode(pixels))
        say(len(pixels))
    bag = Bag(features=np.concatenate(features), coords=layout.coords, patch_size_level0=layout.edge)
    if not np.isfinite(bag.features).all():
        raise SlideError("the encoder gave NaN or infinity; check its weights, or run on the CPU")
    return bag


def _batches(
    path: Path, layout: Layout, patches: Patches, pace: Pace, encoder: PatchEncoder
) -> Iterator[NDArray[np.uint8]]:
    """Pixels ``[B, 3, H, W]`` batch by batch, the same whatever the number of workers."""
    source = _Batches(path, layout.coords, layout.edge, patches.size, pace.batch, encoder.prepare)
    try:
        for pixels in DataLoader(source, batch_size=None, num_workers=pace.workers, collate_fn=_unchanged):
            if isinstance(pixels, SlideError):
                raise pixels
            yield pixels
    except RuntimeError as error:
        raise SlideError("a reading process ended; the file is damaged, or memory ran out (fewer --workers)") from error


def _unchanged(batch: Any) -> Any:
    """Arrays pass as they are: as tensors they would need shared memory, which containers have little of."""
    return batch


class _Batches(Dataset[NDArray[np.uint8] | SlideError]):
    """The batches of one slide; each process opens the file for itself."""

    def __init__(
        self,
        path: Path,
        coords: NDArray[np.int64],
        edge: int,
        size: int,
        batch: int,
        prepare: Callable[..., Any],
    ) -> None:
        self._path, self._coords, self._edge, self._size = path, coords, edge, size
        self._batch, self._prepare = batch, prepare
        self._slide: OpenSlide | None = None

    def __len__(self) -> int:
        return -(-len(self._coords) // self._batch)

    def __getitem__(self, index: int) -> NDArray[np.uint8] | SlideError:
        """Pixels of one batch; an error is given back as a value to cross the process border as it is."""
        corners = self._coords[index * self._batch : (index + 1) * self._batch]
        try:
            with reading(self._path):
                slide = self._slide = self._slide or OpenSlide(self._path)
                return np.stack([self._pixels(slide, *map(int, corner)) for corner in corners])
        except SlideError as error:
            return error

    def _pixels(self, slide: OpenSlide, x: int, y: int) -> NDArray[np.uint8]:
        return np.asarray(self._prepare(read_patch(slide, x, y, self._edge, self._size)))
