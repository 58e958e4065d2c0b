"""Pieces that several baselines use.

Shapes: B cases, N patches, D width, G genes, P gene sets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modaltune.encoders.gene import SetLinear, SetNetworks
from modaltune.encoders.slide import Places


def padding_of(patches: Tensor, places: Places) -> Tensor | None:
    """``[B, N]`` True where there is no patch; None when every case has N."""
    if places.lengths is None:
        return None
    return torch.arange(patches.shape[1], device=patches.device)[None, :] >= places.lengths[:, None]


def mean_over_patches(values: Tensor, padding: Tensor | None) -> Tensor:
    """``[B, N, D]`` -> ``[B, D]`` over the patches that are there."""
    if padding is None:
        return values.mean(dim=1)
    inside = (~padding).to(values.dtype).unsqueeze(-1)
    return (values * inside).sum(dim=1) / inside.sum(dim=1)


def patch_embedding(features: int, width: int, dropout: float) -> nn.Sequential:
    """``[..., W] -> [..., D]``."""
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout))


class GatedAttention(nn.Module):
    """Attention pooling with a tanh and a sigmoid branch: a weighted mean over rows."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.content = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(dropout))
        self.gate = nn.Sequential(nn.Linear(width, width), nn.Sigmoid(), nn.Dropout(dropout))
        self.score = nn.Linear(width, 1)

    def forward(self, rows: Tensor, padding: Tensor | None = None) -> Tensor:
        """``[B, N, D]`` -> ``[B, D]``; rows where ``padding [B, N]`` is True do not count."""
        score = self.score(self.content(rows) * self.gate(rows)).squeeze(-1)  # [B, N]
        if padding is not None:
            score = score.masked_fill(padding, float("-inf"))
        out: Tensor = (score.softmax(dim=-1).unsqueeze(1) @ rows).squeeze(1)
        return out


def self_normalising(networks: SetNetworks) -> None:
    """Fresh weights of variance 1 / inputs, as the activation asks: a small signal drowns in its dropout."""
    with torch.no_grad():
        for weight in networks.first.weight.split(networks.first.sizes):
            nn.init.normal_(weight, std=len(weight) ** -0.5)
    nn.init.normal_(networks.second_weight, std=networks.second_weight.shape[1] ** -0.5)


class PathwayNetworks(SetNetworks):
    """Two self-normalising layers for each gene set: ``[B, G] -> [B, P, D]``."""

    def __init__(self, indices: Sequence[Sequence[int]], width: int, dropout: float) -> None:
        super().__init__(indices, width, dropout)
        self_normalising(self)

    def forward(self, expression: Tensor) -> Tensor:
        """Pathway tokens."""
        return self.pathways(expression)


class SparseLayers(nn.Module):
    """Two layers that connect a gene with its sets and each set with itself only: ``[B, G] -> [B, P * 16]``.

    The published model multiplies dense matrices by a 0/1 mask; only the connections that a mask would keep exist here.
    """

    def __init__(self, indices: Sequence[Sequence[int]], first: int = 8, second: int = 16) -> None:
        super().__init__()
        self.first = SetLinear(indices, first)
        self.weight = nn.Parameter(torch.empty(len(indices), first, second))  # [P, in, out]
        self.bias = nn.Parameter(torch.zeros(len(indices), second))
        self.width = len(indices) * second
        with torch.no_grad():  # Xavier, for each set's own layer
            for block in self.first.weight.split(self.first.sizes):
                nn.init.xavier_normal_(block)
            for block in self.weight:
                nn.init.xavier_normal_(block)

    def forward(self, expression: Tensor) -> Tensor:
        """Hidden units of all sets, side by side."""
        hidden = F.relu(self.first(expression))  # [B, P, 8]
        return (torch.einsum("bpi,pio->bpo", hidden, self.weight) + self.bias).flatten(1)
