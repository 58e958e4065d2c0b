"""Modal Adapter layers: injector (tokens -> patches), extractor (patches -> tokens), token self-attention.

Shapes: B cases, N patches, T tokens, D model width, E bottleneck width. Parameter names are the published ones.
``residual="reference"`` counts the residual twice, as the published code does; ``"single"`` counts it once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modaltune.encoders.longnet import DropPath
from modaltune.errors import ConfigError

Groups = tuple[tuple[int, int], ...]
RESIDUALS = ("reference", "single")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Where adapters sit between slide-encoder layers, and their size."""

    groups: Groups = ((0, 3), (4, 7), (8, 11))  # slide-encoder layers, inclusive
    heads: int = 12
    width_ratio: float = 0.25
    bottleneck: bool = True
    extra_extractors: int = 2
    gamma: float = 0.0
    drop_path: float = 0.1
    residual: str = "single"

    def __post_init__(self) -> None:
        if not 0 < self.width_ratio <= 1:
            raise ConfigError(f"adapter.width_ratio must be in (0, 1], got {self.width_ratio}")
        if self.residual not in RESIDUALS:
            raise ConfigError(f"adapter.residual {self.residual!r} is unknown; choose from {', '.join(RESIDUALS)}")
        last = -1
        for low, high in self.groups:
            if (low != last + 1 and last >= 0) or high < low:
                raise ConfigError(f"adapter.groups must be consecutive layer ranges, got {self.groups}")
            last = high


class CrossAttention(nn.Module):
    """Pre-norm cross-attention through a bottleneck; returns the update without its residual."""

    def __init__(self, width: int, config: AdapterConfig) -> None:
        super().__init__()
        inner = int(width * config.width_ratio) if config.bottleneck else width
        self.norm, self.norm_kq = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj: nn.Module = nn.Linear(width, inner) if config.bottleneck else nn.Identity()
        self.output_proj: nn.Module = nn.Linear(inner, width) if config.bottleneck else nn.Identity()
        self.multihead_attn = nn.MultiheadAttention(inner, config.heads, kdim=width, vdim=width, batch_first=True)

    def forward(
        self,
        target: Tensor,
        memory: Tensor,
        *,
        target_position: Tensor | None = None,
        memory_position: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """``target [B, Q, D]`` attends to ``memory [B, S, D]``; ``padding [B, S]`` True = ignore. -> ``[B, Q, D]``."""
        query, keys = self.norm(target), self.norm_kq(memory)
        query = query if target_position is None else query + target_position
        keys = keys if memory_position is None else keys + memory_position
        update, _ = self.multihead_attn(self.q_proj(query), keys, keys, key_padding_mask=padding, need_weights=False)
        out: Tensor = self.output_proj(update)
        return out


class Injector(nn.Module):
    """Writes tokens into patches, scaled by gamma (zero at first: the slide encoder starts unchanged)."""

    def __init__(self, width: int, config: AdapterConfig) -> None:
        super().__init__()
        self.attn = CrossAttention(width, config)
        self.gamma = nn.Parameter(torch.full((width,), config.gamma))
        self.doubled = config.residual == "reference"

    def forward(self, patches: Tensor, tokens: Tensor, position: Tensor) -> Tensor:
        """``[B, N, D], [B, T, D], [T, D] -> [B, N, D]``."""
        update = self.attn(patches, tokens, memory_position=position)
        if self.doubled:  # see docs/deviations.md
            update = patches + update
        out: Tensor = patches + self.gamma * update
        return out


class _BottleneckFFN(nn.Module):
    def __init__(self, width: int, config: AdapterConfig) -> None:
        super().__init__()
        inner = int(width * config.width_ratio)
        self.norm = nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear2(F.relu(self.linear1(self.norm(x))))
        return out


class Extractor(nn.Module):
    """Reads patches into tokens."""

    def __init__(self, width: int, config: AdapterConfig) -> None:
        super().__init__()
        self.attn = CrossAttention(width, config)
        self.ffn = _BottleneckFFN(width, config) if config.bottleneck else None
        self.drop_path = DropPath(config.drop_path)
        self.doubled = config.residual == "reference"

    def forward(self, tokens: Tensor, patches: Tensor, position: Tensor, padding: Tensor | None = None) -> Tensor:
        """``[B, T, D], [B, N, D], [T, D] -> [B, T, D]``; ``padding [B, N]`` True = no patch."""
        update = self.attn(tokens, patches, target_position=position, padding=padding)
        tokens = (2 * tokens if self.doubled else tokens) + update
        return tokens if self.ffn is None else tokens + self.drop_path(self.ffn(tokens))


class TokenSelfAttention(nn.Module):
    """Pre-norm self-attention among tokens, through a bottleneck."""

    def __init__(self, width: int, config: AdapterConfig) -> None:
        super().__init__()
        inner = int(width * config.width_ratio) if config.bottleneck else width
        self.norm = nn.LayerNorm(width)
        self.q_proj: nn.Module = nn.Linear(width, inner) if config.bottleneck else nn.Identity()
        self.output_proj: nn.Module = nn.Linear(inner, width) if config.bottleneck else nn.Identity()
        self.self_attn = nn.MultiheadAttention(inner, config.heads, kdim=width, vdim=width, batch_first=True)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """``[B, T, D], [T, D] -> [B, T, D]``."""
        normed = self.norm(tokens)
        placed = normed + position
        update, _ = self.self_attn(self.q_proj(placed), placed, normed, need_weights=False)
        out: Tensor = tokens + self.output_proj(update)
        return out


class Interaction(nn.Module):
    """One group: inject, run the frozen layers, extract (several times in the last group)."""

    def __init__(self, width: int, config: AdapterConfig, *, last: bool) -> None:
        super().__init__()
        self.injector = Injector(width, config)
        self.extractor = Extractor(width, config)
        extra = config.extra_extractors if last else 0
        self.extra_extractors = nn.ModuleList(Extractor(width, config) for _ in range(extra)) if extra else None

    def extract(self, tokens: Tensor, patches: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:
        """All extractors of the group, one after the other, on the same patches."""
        tokens = self.extractor(tokens, patches, position, padding)
        for extractor in self.extra_extractors or ():
            tokens = extractor(tokens, patches, position, padding)
        return tokens


def init_adapters(module: nn.Module) -> None:
    """Truncated normal (0.02) for linear layers, xavier for attention, as published; biases zero, norms one."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, CrossAttention | TokenSelfAttention):
            for name, parameter in part.named_parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
                elif name.endswith("in_proj_bias"):
                    nn.init.zeros_(parameter)
