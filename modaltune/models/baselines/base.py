"""What all baselines share: a trunk that turns a case into one vector, and what surrounds it.

Shapes: B cases, Q (case, task) pairs, N patches, W features per patch, G columns of the expression input, O width of
the case vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modaltune.data.batch import Batch
from modaltune.encoders.slide import Places, SlideEncoder
from modaltune.errors import ConfigError

_STEP = 8  # scaled widths are multiples of it: of the number of heads


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a trunk is built for.

    Attributes:
        features: W.
        genes: G.
        gene_indices: columns that each gene set reads; empty = the study has no gene sets.
        slide_encoder: the study's, for the rows that tune it.
        scale: of hidden widths; 1 = as published.
    """

    features: int
    genes: int
    gene_indices: tuple[tuple[int, ...], ...]
    slide_encoder: Callable[[], SlideEncoder]
    scale: float = 1.0

    def width(self, published: int) -> int:
        """A hidden width at the study's scale."""
        return published if self.scale == 1 else max(_STEP, round(published * self.scale / _STEP) * _STEP)

    def sets(self) -> tuple[tuple[int, ...], ...]:
        """The gene sets of a model that cannot do without."""
        if not self.gene_indices:
            raise ConfigError("this baseline reads gene sets and the study has none; add them, or choose another model")
        return self.gene_indices


class Trunk(nn.Module, ABC):
    """A network from one case's modalities to one vector.

    Attributes:
        width: O.
        token_width: numbers per patch that training keeps, for the size of a group of cases.
    """

    width: int
    token_width: int

    @abstractmethod
    def forward(self, patches: Tensor, places: Places, expression: Tensor) -> Tensor:
        """Patches ``[B, N, W]`` where ``places`` says and expression ``[B, G]`` -> ``[B, O]``."""


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """What training and prediction ask of a model's configuration."""

    output_width: int
    task_pass: str = "joint"  # one pass a case serves all its tasks


class Baseline(nn.Module):
    """A trunk behind the interface that ModalTune has for training and prediction; its vector serves every task."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk
        self.config = BaselineConfig(output_width=trunk.width)

    @property
    def token_width(self) -> int:
        """Numbers per patch that training keeps."""
        return self.trunk.token_width

    def forward(self, batch: Batch, cases: Tensor, tasks: Sequence[str]) -> Tensor:
        """``[Q, O]`` for the pairs of rows ``cases [Q]`` and Q task names."""
        tokens, places = self.image_tokens(batch)
        return self.adapt(tokens, places, self.modality_tokens(batch), cases, tasks)

    def embed(self, batch: Batch, tasks: Sequence[str]) -> Tensor:
        """All cases for several tasks: ``[B, K, O]``."""
        rows = torch.arange(len(batch), device=batch.lengths.device)
        out: Tensor = self(batch, rows, tasks)
        return out.unsqueeze(1).expand(-1, len(tasks), -1)

    def image_tokens(self, batch: Batch) -> tuple[Tensor, Places]:
        """The patches, and where they lie; a case without slides shows one blank patch."""
        lengths = batch.lengths.clamp(min=1)
        full = bool((lengths == batch.patches.shape[1]).all())
        return batch.patches, Places(batch.cells, None if full else lengths)

    def modality_tokens(self, batch: Batch) -> list[Tensor]:
        """The expression input, as it is."""
        return [batch.expression]

    def adapt(
        self, tokens: Tensor, places: Places, modalities: Sequence[Tensor], cases: Tensor, tasks: Sequence[str]
    ) -> Tensor:
        """The trunk on every case, then the rows of the pairs: ``[Q, O]``."""
        vectors: Tensor = self.trunk(tokens, places, modalities[0])
        return vectors[cases]
