"""Cached output of the frozen layers before the first adapter.

With adapters from layer k > 0 on, layers 0 to k - 1 see nothing that is trained: their output is computed once for each
case, kept on disk in half precision under the hash of what it was computed from, and takes the place of the patches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from modaltune.data.batch import CaseTensors, collate
from modaltune.models.modaltune import ModalTune
from modaltune.storage import load_state, save_state


def with_cached_prefix(
    model: ModalTune, encoder_sha256: str, cases: Sequence[CaseTensors], folder: Path
) -> list[CaseTensors]:
    """The cases with cached tokens in place of patches; unchanged when adapters start at the first layer.

    Args:
        encoder_sha256: of the frozen weights, part of each file's name.
        folder: receives one safetensors file a case that has slides.
    """
    layers = model.config.adapter.groups[0][0]
    if layers == 0:
        return list(cases)
    return [_cached(model, f"{encoder_sha256}|{layers}", case, folder) for case in cases]


def _cached(model: ModalTune, origin: str, case: CaseTensors, folder: Path) -> CaseTensors:
    if not case.patch_count:
        return case
    path = folder / f"{_digest(origin, case)}.safetensors"
    if not path.is_file():
        save_state(path, {"tokens": _prefix(model, case)})
    tokens = load_state(path)["tokens"]
    return replace(case, tokens=tokens, patches=case.patches[:0].clone())


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
