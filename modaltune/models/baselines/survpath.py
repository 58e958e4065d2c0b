"""SurvPath: one attention over pathways and patches in which patches do not look at each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modaltune.encoders.slide import Places
from modaltune.models.baselines.base import Inputs, Trunk
from modaltune.models.baselines.layers import PathwayNetworks, mean_over_patches, padding_of

_DROPOUT = 0.1


class SurvPath(Trunk):
    """Pathways attend to everything, patches to pathways only: linear in the number of patches."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        width, inner = inputs.width(256), inputs.width(128)
        self.width, self.token_width = inputs.width(64), width
        self.embed = nn.Linear(inputs.features, width)
        self.pathways = PathwayNetworks(inputs.sets(), width, 0.25)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(inner),
            nn.Linear(inner, inner),
            nn.GELU(),
            nn.Dropout(_DROPOUT),
            nn.Linear(inner, inner),
            nn.LayerNorm(inner),
        )
        self.joined = nn.Sequential(nn.Linear(2 * inner, self.width), nn.ReLU())

    def forward(self, patches: Tensor, places: Places, expression: Tensor) -> Tensor:
        """See :meth:`Trunk.forward`."""
        genes, padding = self.pathways(expression), padding_of(patches, places)
        sets = genes.shape[1]
        tokens = self.norm(torch.cat([genes, self.embed(patches)], dim=1))
        mixed = self.feed_forward(self._attend(tokens, sets, padding))
        joined = torch.cat([mixed[:, :sets].mean(dim=1), mean_over_patches(mixed[:, sets:], padding)], dim=-1)
        out: Tensor = self.joined(joined)
        return out

    def _attend(self, tokens: Tensor, sets: int, padding: Tensor | None) -> Tensor:
        """``[B, P + N, D]`` -> same rows, half as wide; no residual."""
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        seen = None if padding is None else F.pad(~padding, (sets, 0), value=True).unsqueeze(1)
        pathways = F.scaled_dot_product_attention(q[:, :sets], k, v, seen)
        patches = F.scaled_dot_product_attention(q[:, sets:], k[:, :sets], v[:, :sets])
        return torch.cat([pathways, patches], dim=1)
