"""Gene encoders: standardised expression -> a few tokens, through gene sets.

Shapes: B cases, G genes of the panel, P gene sets (pathways), M memberships (sum of set sizes), H latent width,
T output tokens, D model width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modaltune.errors import ConfigError, ModelFileError


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
    input_dropout: float = 0.0  # of single genes, before the first layer
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


class SetLinear(nn.Module):
    """One linear layer per gene set, over the set's own genes, computed for all sets together.

    Sets of similar size share one batched product: a bucket pads to the next power of two with genes of value zero.

    Args:
        indices: panel columns of each set.
        outputs: H, width of a set's output.
    """

    columns: Tensor
    rows: Tensor
    inverse: Tensor

    def __init__(self, indices: Sequence[Sequence[int]], outputs: int) -> None:
        super().__init__()
        self.sizes = [len(members) for members in indices]
        starts = np.concatenate([[0], np.cumsum(self.sizes)]).tolist()
        self.weight = nn.Parameter(torch.empty(starts[-1], outputs))  # [M, H], set after set
        self.bias = nn.Parameter(torch.zeros(len(indices), outputs))  # [P, H]
        widths = [1 << (size - 1).bit_length() for size in self.sizes]
        self.buckets = sorted(Counter(widths).items())  # (padded size, sets)
        order = sorted(range(len(indices)), key=lambda row: widths[row])
        columns, rows = [], []
        for row in order:
            padding = [-1] * (widths[row] - self.sizes[row])  # column -1 is the zero appended to the panel
            columns += [*indices[row], *padding]
            rows += [*range(starts[row], starts[row + 1]), *(0 for _ in padding)]
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        self.register_buffer("inverse", torch.tensor(order).argsort(), persistent=False)

    def forward(self, expression: Tensor) -> Tensor:
        """``[B, G]`` -> ``[B, P, H]``."""
        spans = [width * sets for width, sets in self.buckets]
        known = F.pad(expression, (0, 1))[:, self.columns].T.split(spans)  # [sets * width, B] each
        weight = F.embedding(self.rows, self.weight).split(spans)  # [sets * width, H] each
        parts = [
            x.unflatten(0, (sets, width)).transpose(1, 2) @ w.unflatten(0, (sets, width))
            for (width, sets), x, w in zip(self.buckets, known, weight, strict=True)
        ]
        return torch.cat(parts)[self.inverse].transpose(0, 1) + self.bias


class SetNetworks(nn.Module):
    """Two layers that each gene set has for itself, computed for all sets together."""

    def __init__(self, indices: Sequence[Sequence[int]], latent: int, dropout: float) -> None:
        super().__init__()
        self.first = SetLinear(indices, latent)
        self.second_weight = nn.Parameter(torch.empty(len(indices), latent, latent))  # [P, in, out]
        self.second_bias = nn.Parameter(torch.zeros(len(indices), latent))
        for weight in (self.first.weight, self.second_weight):
            nn.init.trunc_normal_(weight, std=0.02)
        self.dropout = nn.AlphaDropout(dropout)

    def pathways(self, expression: Tensor) -> Tensor:
        """``[B, G]`` -> ``[B, P, H]``."""
        z = self.dropout(F.elu(self.first(expression)))
        z = torch.einsum("bph,pho->bpo", z, self.second_weight) + self.second_bias
        out: Tensor = self.dropout(F.elu(z))
        return out


class PaperGeneEncoder(SetNetworks):
    """The published gene mixer: two own layers per gene set, then a mixer over sets.

    All sets are computed at once; the state dict has the published names (``gene_networks.<set>.<layer>.0``).
    """

    def __init__(self, indices: Sequence[Sequence[int]], width: int, config: GeneEncoderConfig) -> None:
        super().__init__(indices, config.latent, config.dropout)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.latent)) if config.cls_token else None
        sets = len(indices) + int(config.cls_token)
        self.mlp_mixer = _mixer(sets, config, width)
        self.pathway_compression = nn.Linear(sets, config.tokens)
        self.register_state_dict_post_hook(_split_sets)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_join_sets)  # type: ignore[no-untyped-call]

    def forward(self, expression: Tensor) -> Tensor:
        """``[B, G]`` -> ``[B, T, D]``."""
        z = self.pathways(self.input_dropout(expression))
        if self.cls_token is not None:
            z = torch.cat([self.cls_token.expand(len(z), -1, -1), z], dim=1)
        out: Tensor = self.pathway_compression(self.mlp_mixer(z).transpose(1, 2)).transpose(1, 2)
        return out

    def published(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Stacked tensors of this encoder (weights, or gradients by parameter name) under the published names."""
        rest = {name: value for name, value in state.items() if not name.removeprefix(prefix).startswith(_STACKED)}
        first = state[f"{prefix}first.weight"].split(self.first.sizes)
        for row, weight in enumerate(first):
            name = f"{prefix}gene_networks.{row}"
            rest[f"{name}.0.0.weight"] = weight.T
            rest[f"{name}.0.0.bias"] = state[f"{prefix}first.bias"][row]
            rest[f"{name}.1.0.weight"] = state[f"{prefix}second_weight"][row].T
            rest[f"{name}.1.0.bias"] = state[f"{prefix}second_bias"][row]
        return rest


