"""Bags of patch features: all slides of a site, checked once and left on disk; and writing one in TRIDENT's layout."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from modaltune.data.bag_files import open_bag
from modaltune.data.bag_layouts import BagSource
from modaltune.data.cohort import Bag
from modaltune.data.encoder_names import encoder_model
from modaltune.data.features import Features, MappedFeatures, StoredFeatures, slabs
from modaltune.errors import FeatureFileError

INDEX_LIMIT = 2**27
"""Bytes of coordinates and addresses that a site keeps; bags beyond it are opened each time."""


def read_bag(path: Path, *, where: str = "feature file", patch_size_level0: int | None = None) -> Bag:
    """Read and check one slide's bag into memory; arguments and errors as of :func:`open_bag`.

    Returns:
        The bag, features as float32 ``[N, W]``, coords as int64 ``[N, 2]``.
    """
    bag, _ = open_bag(path, where=where, patch_size_level0=patch_size_level0)
    check_features(bag, where)
    return replace(bag, features=np.asarray(bag.features))


def check_features(bag: Bag, where: str) -> None:
    """Pass through all features once, slab by slab.

    Raises:
        FeatureFileError: a value is not finite.
    """
    broken = np.concatenate([~np.isfinite(slab).all(axis=1) for slab in slabs(bag.features)])
    if broken.any():
        raise FeatureFileError(
            f"{where}: {int(broken.sum())} of {len(broken)} rows of 'features' hold NaN or infinity "
            f"(first: row {int(broken.argmax()) + 1}); extract this slide again"
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
    Raises:
        OSError: the file cannot be written, whole; nothing of it stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    title = name or path.stem
    partial = path.with_name(f".{path.name}.partial")
    try:
        _write_hdf5(partial, bag, encoder, magnification, title, attributes or {})
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # HDF5 raises either where the disk is full, with the file's name
        number = getattr(error, "errno", None) or errno.EIO
        raise OSError(number, f"{os.strerror(number)}; no bag was written", str(path.parent)) from error
    finally:
        partial.unlink(missing_ok=True)


def _write_hdf5(
    path: Path, bag: Bag, encoder: str, magnification: int, title: str, more: Mapping[str, str | int | float]
) -> None:
    width, height = (int(edge) for edge in bag.coords.max(axis=0) + bag.patch_size_level0)
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", data=np.asarray(bag.features, dtype=np.float32))
        features.attrs.update({"name": title, "savetodir": "", "encoder": encoder})
        coords = file.create_dataset("coords", data=bag.coords.astype(np.int64))
        coords.attrs.update({"name": title, "savetodir": "", "overlap": 0})
        coords.attrs.update({"patch_size": bag.patch_size_level0, "patch_size_level0": bag.patch_size_level0})
        coords.attrs.update({"level0_magnification": magnification, "target_magnification": magnification})
        coords.attrs.update({"level0_width": width, "level0_height": height})
        coords.attrs.update(more)


@dataclass(frozen=True)
class SlideFile:
    """One slide's feature file and what messages call it."""

    path: Path
    where: str


class BagFiles(Mapping[str, tuple[Bag, ...]]):
    """The bags of a site by case, every file checked once on construction; features stay on disk.

    Args:
        files: the slides of each case.
        patch_size_level0: patch edge in level-0 pixels, for files that do not state it.
        index_limit: see :data:`INDEX_LIMIT`.
    Attributes:
        sources: what each slide's file says about its making, by case.
    """

    def __init__(
        self,
        files: Mapping[str, Sequence[SlideFile]],
        *,
        patch_size_level0: int | None = None,
        index_limit: int = INDEX_LIMIT,
    ) -> None:
        self._files = {case: tuple(slides) for case, slides in files.items()}
        self._edge = patch_size_level0
        self._checked: dict[Path, tuple[int, int]] = {}
        self._kept: dict[str, tuple[Bag, ...]] = {}
        self.sources: dict[str, tuple[BagSource, ...]] = {}
        site, used = _OneKind(), 0
        for case, slides in self._files.items():
            opened = [self._open(slide) for slide in slides]
            for slide, (bag, source) in zip(slides, opened, strict=True):
                site.add(slide.where, bag, source)
                check_features(bag, slide.where)
            self.sources[case] = tuple(source for _, source in opened)
            used += sum(bag.coords.nbytes + _index_bytes(bag.features) for bag, _ in opened)
            if used <= index_limit:
                self._kept[case] = tuple(bag for bag, _ in opened)

    def __getitem__(self, case: str) -> tuple[Bag, ...]:
        return self._kept[case] if case in self._kept else tuple(self._open(slide)[0] for slide in self._files[case])

    def __contains__(self, case: object) -> bool:
        return case in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def _open(self, slide: SlideFile) -> tuple[Bag, BagSource]:
        """Open a slide; a file that was changed after its values were checked is refused."""
        bag, source = open_bag(slide.path, where=slide.where, patch_size_level0=self._edge)
        if isinstance(bag.features, StoredFeatures):
            bag.features.require_version(self._checked.setdefault(slide.path, bag.features.version))
        return bag, source


class _OneKind:
    """Refuses a slide that was made otherwise than an earlier one of the site; what a file does not say agrees."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[Any, str]] = {}

    def add(self, where: str, bag: Bag, source: BagSource) -> None:
        width = int(bag.features.shape[1])
        known, _ = self._first.setdefault("width", (width, where))
        if width != known:
            raise FeatureFileError(
                f"{where}: 'features' has {width} columns but earlier slides of this site have {known}; "
                "extract all slides of a site with one patch encoder"
            )
        self._same("patch encoder", None if source.encoder is None else encoder_model(source.encoder), where)
        self._same("patch edge in pixels", source.patch_size, where)
        self._same("micrometres per pixel of the patches", None if source.mpp is None else round(source.mpp, 2), where)

    def _same(self, name: str, found: str | float | None, where: str) -> None:
        if found is None:
            return
        known, earlier = self._first.setdefault(name, (found, where))
        if found != known:
            raise FeatureFileError(
                f"{where}: {name} {found} but {known} in {earlier}; extract all slides of a site in one way"
            )


def _index_bytes(features: Features) -> int:
    return features.starts.nbytes if isinstance(features, MappedFeatures) else 0
