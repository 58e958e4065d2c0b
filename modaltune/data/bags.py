"""Bags of patch features in HDF5, laid out as TRIDENT writes them.

One file is one slide: ``features`` ``[N, W]`` and ``coords`` ``[N, 2]`` (x, y of each patch's top-left corner in
level-0 pixels); the attribute ``patch_size_level0`` of ``coords`` is the edge of one patch in the same pixels.

File names of slides often carry a patient's barcode, so messages name a file only by the words given as ``where``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from modaltune.data.cohort import Bag
from modaltune.errors import FeatureFileError

MEMORY_LIMIT = 4 * 2**30
"""Bytes of features that a site keeps in memory; bags beyond it are read from disk each time."""


def read_bag(path: Path, *, where: str = "feature file") -> Bag:
    """Read and check one slide's bag.

    Args:
        path: HDF5 file with ``features`` and ``coords``.
        where: what messages call this file (never its name: slide names carry patient barcodes).
    Returns:
        The bag, features as float32 ``[N, W]``, coords as int64 ``[N, 2]``.
    Raises:
        FeatureFileError: the file is absent, truncated, incomplete, empty, or holds a value that is not finite.
    """
    if not path.is_file():
        raise FeatureFileError(f"{where}: no such file; check 'file' in the slides table and paths.features")
    try:
        with h5py.File(path, "r") as file:
            features, coords = _dataset(file, "features", where), _dataset(file, "coords", where)
            size = file["coords"].attrs.get("patch_size_level0")
    except (OSError, RuntimeError) as error:
        raise FeatureFileError(f"{where}: truncated or not an HDF5 file; copy or extract it again") from error
    return Bag(
        features=_checked_features(features, where),
        coords=_checked_coords(coords, len(features), where),
        patch_size_level0=_checked_size(size, where),
    )


def write_bag(
    path: Path,
    bag: Bag,
    *,
    encoder: str,
    name: str = "",
    magnification: int = 20,
    attributes: Mapping[str, str | int | float] | None = None,
) -> None:
    """Write one slide's bag atomically, contiguous on disk, with TRIDENT's attributes; equal bags give equal bytes.

    Args:
        path: file to write; its folder is made.
        bag: features ``[N, W]`` and coords ``[N, 2]``.
        encoder: name of the patch encoder.
        name: name of the slide, default the file's.
        magnification: objective power of the patches and of level 0.
        attributes: further ones of ``coords``, or others than those that follow from the bag.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    title = name or path.stem
    width, height = (int(edge) for edge in bag.coords.max(axis=0) + bag.patch_size_level0)
    partial = path.with_name(f".{path.name}.partial")
    with h5py.File(partial, "w") as file:
        features = file.create_dataset("features", data=bag.features.astype(np.float32))
        features.attrs.update({"name": title, "savetodir": "", "encoder": encoder})
        coords = file.create_dataset("coords", data=bag.coords.astype(np.int64))
        coords.attrs.update({"name": title, "savetodir": "", "overlap": 0})
        coords.attrs.update({"patch_size": bag.patch_size_level0, "patch_size_level0": bag.patch_size_level0})
        coords.attrs.update({"level0_magnification": magnification, "target_magnification": magnification})
        coords.attrs.update({"level0_width": width, "level0_height": height})
        coords.attrs.update(attributes or {})
    os.replace(partial, path)


@dataclass(frozen=True)
class SlideFile:
    """One slide's feature file and what messages call it."""

    path: Path
    where: str


class BagFiles(Mapping[str, tuple[Bag, ...]]):
    """The bags of a site by case, every file read and checked once on construction.

    Bags stay in memory up to ``memory_limit`` bytes; the others are read again whenever they are asked for.
    """

    def __init__(self, files: Mapping[str, Sequence[SlideFile]], *, memory_limit: int = MEMORY_LIMIT) -> None:
        self._files = {case: tuple(slides) for case, slides in files.items()}
        self._kept: dict[str, tuple[Bag, ...]] = {}
        used, width = 0, None
        for case, slides in self._files.items():
            bags = self._read(case)
            width = _common_width(bags, slides, width)
            used += sum(bag.features.nbytes + bag.coords.nbytes for bag in bags)
            if used <= memory_limit:
                self._kept[case] = bags

    def __getitem__(self, case: str) -> tuple[Bag, ...]:
        return self._kept[case] if case in self._kept else self._read(case)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def _read(self, case: str) -> tuple[Bag, ...]:
        return tuple(read_bag(slide.path, where=slide.where) for slide in self._files[case])


def _common_width(bags: Sequence[Bag], slides: Sequence[SlideFile], width: int | None) -> int | None:
    for bag, slide in zip(bags, slides, strict=True):
        found = int(bag.features.shape[1])
        if width is not None and found != width:
            raise FeatureFileError(
                f"{slide.where}: 'features' has {found} columns but earlier slides of this site have {width}; "
                "extract all slides of a site with one patch encoder"
            )
        width = found
    return width


def _dataset(file: h5py.File, name: str, where: str) -> NDArray[np.generic]:
    if not isinstance(file.get(name), h5py.Dataset):
        found = ", ".join(sorted(map(str, file.keys()))[:8]) or "nothing"
        raise FeatureFileError(
            f"{where}: dataset {name!r} is missing (found: {found}); expected TRIDENT's 'features' and 'coords'"
        )
    return np.asarray(file[name])


def _checked_features(features: NDArray[np.generic], where: str) -> NDArray[np.float32]:
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.number):
        raise FeatureFileError(
            f"{where}: 'features' is {features.dtype} with {features.ndim} axes; expected numbers, patches x features"
        )
    if 0 in features.shape:
        raise FeatureFileError(
            f"{where}: the bag is empty, shape {features.shape}; "
            "remove the slide from the slides table or segment its tissue again"
        )
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(features, dtype=np.float32)
    broken = ~np.isfinite(values).all(axis=1)
    if broken.any():
        raise FeatureFileError(
            f"{where}: {int(broken.sum())} of {len(values)} rows of 'features' hold NaN or infinity "
            f"(first: row {int(broken.argmax()) + 1}); extract this slide again"
        )
    return values


def _checked_coords(coords: NDArray[np.generic], patches: int, where: str) -> NDArray[np.int64]:
    if coords.ndim != 2 or coords.shape[1] != 2 or not np.issubdtype(coords.dtype, np.number):
        raise FeatureFileError(f"{where}: 'coords' is {coords.dtype} of shape {coords.shape}; expected integers [N, 2]")
    if len(coords) != patches:
        raise FeatureFileError(
            f"{where}: 'coords' has {len(coords)} rows but 'features' has {patches}; expected one per patch. "
            "Extract this slide again"
        )
    with np.errstate(invalid="ignore"):
        values = coords.astype(np.int64)
    if not np.array_equal(values, coords):
        raise FeatureFileError(
            f"{where}: 'coords' are not whole numbers; expected level-0 pixels (STAMP writes micrometres: "
            "divide by the slide's um per pixel)"
        )
    return values


def _checked_size(size: object, where: str) -> int:
    if size is None:
        raise FeatureFileError(
            f"{where}: 'coords' has no attribute 'patch_size_level0'; expected the patch edge in level-0 pixels. "
            "Extract with TRIDENT, or add the attribute"
        )
    value = np.asarray(size)
    if value.size != 1 or not np.issubdtype(value.dtype, np.number) or value.item() < 1:
        raise FeatureFileError(f"{where}: attribute 'patch_size_level0' must be one positive number of pixels")
    return int(value.item())
