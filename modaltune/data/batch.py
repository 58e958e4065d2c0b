"""Model input: cases as tensors, padded together.

Shapes: B cases, N patches (the longest bag), W patch features, G genes, C clinical columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, kw_only=True)
class CaseTensors:
    """One case, preprocessed.

    Attributes:
        patches: ``[N, W]``; N = 0 when the case has no slides.
        cells: ``[N, 2]`` grid cell of each patch.
        expression: ``[G]`` standardised, zeros when absent.
        has_expression: whether the case has genomics.
        clinical: ``[C]`` standardised numbers, one-hot categories with an own column for missing.
        targets: task -> (index, observed): class, level or time bin; observed False = censored. Unlabelled: absent.
    """

    patches: Tensor
    cells: Tensor
    expression: Tensor
    has_expression: bool
    clinical: Tensor
    targets: dict[str, tuple[int, bool]]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B cases. ``lengths [B]`` counts patches, 0 = no slides; patches beyond it are zeros."""

    patches: Tensor
    cells: Tensor
    lengths: Tensor
    expression: Tensor
    has_expression: Tensor
    clinical: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


def collate(cases: Sequence[CaseTensors]) -> Batch:
    """Pad bags to the longest one (at least one row, so that a learnt patch has a place)."""
    width = cases[0].patches.shape[1]
    rows = [case.patches if len(case.patches) else torch.zeros(1, width) for case in cases]
    cells = [case.cells if len(case.cells) else torch.zeros(1, 2, dtype=torch.long) for case in cases]
    return Batch(
        patches=pad_sequence(rows, batch_first=True),
        cells=pad_sequence(cells, batch_first=True),
        lengths=torch.tensor([len(case.patches) for case in cases]),
        expression=torch.stack([case.expression for case in cases]),
        has_expression=torch.tensor([case.has_expression for case in cases]),
        clinical=torch.stack([case.clinical for case in cases]),
    )


def without_modality(case: CaseTensors, modality: str) -> CaseTensors:
    """The same case with its slides or its expression taken away."""
    if modality == "slides":
        return replace(case, patches=case.patches[:0], cells=case.cells[:0])
    return replace(case, expression=torch.zeros_like(case.expression), has_expression=False)
