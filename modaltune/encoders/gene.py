"""Gene encoders: standardised expression -> a few tokens, through gene sets.

Shapes: B cases, G genes of the panel, P gene sets (pathways), M memberships (sum of set sizes), H latent width,
T output tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modaltune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GeneEncoderConfig:
    """Sizes of a gene encoder; ``paper`` is the published one, ``compact`` shares all but each set's first layer."""

    kind: str = "compact"
    latent: int = 64
    depth: int = 1
    tokens: int = 16
    expand_sets: float = 0.5
    expand_latent: float = 0.5
    dropout: float = 0.1
    input_dropout: float = 0.0  # of single genes, before the first layer; compact only
    cls_token: bool = False

    def __post_init__(self) -> None:
        if self.kind not in GENE_ENCODERS:
            raise ConfigError(f"gene_encoder.kind {self.kind!r} is unknown; choose from {', '.join(GENE_ENCODERS)}")
        for name, rate in (("dropout", self.dropout), ("input_dropout", self.input_dropout)):
            if not 0 <= rate < 1:
                raise ConfigError(f"gene_encoder.{name} must be in [0, 1), got {rate}")


def set_indices(gene_sets: Mapping[str, Sequence[str]], genes: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Columns of the panel that each gene set reads, in the order of the sets."""
    column = {gene: index for index, gene in enumerate(genes)}
    missing = [name for name, members in gene_sets.items() if not all(gene in column for gene in members)]
    if missing:
        raise ConfigError(
            f"gene set {missing[0]!r} names genes outside the panel; restrict the sets to the panel first"
        )
    return tuple(tuple(column[gene] for gene in members) for members in gene_sets.values())


class _Mixing(nn.Module):
    """``z + W2 gelu(W1 LN(z))`` along the sets (convolution of kernel 1) or along the latent axis."""

    def __init__(self, latent: int, outer: int, inner: int, dropout: float, *, along_sets: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(latent)
        first = nn.Conv1d(outer, inner, 1) if along_sets else nn.Linear(outer, inner)
        second = nn.Conv1d(inner, outer, 1) if along_sets else nn.Linear(inner, outer)
        self.fn = nn.Sequential(first, nn.GELU(), nn.Dropout(dropout), second, nn.Dropout(dropout))

    def forward(self, z: Tensor) -> Tensor:
        """``[B, P, H]`` -> same shape."""
        out: Tensor = z + self.fn(self.norm(z))
        return out


def _mixer(sets: int, config: GeneEncoderConfig, width: int) -> nn.Sequential:
    blocks: list[nn.Module] = [
        nn.Sequential(
            _Mixing(config.latent, sets, int(sets * config.expand_sets), config.dropout, along_sets=True),
            _Mixing(
                config.latent,
                config.latent,
                int(config.latent * config.expand_latent),
                config.dropout,
                along_sets=False,
            ),
        )
        for _ in range(config.depth)
    ]
    return nn.Sequential(*blocks, nn.LayerNorm(config.latent), nn.Linear(config.latent, width))


class PaperGeneEncoder(nn.Module):
    """The published gene mixer: two own layers per gene set, then a mixer over sets (state-dict names kept)."""

    def __init__(self, indices: Sequence[Sequence[int]], width: int, config: GeneEncoderConfig) -> None:
        super().__init__()
        self.indices = [list(members) for members in indices]
        self.gene_networks = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(nn.Linear(len(members), config.latent), nn.ELU(), nn.AlphaDropout(config.dropout)),
                nn.Sequential(nn.Linear(config.latent, config.latent), nn.ELU(), nn.AlphaDropout(config.dropout)),
            )
            for members in self.indices
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.latent)) if config.cls_token else None
        sets = len(self.indices) + int(config.cls_token)
        self.mlp_mixer = _mixer(sets, config, width)
        self.pathway_compression = nn.Linear(sets, config.tokens)

    def forward(self, expression: Tensor) -> Tensor:
        """``[B, G]`` -> ``[B, T, D]``."""
        rows = [net(expression[:, members]) for net, members in zip(self.gene_networks, self.indices, strict=True)]
        z = torch.stack(rows, dim=1)  # [B, P, H]
        if self.cls_token is not None:
            z = torch.cat([self.cls_token.expand(len(z), -1, -1), z], dim=1)
        out: Tensor = self.pathway_compression(self.mlp_mixer(z).transpose(1, 2)).transpose(1, 2)
        return out


class CompactGeneEncoder(nn.Module):
    """Each gene set keeps its own first layer over its own genes; everything behind it is shared."""

    columns: Tensor
    slots: Tensor

    def __init__(self, indices: Sequence[Sequence[int]], width: int, config: GeneEncoderConfig) -> None:
        super().__init__()
        sizes = [len(members) for members in indices]
        total, sets, longest = sum(sizes), len(sizes), max(sizes)
        columns = torch.zeros(sets, longest, dtype=torch.long)
        slots = torch.full((sets, longest), total)  # slot ``total`` is a row of zeros: padding
        start = 0
        for row, members in enumerate(indices):
            columns[row, : len(members)] = torch.tensor(list(members))
            slots[row, : len(members)] = torch.arange(start, start + len(members))
            start += len(members)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("slots", slots, persistent=False)
        spread = torch.tensor(sizes, dtype=torch.float32).repeat_interleave(torch.tensor(sizes)).rsqrt()
        self.first_weight = nn.Parameter(torch.randn(total, config.latent) * spread[:, None])  # [M, H]
        self.first_bias = nn.Parameter(torch.zeros(sets, config.latent))  # [P, H]
        self.shared = nn.Sequential(
            nn.LayerNorm(config.latent), nn.Linear(config.latent, config.latent), nn.ELU(), nn.Dropout(config.dropout)
        )
        self.mlp_mixer = _mixer(sets, config, width)
        self.pathway_compression = nn.Linear(sets, config.tokens)

    def forward(self, expression: Tensor) -> Tensor:
        """``[B, G]`` -> ``[B, T, D]``."""
        weight = F.pad(self.first_weight, (0, 0, 0, 1))[self.slots]  # [P, longest, H], zeros where padded
        known = self.input_dropout(expression)[:, self.columns]
        z = torch.einsum("bpl,plh->bph", known, weight) + self.first_bias
        z = self.shared(F.elu(z))
        out: Tensor = self.pathway_compression(self.mlp_mixer(z).transpose(1, 2)).transpose(1, 2)
        return out


GENE_ENCODERS: dict[str, type[PaperGeneEncoder] | type[CompactGeneEncoder]] = {
    "compact": CompactGeneEncoder,
    "paper": PaperGeneEncoder,
}


def build_gene_encoder(indices: Sequence[Sequence[int]], width: int, config: GeneEncoderConfig) -> nn.Module:
    """The gene encoder that ``config.kind`` names; ``indices`` from :func:`set_indices`."""
    if not indices:
        raise ConfigError("the gene encoder needs at least one gene set with measured genes; check the gene set file")
    return GENE_ENCODERS[config.kind](indices, width, config)
