"""MCAT: gene sets look at patches by co-attention, then a transformer over either stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modaltune.encoders.slide import Places
from modaltune.models.baselines.base import Inputs, Trunk
from modaltune.models.baselines.layers import GatedAttention, PathwayNetworks, padding_of, patch_embedding

_DROPOUT = 0.25


class _Stream(nn.Module):
    """Two transformer layers over the gene-set tokens ``[B, P, D]``, gated attention, one layer -> ``[B, D]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 8, 2 * width, _DROPOUT, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.pool = GatedAttention(width, _DROPOUT)
        self.rho = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(_DROPOUT))

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.rho(self.pool(self.layers(tokens)))
        return out


class MCAT(Trunk):
    """Each gene set gathers the patches that go with it; images and genes are joined at the end."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.width = self.token_width = width = inputs.width(256)
        self.embed = patch_embedding(inputs.features, width, _DROPOUT)
        self.pathways = PathwayNetworks(inputs.sets(), width, _DROPOUT)
        self.coattention = nn.MultiheadAttention(width, 1, batch_first=True)
        self.image_stream, self.gene_stream = _Stream(width), _Stream(width)
        self.joined = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

    def forward(self, patches: Tensor, places: Places, expression: Tensor) -> Tensor:
        """See :meth:`Trunk.forward`."""
        tokens, genes = self.embed(patches), self.pathways(expression)
        seen, _ = self.coattention(
            genes, tokens, tokens, key_padding_mask=padding_of(patches, places), need_weights=False
        )
        out: Tensor = self.joined(torch.cat([self.image_stream(seen), self.gene_stream(genes)], dim=-1))
        return out
