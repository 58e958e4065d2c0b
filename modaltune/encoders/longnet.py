"""LongNetViT: the slide encoder of Prov-GigaPath, under its published parameter names.

Shapes: B cases, N patches, T = N + 1 tokens with CLS first, W features per patch, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modaltune.encoders.dilated_attention import DilatedConfig, dilated_attention
from modaltune.encoders.positions import position_embedding
from modaltune.encoders.slide import Places, SlideEncoder
from modaltune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LongNetConfig:
    """Sizes of a LongNetViT; the defaults are Prov-GigaPath's."""

    in_width: int = 1536
    width: int = 768
    depth: int = 12
    heads: int = 16
    ffn_width: int = 3072
    grid: int = 1000
    dropout: float = 0.25
    drop_path: float = 0.1
    attention: DilatedConfig = field(default_factory=DilatedConfig)

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 4:
            raise ConfigError(f"slide encoder width {self.width} must be divisible by heads ({self.heads}) and by 4")


class DropPath(nn.Module):
    """Drop a whole residual branch per case during training; kept values are scaled up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """``[B, ...]`` -> same shape."""
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


class _SelfAttention(nn.Module):
    def __init__(self, config: LongNetConfig) -> None:
        super().__init__()
        self.heads, self.attention = config.heads, config.attention
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.inner_attn_ln = nn.LayerNorm(config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )  # [B, H, T, d]
        if lengths is not None:
            inside = torch.arange(x.shape[1], device=x.device)[None, :] < lengths[:, None]
            k, v = (part * inside[:, None, :, None] for part in (k, v))
        out = dilated_attention(q, k, v, self.attention, lengths).transpose(1, 2).flatten(2)
        projected: Tensor = self.out_proj(self.inner_attn_ln(out))
        return projected


class _FeedForward(nn.Module):
    def __init__(self, config: LongNetConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.ffn_width)
        self.ffn_layernorm = nn.LayerNorm(config.ffn_width)
        self.fc2 = nn.Linear(config.ffn_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.ffn_layernorm(F.gelu(self.fc1(x).float()).type_as(x)))
        return out


class LongNetLayer(nn.Module):
    """One pre-norm transformer layer with sub-layer norms and dilated attention."""

    def __init__(self, config: LongNetConfig, drop_path: float) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.self_attn = _SelfAttention(config)
        self.final_layer_norm = nn.LayerNorm(config.width)
        self.ffn = _FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """``[B, T, D]`` -> same shape; ``lengths`` counts the tokens of each case, CLS included."""
        x = x + self.drop_path(self.dropout(self.self_attn(self.self_attn_layer_norm(x), lengths)))
        x = x + self.drop_path(self.dropout(self.ffn(self.final_layer_norm(x))))
        return x


class _PatchEmbed(nn.Module):
    def __init__(self, config: LongNetConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.in_width, config.width)


class _Encoder(nn.Module):
    def __init__(self, config: LongNetConfig) -> None:
        super().__init__()
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()  # also on the meta device
        self.layers = nn.ModuleList(LongNetLayer(config, rate) for rate in rates)
        self.layer_norm = nn.LayerNorm(config.width)


class LongNetViT(SlideEncoder):
    """Slide encoder; 247 tensors and 86,330,880 parameters at the default configuration."""

    def __init__(self, config: LongNetConfig) -> None:
        super().__init__()
        self.config = config
        self.in_width, self.width, self.depth = config.in_width, config.width, config.depth
        self.patch_embed = _PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.encoder = _Encoder(config)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.dropout = nn.Dropout(config.dropout)

    def embed(self, patches: Tensor, cells: Tensor) -> Tensor:
        """Patches ``[B, N, W]`` on grid cells ``[B, N, 2]`` -> tokens ``[B, N, D]`` without CLS."""
        tokens: Tensor = self.patch_embed.proj(patches)
        return tokens + position_embedding(cells, self.config.width).to(tokens.dtype)

    def with_cls(self, tokens: Tensor) -> Tensor:
        """Put CLS (whose position is zero) in front: ``[B, N, D]`` -> ``[B, N + 1, D]``."""
        out: Tensor = self.dropout(torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1))
        return out

    def run_layers(self, x: Tensor, first: int, last: int, places: Places) -> Tensor:
        """Layers ``first`` to ``last``, inclusive."""
        for index in range(first, last + 1):
            x = self.encoder.layers[index](x, places.tokens)
        return x

    def hidden_states(self, patches: Tensor, cells: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """States after the embedding and after each layer: depth + 1 tensors ``[B, T, D]``."""
        states = [self.with_cls(self.embed(patches, cells))]
        for layer in self.encoder.layers:
            states.append(layer(states[-1], lengths))
        return states

    def slide_vector(self, x: Tensor, places: Places) -> Tensor:
        """See :meth:`SlideEncoder.slide_vector`: CLS through both of the last norms, which adapters do without."""
        out: Tensor = self.norm(self.encoder.layer_norm(x[:, 0]))
        return out

    def forward(self, patches: Tensor, cells: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encoder output ``[B, T, D]`` after the last layer norm; ``[:, 0]`` through ``norm`` is the slide vector."""
        out: Tensor = self.encoder.layer_norm(self.hidden_states(patches, cells, lengths)[-1])
        return out
