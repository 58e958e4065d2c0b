"""A small model with the interface that this project uses of TITAN's snapshot: random weights, no pathology.

``encode_slide`` is the stand-in's own way through the network, over a dense grid from which background is dropped.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from .configuration_titan import TitanConfig


class _Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x, attn_bias, bg_mask=None):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class _Blocks(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.modules_list = nn.ModuleList(_Block(config.width, config.heads) for _ in range(config.depth))


class _Vision(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.width
        self.pos_encode_type, self.heads = config.positions, config.heads
        self.patch_embed = nn.Sequential(nn.Linear(config.in_width, width), nn.GELU())
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.norm_pre, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = _Blocks(config)
        self.query = nn.Parameter(torch.randn(1, 1, width))
        self.pool = nn.MultiheadAttention(width, config.heads, batch_first=True)

    def get_alibi(self, w, h, bg_mask=None):
        grid = torch.ones(w, h, dtype=torch.bool) if bg_mask is None else bg_mask[0]
        place = grid.nonzero().float()
        distance = (place[:, None] - place[None]).square().sum(-1).sqrt()
        slopes = torch.tensor([2.0 ** -(head + 1) for head in range(self.heads)])
        bias = torch.zeros(1, self.heads, len(place) + 1, len(place) + 1)
        bias[0, :, 1:, 1:] = -slopes[:, None, None] * distance
        return bias

    def forward_attn_pool(self, x, bg_mask=None):
        tokens = self.pool(self.query, x, x, need_weights=False)[0]
        return tokens[:, 0], tokens


class Titan(PreTrainedModel):
    config_class = TitanConfig

    def __init__(self, config):
        super().__init__(config)
        self.vision_encoder = _Vision(config)
        self.text_encoder = nn.Embedding(config.vocabulary, config.text_width)
        self.post_init()

    def _init_weights(self, module):
        pass

    def encode_text(self, ids):
        return self.text_encoder(ids).mean(dim=1)

    def encode_slide(self, features, cells):
        vision, size = self.vision_encoder, cells.max(dim=0).values + 1
        grid = torch.zeros(*size, features.shape[1])
        grid[cells[:, 0], cells[:, 1]] = features
        tissue = (grid != 0).any(dim=-1)
        x = vision.patch_embed(grid.flatten(0, 1))[tissue.flatten()]
        x = vision.norm_pre(torch.cat([vision.cls_token[0], x])[None])
        bias = vision.get_alibi(*size, tissue[None])
        for block in vision.blocks.modules_list:
            x = block(x, bias, None)
        return vision.forward_attn_pool(vision.norm(x), None)[0]
