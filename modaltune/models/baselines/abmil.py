"""ABMIL: attention-based multiple-instance learning over the patches of a case."""

from __future__ import annotations

from torch import Tensor, nn

from modaltune.encoders.slide import Places
from modaltune.models.baselines.base import Inputs, Trunk
from modaltune.models.baselines.layers import GatedAttention, padding_of, patch_embedding

_DROPOUT = 0.25


class ABMIL(Trunk):
    """Embed patches, pool them by gated attention, one hidden layer."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.width = self.token_width = width = inputs.width(256)
        self.embed = patch_embedding(inputs.features, width, _DROPOUT)
        self.pool = GatedAttention(width, _DROPOUT)
        self.rho = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(_DROPOUT))

    def forward(self, patches: Tensor, places: Places, expression: Tensor) -> Tensor:
        """See :meth:`Trunk.forward`; expression is not read."""
        out: Tensor = self.rho(self.pool(self.embed(patches), padding_of(patches, places)))
        return out
