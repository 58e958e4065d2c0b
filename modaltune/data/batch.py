"""Model input: cases as tensors, padded together.

Shapes: B cases, N patches (the longest bag), W patch features, G genes, C clinical columns.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class StoredPatches(Protocol):
    """The patches of a case while they are on disk."""

    @property
    def count(self) -> int:
        """N."""

    @property
    def nbytes(self) -> int:
        """Bytes once they are in memory."""

    @property
    def fixed(self) -> bool:
        """Whether they are the same in every epoch."""

    def load(self) -> dict[str, Tensor]:
        """The fields of a case that are read: ``cells`` and ``patches`` or ``tokens``."""

    def resampled(self, seed: int) -> Self:
        """Another subset, unless fixed."""


@dataclass(frozen=True, kw_only=True)
class CaseTensors:
    """One case, preprocessed.

    Attributes:
        patches: ``[N, W]``; N = 0 when the case has no slides, or when ``tokens`` or ``stored`` stand for them.
        cells: ``[N, 2]`` grid cell of each patch, cached or not.
        expression: ``[G]`` standardised, zeros when absent.
        has_expression: whether the case has genomics.
        clinical: ``[C]`` standardised numbers, one-hot categories with an own column for missing.
        targets: task -> (index, observed): class, level or time bin; observed False = censored. Unlabelled: absent.
        hints: task without a target -> log-probabilities ``[candidates]`` that a model gave; see modaltune/hints.py.
        tokens: ``[N + 1, D]`` cached output of the frozen layers before the first adapter, CLS first.
        vectors: further modality -> its vector; a modality that the case lacks is absent.
        stored: where patches or tokens are read from when they are needed; None = they are here.
    """

    patches: Tensor
    cells: Tensor
    expression: Tensor
    has_expression: bool
    clinical: Tensor
    targets: dict[str, tuple[int, bool]]
    tokens: Tensor | None = None
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    stored: StoredPatches | None = None
    hints: Mapping[str, Tensor] = field(default_factory=dict)

    def loaded(self) -> CaseTensors:
        """The same case with its patches or tokens in memory."""
        return self if self.stored is None else CaseTensors(**{**vars(self), "stored": None, **self.stored.load()})

    def resampled(self, seed: int) -> CaseTensors:
        """The same case with another subset of its patches, where the study asks for it."""
        return self if self.stored is None else replace(self, stored=self.stored.resampled(seed))

    @property
    def patch_count(self) -> int:
        """N; 0 = no slides."""
        if self.stored is not None:
            return self.stored.count
        return len(self.patches) if self.tokens is None else len(self.tokens) - 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B cases. ``lengths [B]`` counts patches, 0 = no slides; patches beyond it are zeros.

    With cached ``tokens [B, N + 1, D]`` there are no patches. ``vectors`` holds further modalities: the rows of the
    cases that have it, and their vectors.
    """

    patches: Tensor
    cells: Tensor
    lengths: Tensor
    expression: Tensor
    has_expression: Tensor
    clinical: Tensor
    tokens: Tensor | None = None
    vectors: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        moved = {n: value.to(device, non_blocking=True) for n, value in vars(self).items() if isinstance(value, Tensor)}
        vectors = {name: (rows.to(device), values.to(device)) for name, (rows, values) in self.vectors.items()}
        return Batch(**moved, vectors=vectors)


def collate(cases: Sequence[CaseTensors]) -> Batch:
    """Pad bags to the longest one (at least one row, so that a learnt patch has a place)."""
    cases = [case.loaded() for case in cases]
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
        vectors={name: _vectors(cases, name) for name in sorted({name for case in cases for name in case.vectors})},
    )


def _vectors(cases: Sequence[CaseTensors], name: str) -> tuple[Tensor, Tensor]:
    present = [row for row, case in enumerate(cases) if name in case.vectors]
    return torch.tensor(present), torch.stack([cases[row].vectors[name] for row in present])


def modalities_of(case: CaseTensors) -> list[str]:
    """Names of the modalities that a case has; the clinical row, always there, does not count."""
    slides = ["slides"] if case.patch_count else []
    return [*slides, *(["expression"] if case.has_expression else []), *sorted(case.vectors)]


def readable(case: CaseTensors, needs: Collection[str]) -> bool:
    """Whether a case has every modality that a model needs."""
    return set(needs) <= set(modalities_of(case))


def without_modality(case: CaseTensors, modality: str) -> CaseTensors:
    """The same case with one modality taken away."""
    if modality == "slides":
        return replace(case, patches=case.patches[:0], cells=case.cells[:0], tokens=None, stored=None)
    if modality == "expression":
        return replace(case, expression=torch.zeros_like(case.expression), has_expression=False)
    return replace(case, vectors={name: value for name, value in case.vectors.items() if name != modality})
