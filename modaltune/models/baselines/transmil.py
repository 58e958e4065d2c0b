"""TransMIL: two layers of Nystrom attention over the patches, with a convolutional position encoding between them.

Shapes: R cases with the same number of patches, T = 1 + side * side tokens with CLS first, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from modaltune.encoders.slide import Places
from modaltune.models.baselines.base import Inputs, Trunk
from modaltune.models.baselines.nystrom import NystromAttention


class _Layer(nn.Module):
    """Pre-norm attention with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = NystromAttention(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.attention(self.norm(x))
        return out


class _PositionEncoding(nn.Module):
    """Depthwise convolutions of three sizes over the square of patches; CLS passes by."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in (7, 5, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1] - 1)
        square = x[:, 1:].transpose(1, 2).unflatten(2, (side, side))  # [R, D, side, side]
        square = square + torch.stack([convolution(square) for convolution in self.convolutions]).sum(dim=0)
        return torch.cat([x[:, :1], square.flatten(2).transpose(1, 2)], dim=1)


class TransMIL(Trunk):
    """The order of patches matters: they are laid out as a square, row by row, filled up with the first ones."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.width = self.token_width = width = inputs.width(512)
        self.embed = nn.Sequential(nn.Linear(inputs.features, width), nn.ReLU())
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.first, self.positions, self.second = _Layer(width), _PositionEncoding(width), _Layer(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Tensor, places: Places, expression: Tensor) -> Tensor:
        """See :meth:`Trunk.forward`; expression is not read. Bags of one size go together, without padding."""
        if places.lengths is None:
            return self._same_size(patches)
        parts, order = [], []
        for length in places.lengths.unique().tolist():
            rows = (places.lengths == length).nonzero(as_tuple=True)[0]
            parts.append(self._same_size(patches[rows, :length]))
            order.append(rows)
        return torch.cat(parts)[torch.cat(order).argsort()]

    def _same_size(self, patches: Tensor) -> Tensor:
        """``[R, n, W] -> [R, D]``."""
        tokens = self.embed(patches)
        count = tokens.shape[1]
        side = math.isqrt(count - 1) + 1
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens, tokens[:, : side**2 - count]], dim=1)
        tokens = self.second(self.positions(self.first(tokens)))
        out: Tensor = self.norm(tokens[:, 0])
        return out