_STACKED = ("first.", "second_")


def _split_sets(module: nn.Module, state: dict[str, Tensor], prefix: str, _: object) -> None:
    assert isinstance(module, PaperGeneEncoder)
    published = module.published({name: value for name, value in state.items() if name.startswith(prefix)}, prefix)
    for name in [name for name in state if name.removeprefix(prefix).startswith(_STACKED)]:
        del state[name]
    state |= published


def _join_sets(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    assert isinstance(module, PaperGeneEncoder)
    names = [f"{prefix}gene_networks.{row}" for row in range(len(module.first.sizes))]
    parts = [f"{name}.{layer}.0.{part}" for name in names for layer in (0, 1) for part in ("weight", "bias")]
    if absent := [part for part in parts if part not in state]:
        raise ModelFileError(f"gene encoder weights lack {len(absent)} tensor(s), first {absent[0]}")
    shapes = [state[f"{name}.0.0.weight"].shape[1] for name in names]
    if shapes != module.first.sizes:
        raise ModelFileError(
            f"gene encoder weights are for gene sets of other sizes (first difference at set"
            f" {next(i for i, pair in enumerate(zip(shapes, module.first.sizes, strict=True)) if pair[0] != pair[1])});"
            " use the gene set file that the weights were trained with"
        )
    state[f"{prefix}first.weight"] = torch.cat([state[f"{name}.0.0.weight"].T for name in names])
    state[f"{prefix}first.bias"] = torch.stack([state[f"{name}.0.0.bias"] for name in names])
    state[f"{prefix}second_weight"] = torch.stack([state[f"{name}.1.0.weight"].T for name in names])
    state[f"{prefix}second_bias"] = torch.stack([state[f"{name}.1.0.bias"] for name in names])
    for part in parts:
        del state[part]


class CompactGeneEncoder(nn.Module):
    """Each gene set keeps its own first layer over its own genes; everything behind it is shared."""

    def __init__(self, indices: Sequence[Sequence[int]], width: int, config: GeneEncoderConfig) -> None:
        super().__init__()
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.first = SetLinear(indices, config.latent)
        sizes = torch.tensor(self.first.sizes)
        with torch.no_grad():
            spread = sizes.repeat_interleave(sizes, output_size=len(self.first.weight)).float().rsqrt()
            self.first.weight.copy_(torch.randn(self.first.weight.shape) * spread[:, None])
        self.shared = nn.Sequential(
            nn.LayerNorm(config.latent), nn.Linear(config.latent, config.latent), nn.ELU(), nn.Dropout(config.dropout)
        )
        self.mlp_mixer = _mixer(len(indices), config, width)
        self.pathway_compression = nn.Linear(len(indices), config.tokens)

    def forward(self, expression: Tensor) -> Tensor:
        """``[B, G]`` -> ``[B, T, D]``."""
        z = self.shared(F.elu(self.first(self.input_dropout(expression))))
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
