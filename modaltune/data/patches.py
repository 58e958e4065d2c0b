"""The slides of a case as one bag of model input, read from its files when it is asked for.

Slides lie side by side on the grid. A case with more patches than ``max_patches`` gives a random subset of that size,
in file order: the same one every time, or with ``slides.resample`` a fresh one for each training epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modaltune.data.cohort import Bag
from modaltune.data.scale import Scale
from modaltune.encoders.positions import grid_cells
from modaltune.errors import FeatureFileError
from modaltune.federation.inputs import SlideSpec
from modaltune.seeds import numpy_generator

GRID = 1000
"""Cells along one side of the grid."""


@dataclass(frozen=True, kw_only=True)
class CasePatches:
    """Where the patches of one case come from.

    Attributes:
        bags: case_id -> its slides.
        case_id: this case.
        site, row: what messages and seeds call the case.
        slides: limit of patches and kind of standardisation.
        scale: pooled mean and deviation; None = as they are.
        seed: of the subset.
    """

    bags: Mapping[str, tuple[Bag, ...]]
    case_id: str
    site: str
    row: int
    slides: SlideSpec
    scale: Scale | None
    seed: int
    count: int = 0
    fixed: bool = True

    def checked(self) -> Self:
        """The same with its patches counted.

        Raises:
            FeatureFileError: coordinates or number of patches do not fit the study.
        """
        sizes = [len(bag.coords) for bag in self.bags[self.case_id]]
        self._cells()
        count = min(sum(sizes), self.slides.max_patches)
        wrong = next((size for size in sizes if size != self.slides.rows), None)
        if self.slides.standardise == "position" and wrong is not None:
            raise FeatureFileError(
                f"{self._where}: bag has {wrong} rows but slides.standardise = 'position' needs"
                f" {self.slides.rows} in every bag"
            )
        if self.slides.standardise == "position" and count < sum(sizes):
            raise FeatureFileError(
                f"{self._where}: {sum(sizes)} rows but slides.max_patches = {count}; with slides.standardise ="
                " 'position' every row is needed: raise it"
            )
        return replace(self, count=count, fixed=not self.slides.resample or count == sum(sizes))

    @property
    def nbytes(self) -> int:
        """Bytes of the patches once loaded."""
        return 4 * self.count * self.slides.in_width

    def resampled(self, seed: int) -> Self:
        """With another subset of a case beyond the limit, if the study asks for it."""
        return self if self.fixed else replace(self, seed=seed)

    def load(self) -> dict[str, Tensor]:
        """``patches [N, W]`` float32, standardised, and ``cells [N, 2]``; only the subset's rows are read."""
        features, cells = [], []
        for bag, placed, rows in zip(self.bags[self.case_id], self._cells(), self._rows(), strict=True):
            features.append(self._standardised(bag.features[rows]))
            cells.append(placed[rows])
        return {
            "patches": torch.from_numpy(np.concatenate(features)),
            "cells": torch.from_numpy(np.concatenate(cells)),
        }

    def corners(self) -> list[NDArray[np.int64]]:
        """Level-0 corners ``[n, 2]`` (x, y) of the patches that :meth:`load` gives, slide by slide."""
        return [bag.coords[rows] for bag, rows in zip(self.bags[self.case_id], self._rows(), strict=True)]

    @property
    def _where(self) -> str:
        return f"site {self.site}, case row {self.row}"

    def _cells(self) -> list[NDArray[np.int64]]:
        """Grid cells of all patches of each slide; several slides fill the grid shelf by shelf, a cell apart."""
        bags = self.bags[self.case_id]
        slides = [
            grid_cells(bag.coords, bag.patch_size_level0, GRID, f"{self._where}, slide {number}")
            for number, bag in enumerate(bags)
        ]
        if len(slides) == 1:
            return slides
        out, along, shelf, deepest = list[NDArray[np.int64]](), 0, 0, 0
        for cells in slides:
            size = cells.max(axis=0) - cells.min(axis=0) + 1
            if along + size[1] > GRID:
                along, shelf, deepest = 0, shelf + deepest + 1, 0
            out.append(cells - cells.min(axis=0) + np.array([shelf, along]))
            along, deepest = along + int(size[1]) + 1, max(deepest, int(size[0]))
        if shelf + deepest > GRID:
            raise FeatureFileError(
                f"{self._where}: {len(bags)} slides need {shelf + deepest} rows of a grid of {GRID}; keep fewer slides"
                " for this case"
            )
        return out

    def _rows(self) -> Sequence[slice | NDArray[np.int64]]:
        """Rows of each slide's file that are taken."""
        sizes = [len(bag.coords) for bag in self.bags[self.case_id]]
        if sum(sizes) <= self.slides.max_patches:
            return [slice(None)] * len(sizes)
        generator = numpy_generator(self.seed, "patches", self.case_id)
        chosen = np.sort(generator.choice(sum(sizes), self.slides.max_patches, replace=False))
        starts = np.cumsum([0, *sizes])
        return [chosen[(chosen >= first) & (chosen < stop)] - first for first, stop in pairwise(starts)]

    def _standardised(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.scale is None:
            return values
        if self.slides.standardise == "feature":
            return self.scale.apply(values)
        return self.scale.apply(values.reshape(-1)).reshape(values.shape)
