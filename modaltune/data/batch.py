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
        patches: ``[N, W]``; N = 0 when the case has no slides, or when ``tokens`` stand for them.
        cells: ``[N, 2]`` grid cell of each patch.
        expression: ``[G]`` standardised, zeros when absent.
        has_expression: whether the case has genomics.
        clinical: ``[C]`` standardised numbers, one-hot categories with an own column for missing.
        targets: task -> (index, observed): class, level or time bin; observed False = censored. Unlabelled: absent.
        tokens: ``[N + 1, D]`` cached output of the frozen layers before the first adapter, CLS first.
    """

    patches: Tensor
    cells: Tensor
    expression: Tensor
    has_expression: bool
    clinical: Tensor
    targets: dict[str, tuple[int, bool]]
    tokens: Tensor | None = None

    @property
    def patch_count(self) -> int:
        """N; 0 = no slides."""
        return len(self.patches) if self.tokens is None else len(self.tokens) - 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B cases. ``lengths [B]`` counts patches, 0 = no slides; patches beyond it are zeros.

    With cached ``tokens [B, N + 1, D]`` there are no patches.
    """

    patches: Tensor
    cells: Tensor
    lengths: Tensor
    expression: Tensor
    has_expression: Tensor
    clinical: Tensor
    tokens: Tensor | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        moved = {name: value.to(device, non_blocking=True) for name, value in vars(self).items() if value is not None}
        return Batch(**moved)


def collate(cases: Sequence[CaseTensors]) -> Batch:
    """Pad bags to the longest one (at least one row, so that a learnt patch has a place)."""
    cached = next((case.tokens for case in cases if case.tokens is not None), None)
    tokens = None
    if cached is not None:
        blank = cached.new_zeros(2, cached.shape[1])
        tokens = pad_sequence([blank if case.tokens is None else case.tokens for case in cases], batch_first=True)
    width = cases[0].patches.shape[1]
    rows = [case.patches if len(case.patches) else torch.zeros(1, width) for case in cases]
    cells = [case.cells if len(case.cells) else torch.zeros(1, 2, dtype=torch.long) for case in cases]
    return Batch(
        patches=pad_sequence(rows, batch_first=True),
        cells=pad_sequence(cells, batch_first=True),
        lengths=torch.tensor([case.patch_count for case in cases]),
        expression=torch.stack([case.expression for case in cases]),
        has_expression=torch.tensor([case.has_expression for case in cases]),
        clinical=torch.stack([case.clinical for case in cases]),
        tokens=None if tokens is None else tokens.float(),
    )


def without_modality(case: CaseTensors, modality: str) -> CaseTensors:
    """The same case with its slides or its expression taken away."""
    if modality == "slides":
        return replace(case, patches=case.patches[:0], cells=case.cells[:0], tokens=None)
    return replace(case, expression=torch.zeros_like(case.expression), has_expression=False)
