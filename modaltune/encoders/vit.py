"""A plain vision transformer over patch features, made of timm's blocks, as a frozen slide encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modaltune import _torchvision
from modaltune.encoders.positions import position_embedding
from modaltune.encoders.slide import Places, SlideEncoder
from modaltune.errors import ConfigError

_HEAD_WIDTH = 64


class ViTSlideEncoder(SlideEncoder):
    """Pre-norm transformer blocks over ``[CLS, patches]`` with sine-cosine positions.

    Args:
        in_width: W, features per patch.
        width: D.
        depth: number of blocks.
    """

    def __init__(self, in_width: int, width: int, depth: int) -> None:
        super().__init__()
        _torchvision.install()
        from timm.models.vision_transformer import Block

        self.in_width, self.width, self.depth = in_width, width, depth
        self.patch_embed = nn.Linear(in_width, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        heads = max(1, width // _HEAD_WIDTH)
        if width % heads:
            raise ConfigError(f"slide encoder vit: width {width} must be divisible by its {heads} heads")
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def embed(self, patches: Tensor, cells: Tensor) -> Tensor:
        """See :meth:`SlideEncoder.embed`."""
        tokens: Tensor = self.patch_embed(patches)
        return tokens + position_embedding(cells, self.width).to(tokens.dtype)

    def with_cls(self, tokens: Tensor) -> Tensor:
        """See :meth:`SlideEncoder.with_cls`."""
        return torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)

    def run_layers(self, x: Tensor, first: int, last: int, places: Places) -> Tensor:
        """See :meth:`SlideEncoder.run_layers`."""
        mask: dict[str, Any] = {}
        if places.tokens is not None:
            inside = torch.arange(x.shape[1], device=x.device)[None, :] < places.tokens[:, None]
            mask["attn_mask"] = inside[:, None, None, :]
        for index in range(first, last + 1):
            x = self.blocks[index](x, **mask)
        return x

    def image(self, x: Tensor, places: Places) -> Tensor:
        """The normed CLS token."""
        out: Tensor = self.norm(x[:, :1])
        return out
