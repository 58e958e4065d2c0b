"""Where the patches of a case lie on its slides, and the pictures of these that are at hand."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modaltune.data.patches import CasePatches
from modaltune.data.site import slide_table
from modaltune.errors import ConfigError, FeatureFileError, SlideError
from modaltune.prediction.site import ModelAtSite

Picture = NDArray[np.uint8]
_OVERVIEW_EDGE = 1536
_TILE_PIXELS = 224


@dataclass(frozen=True, kw_only=True)
class SlidePlace:
    """One slide of a case.

    Attributes:
        corners: ``[n, 2]`` level-0 pixels (x, y) of the patches that the model saw.
        edge: of a patch, level-0 pixels.
        size: width and height of the slide, level-0 pixels; where unknown, up to the last patch.
        overview: the whole slide ``[H, W, 3]``; None when there is no picture of it.
        file: the slide itself; None when it is not at hand.
    """

    slide_id: str
    corners: NDArray[np.int64]
    edge: int
    size: tuple[int, int]
    overview: Picture | None = None
    file: Path | None = None

    def tile(self, corner: NDArray[np.int64]) -> Picture | None:
        """Pixels ``[H, W, 3]`` of the patch at a corner; None without the slide's file."""
        if self.file is None:
            return None
        from openslide import OpenSlide

        from modaltune.slides.reading import read_patch, reading

        with reading(self.file), OpenSlide(self.file) as slide:
            return np.asarray(read_patch(slide, int(corner[0]), int(corner[1]), self.edge, _TILE_PIXELS))


def slide_places(at: ModelAtSite, row: int, slides: Path | None) -> list[SlidePlace]:
    """The slides of a case in the order in which the model sees their patches; none for a case without slides.

    Args:
        row: place of the case in ``at.cases``.
        slides: folder with the slides themselves, found by their slide id.
    Raises:
        SlideError: the folder holds no slide of this case.
    """
    stored, table = at.cases[row].stored, slide_table(at.folder, at.config)
    if not isinstance(stored, CasePatches) or table is None or at.config.paths.features is None:
        return []
    features = at.folder / at.config.paths.features
    mine = table[table["case_id"] == stored.case_id].sort_values("slide_id")
    files = _slide_files(slides, set(mine["slide_id"])) if slides is not None else {}
    places = []
    for slide_id, file, corners, bag in zip(
        mine["slide_id"], mine["file"], stored.corners(), stored.bags[stored.case_id], strict=True
    ):
        size = _size(features / file)
        places.append(
            SlidePlace(
                slide_id=slide_id,
                corners=corners,
                edge=bag.patch_size_level0,
                size=size or _extent(bag.coords, bag.patch_size_level0),
                overview=_overview(files.get(slide_id), features, file, size),
                file=files.get(slide_id),
            )
        )
    return places


def _extent(coords: NDArray[np.int64], edge: int) -> tuple[int, int]:
    width, height = (coords.max(axis=0) + edge).tolist()
    return width, height


def _size(bag: Path) -> tuple[int, int] | None:
    """Size of the slide as its bag states it."""
    if not h5py.is_hdf5(bag):
        return None
    with h5py.File(bag) as file:
        stated: Any = dict(file["coords"].attrs) if "coords" in file else {}
    width, height = (int(stated.get(f"level0_{side}", 0)) for side in ("width", "height"))
    return (width, height) if width > 0 and height > 0 else None


def _slide_files(folder: Path, wanted: set[str]) -> dict[str, Path]:
    if importlib.util.find_spec("openslide") is None:
        raise ConfigError("--slides needs the packages of the extra 'slides': pip install -e '.[slides]'")
    from modaltune.slides.folder import find_slides

    found = {source.slide_id: source.path for source in find_slides(folder) if source.slide_id in wanted}
    if not found:
        raise SlideError(
            f"--slides {folder}: none of the {len(wanted)} slides of this case; files must be named as slide_id says"
        )
    return found


def _overview(slide: Path | None, features: Path, bag: str, size: tuple[int, int] | None) -> Picture | None:
    """The slide itself, else the thumbnail that ``modaltune slides run`` put beside the bags."""
    if slide is not None:
        return _read_overview(slide)
    thumbnail = features.parent / "thumbnails" / f"{Path(bag).stem}.png"
    if size is None or not thumbnail.is_file():
        return None
    try:
        with Image.open(thumbnail) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise FeatureFileError(
            "a thumbnail of this case is damaged; make it again with modaltune slides run"
        ) from error


def _read_overview(path: Path) -> Picture:
    from openslide import OpenSlide

    from modaltune.slides.reading import reading

    with reading(path), OpenSlide(path) as slide:
        return np.asarray(slide.get_thumbnail((_OVERVIEW_EDGE, _OVERVIEW_EDGE)).convert("RGB"))
