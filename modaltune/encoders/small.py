"""The built-in slide encoder: a small frozen LongNetViT whose weights come from a named seed.

It knows nothing about pathology. It exists so that the whole federation runs on any machine without gated weights;
its place is taken by Prov-GigaPath or TITAN where a hospital has them.
"""

from __future__ import annotations

from torch import nn

from modaltune.encoders.dilated_attention import DilatedConfig
from modaltune.encoders.longnet import LongNetConfig, LongNetViT
from modaltune.seeds import fill_uniform, numpy_generator

_SEED_NAME = "modaltune-small-slide-encoder-v1"


def small_slide_encoder(in_width: int, *, width: int = 64, depth: int = 2) -> LongNetViT:
    """A frozen LongNetViT with xavier weights, the same on every machine.

    Args:
        in_width: W, features per patch.
        width: D, model width.
        depth: number of layers.
    """
    config = LongNetConfig(
        in_width=in_width,
        width=width,
        depth=depth,
        heads=4,
        ffn_width=2 * width,
        dropout=0.0,
        drop_path=0.0,
        attention=DilatedConfig(segments=(256, 1024, 4096), ratios=(1, 2, 4)),
    )
    encoder = LongNetViT(config)
    generator = numpy_generator(0, _SEED_NAME, in_width, width, depth)  # torch draws other numbers on other processors
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            fill_uniform(module.weight, (6 / sum(module.weight.shape)) ** 0.5, generator)
            nn.init.zeros_(module.bias)
    fill_uniform(encoder.cls_token, 0.03, generator)
    return encoder.requires_grad_(False).eval()
