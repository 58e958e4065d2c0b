"""What a site does when its GPU is too small: half the patches of a case, and half again, down to a floor.

The subset is drawn by a seed and stays the same, so that a round that is repeated gives the same update.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import torch
from torch import Tensor

from modaltune.data.batch import CaseTensors, StoredPatches
from modaltune.errors import DeviceError
from modaltune.seeds import numpy_generator

logger = logging.getLogger(__name__)
T = TypeVar("T")
FEWEST = 256
"""Patches of a case below which it is given up."""


def fewer(limit: int) -> int:
    """The next smaller number of patches a case.

    Raises:
        DeviceError: it would be less than :data:`FEWEST`.
    """
    if limit // 2 < FEWEST:
        raise DeviceError(
            f"the GPU runs out of memory with {limit} patches a case already; use a larger one, a smaller"
            " training.batch_size, or [compute] device = 'cpu' in site.toml"
        )
    return limit // 2


def until_it_fits(work: Callable[[], T], lower: Callable[[], int]) -> T:
    """Do work on a GPU, again from the start while it runs out of memory.

    Args:
        lower: makes the work smaller, and returns the patches a case that it now has.
    """
    while True:
        with suppress(torch.OutOfMemoryError):  # what the error holds of the GPU's memory is free after the block
            return work()
        logger.warning("the GPU ran out of memory: the work starts again, %s patches a case", lower())
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class _Subset:
    """Some of the patches of a case that lies on disk."""

    inner: StoredPatches
    limit: int
    seed: int

    @property
    def count(self) -> int:
        return min(self.inner.count, self.limit)

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes * self.count // max(1, self.inner.count)

    @property
    def fixed(self) -> bool:
        return self.inner.fixed

    def load(self) -> dict[str, Tensor]:
        """The fields of the case, each with the same rows taken; row 0 of tokens is no patch and stays."""
        return _taken(self.inner.load(), self.limit, self.seed)

    def resampled(self, seed: int) -> Self:
        """The same limit over another draw of the study's own."""
        return replace(self, inner=self.inner.resampled(seed))


def with_fewer_patches(case: CaseTensors, limit: int, seed: int) -> CaseTensors:
    """The same case with at most ``limit`` patches."""
    if case.patch_count <= limit:
        return case
    if case.stored is not None:
        inner = case.stored.inner if isinstance(case.stored, _Subset) else case.stored
        return replace(case, stored=_Subset(inner, limit, seed))
    here = {"cells": case.cells} | ({"patches": case.patches} if case.tokens is None else {"tokens": case.tokens})
    return CaseTensors(**{**vars(case), **_taken(here, limit, seed)})


def _taken(fields: dict[str, Tensor], limit: int, seed: int) -> dict[str, Tensor]:
    patches = len(fields["cells"])
    if patches <= limit:
        return fields
    generator = numpy_generator(seed, "fewer patches", patches)
    rows = torch.from_numpy(generator.permutation(patches)[:limit]).sort().values
    out = {name: value[rows] for name, value in fields.items() if name != "tokens"}
    if "tokens" in fields:
        out["tokens"] = torch.cat([fields["tokens"][:1], fields["tokens"][1:][rows]])
    return out
