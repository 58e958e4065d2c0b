"""Cached output of the frozen layers before the first adapter.

With adapters from layer k > 0 on, layers 0 to k - 1 see nothing that is trained: their output is computed once for each
case, kept on disk in half precision under the hash of what it was computed from, and takes the place of the patches.
With adapters from layer 0 on, the same can be asked for the patch embedding, which is narrower than most bags.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from modaltune.data.batch import CaseTensors, collate
from modaltune.data.loading import held
from modaltune.models.baselines.base import Baseline
from modaltune.models.modaltune import ModalTune
from modaltune.storage import load_state, save_state


@dataclass(frozen=True)
class CachedTokens:
    """Tokens ``[N + 1, D]`` in half precision and cells of one case, in a file of their own."""

    path: Path
    count: int
    width: int
    fixed: bool = True

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens."""
        return 2 * (self.count + 1) * self.width

    def load(self) -> dict[str, Tensor]:
        """``tokens`` and ``cells``."""
        return load_state(self.path)

    def resampled(self, seed: int) -> Self:
        """The same: what is cached belongs to one subset."""
        return self


def with_cached_prefix(
    model: ModalTune | Baseline,
    encoder_sha256: str,
    cases: Sequence[CaseTensors],
    folder: Path,
    *,
    embedding: bool = False,
) -> list[CaseTensors]:
    """The cases with cached tokens in place of patches.

    Unchanged when adapters start at the first layer, and for a baseline, which reads patches.

    Args:
        encoder_sha256: of the frozen weights, part of each file's name.
        folder: receives one safetensors file a case that has slides.
        embedding: also where adapters start at the first layer.
    """
    if isinstance(model, Baseline):
        return list(cases)
    layers = model.config.adapter.groups[0][0]
    if layers == 0 and not embedding:
        return list(cases)
    return held(_cached(model, f"{encoder_sha256}|{layers}|cells", case, folder) for case in cases)


def _cached(model: ModalTune, origin: str, case: CaseTensors, folder: Path) -> CaseTensors:
    if not case.patch_count:
        return case
    whole = case.loaded()
    path = folder / f"{_digest(origin, whole)}.safetensors"
    if not path.is_file():
        save_state(path, {"tokens": _prefix(model, whole), "cells": whole.cells})
    stored = CachedTokens(path, case.patch_count, model.slide_encoder.width)
    return replace(case, patches=whole.patches[:0].clone(), cells=whole.cells[:0].clone(), stored=stored)


@torch.no_grad()
def _prefix(model: ModalTune, case: CaseTensors) -> Tensor:
    device = next(model.parameters()).device
    tokens, _ = model.image_tokens(collate([case]).to(device))
    return tokens[0].half()


def _digest(origin: str, case: CaseTensors) -> str:
    total = hashlib.sha256(origin.encode())
    total.update(case.patches.contiguous().numpy().tobytes())
    total.update(case.cells.contiguous().numpy().tobytes())
    return total.hexdigest()
