"""Prov-GigaPath and TITAN, tuned: the study's slide encoder with every weight trained, and its slide vector."""

from __future__ import annotations

from copy import deepcopy

from torch import Tensor, nn

from modaltune.encoders.longnet import DropPath
from modaltune.encoders.slide import Places
from modaltune.models.baselines.base import Inputs, Trunk

_DROPOUT = 0.1


class TunedEncoder(Trunk):
    """A copy of the slide encoder: the frozen one, which other models share, stays as it is."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.encoder = deepcopy(inputs.slide_encoder()).requires_grad_(True)
        self.width = self.token_width = self.encoder.width
        for part in self.encoder.modules():
            if isinstance(part, nn.Dropout):
                part.p = _DROPOUT
            elif isinstance(part, DropPath):
                part.rate = 0.0

    def forward(self, patches: Tensor, places: Places, expression: Tensor) -> Tensor:
        """See :meth:`Trunk.forward`; expression is not read."""
        tokens = self.encoder.with_cls(self.encoder.embed(patches, places.cells))
        tokens = self.encoder.run_layers(tokens, 0, self.encoder.depth - 1, places)
        return self.encoder.slide_vector(tokens, places)
