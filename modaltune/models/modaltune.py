"""ModalTune: a frozen slide encoder steered by modality and task tokens through Modal Adapters (ICCV 2025).

Shapes: B cases, Q (case, task) pairs, N patches, T tokens, D slide-encoder width, O embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from modaltune.data.batch import Batch
from modaltune.encoders.gene import GeneEncoderConfig, build_gene_encoder
from modaltune.encoders.longnet import LongNetViT
from modaltune.errors import ConfigError
from modaltune.models.adapters import AdapterConfig, Interaction, TokenSelfAttention, init_adapters


@dataclass(frozen=True, kw_only=True)
class ModalTuneConfig:
    """What surrounds the slide encoder."""

    tasks: tuple[str, ...]
    gene_indices: tuple[tuple[int, ...], ...] = ()
    clinical_width: int = 0
    output_width: int = 256
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    gene_encoder: GeneEncoderConfig = field(default_factory=GeneEncoderConfig)
    token_join: str = "sum"
    train_frozen_dropout: bool = False

    def __post_init__(self) -> None:
        if self.token_join not in ("sum", "cat"):
            raise ConfigError(f"model.token_join {self.token_join!r} is unknown; choose from cat, sum")
        if not self.tasks:
            raise ConfigError("model.tasks is empty; a model needs at least one task")


class TaskTokens(nn.Module):
    """One learnt vector per task, with shared bias and norm: a linear map of the one-hot task, kept key by key."""

    def __init__(self, tasks: Sequence[str], width: int) -> None:
        super().__init__()
        self.vectors = nn.ParameterDict({task: nn.Parameter(torch.zeros(width)) for task in tasks})
        self.bias = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width)
        for vector in self.vectors.values():
            nn.init.trunc_normal_(vector, std=0.02)

    def forward(self, tasks: Sequence[str]) -> Tensor:
        """Names -> ``[len(tasks), 1, D]``."""
        out: Tensor = self.norm(torch.stack([self.vectors[task] for task in tasks]) + self.bias)
        return out.unsqueeze(1)


class ModalTune(nn.Module):
    """The trainable model around one frozen slide encoder.

    A case without slides shows the adapters one learnt patch, a case without expression learnt gene tokens, so every
    case passes through the same layers.
    """

    def __init__(self, slide_encoder: LongNetViT, config: ModalTuneConfig) -> None:
        super().__init__()
        width = slide_encoder.config.width
        if config.adapter.groups[-1][1] != slide_encoder.config.depth - 1:
            raise ConfigError(
                f"adapter.groups end at layer {config.adapter.groups[-1][1]} but the slide encoder's last layer is"
                f" {slide_encoder.config.depth - 1}"
            )
        self.config = config
        self.slide_encoder = slide_encoder.requires_grad_(False)
        self.task_tokens = TaskTokens(config.tasks, width)
        self.gene_encoder = (
            build_gene_encoder(config.gene_indices, width, config.gene_encoder) if config.gene_indices else None
        )
        self.clinical_encoder = _clinical_encoder(config.clinical_width, width) if config.clinical_width else None
        gene_tokens = config.gene_encoder.tokens if config.gene_indices else 0
        self.token_positions = nn.Parameter(torch.zeros(int(config.clinical_width > 0) + 1 + gene_tokens, width))
        self.missing = nn.ParameterDict({"slides": nn.Parameter(0.02 * torch.randn(1, width))})
        if gene_tokens:
            self.missing["expression"] = nn.Parameter(0.02 * torch.randn(gene_tokens, width))
        groups = len(config.adapter.groups)
        self.interactions = nn.ModuleList(
            Interaction(width, config.adapter, last=index == groups - 1) for index in range(groups)
        )
        self.prompt_selfattention = nn.ModuleList(
            TokenSelfAttention(width, config.adapter) if index else nn.Identity() for index in range(groups)
        )
        parts = 1 if config.token_join == "sum" else 2 + int(gene_tokens > 0) + int(config.clinical_width > 0)
        self.final_norm = nn.LayerNorm(parts * width)
        self.final_project = nn.Linear(parts * width, config.output_width)
        for module in (self.interactions, self.prompt_selfattention, self.clinical_encoder, self.final_project):
            if module is not None:
                init_adapters(module)
        nn.init.trunc_normal_(self.token_positions, std=0.02)

    def train(self, mode: bool = True) -> ModalTune:
        """Training mode for what is trained; the frozen slide encoder stays deterministic unless asked otherwise."""
        super().train(mode)
        self.slide_encoder.train(mode and self.config.train_frozen_dropout)
        return self

    def forward(self, batch: Batch, cases: Tensor, tasks: Sequence[str]) -> Tensor:
        """Embed (case, task) pairs, each by its own complete pass.

        Args:
            batch: B cases.
            cases: ``[Q]`` row in the batch of each pair.
            tasks: Q task names.
        Returns:
            ``[Q, O]`` embeddings, not normalised.
        """
        patches, lengths = self._patches(batch)
        modality_tokens = self._modality_tokens(batch)
        first = self.config.adapter.groups[0][0]
        tokens = self.slide_encoder.with_cls(patches)
        tokens = self.slide_encoder.run_layers(tokens, 0, first - 1, None if lengths is None else lengths + 1)
        prompts = [part[cases] for part in modality_tokens[:1] if self.clinical_encoder is not None]
        prompts.append(self.task_tokens(tasks))
        prompts += [part[cases] for part in modality_tokens[len(prompts) - 1 :]]
        return self._adapt(tokens[cases], None if lengths is None else lengths[cases], torch.cat(prompts, dim=1))

    def embed(self, batch: Batch, tasks: Sequence[str] | None = None) -> Tensor:
        """All cases for several tasks: ``[B, K, O]``."""
        names = list(tasks or self.config.tasks)
        cases = torch.arange(len(batch), device=batch.patches.device).repeat_interleave(len(names))
        out: Tensor = self(batch, cases, names * len(batch)).unflatten(0, (len(batch), len(names)))
        return out

    def _patches(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Embedded patches ``[B, N, D]`` and their number ``[B]`` (None when every case fills N)."""
        tokens = self.slide_encoder.embed(batch.patches, batch.cells)
        absent = batch.lengths == 0
        if bool(absent.any()):
            tokens = torch.where(absent[:, None, None], self.missing["slides"].to(tokens.dtype), tokens)
        lengths = batch.lengths.clamp(min=1)
        return tokens, None if bool((lengths == tokens.shape[1]).all()) else lengths

    def _modality_tokens(self, batch: Batch) -> list[Tensor]:
        """Clinical token ``[B, 1, D]`` first, then gene tokens ``[B, T, D]``; only those that the model has."""
        parts: list[Tensor] = []
        if self.clinical_encoder is not None:
            parts.append(self.clinical_encoder(batch.clinical).unsqueeze(1))
        if self.gene_encoder is not None:
            parts.append(self._gene_tokens(batch))
        return parts

    def _gene_tokens(self, batch: Batch) -> Tensor:
        present = batch.has_expression
        if self.gene_encoder is None or not bool(present.any()):
            absent: Tensor = self.missing["expression"].expand(len(batch), -1, -1)
            return absent
        tokens: Tensor = self.gene_encoder(batch.expression[present])
        if bool(present.all()):
            return tokens
        rows = self.missing["expression"].to(tokens.dtype).expand(len(batch), -1, -1).clone()
        filled: Tensor = rows.index_put((present.nonzero(as_tuple=True)[0],), tokens)
        return filled

    def _adapt(self, tokens: Tensor, lengths: Tensor | None, prompts: Tensor) -> Tensor:
        """Run all groups on ``tokens [Q, N + 1, D]`` with ``prompts [Q, T, D]`` -> ``[Q, O]``."""
        padding = None
        if lengths is not None:
            padding = torch.arange(tokens.shape[1] - 1, device=tokens.device)[None, :] >= lengths[:, None]
        for index, (low, high) in enumerate(self.config.adapter.groups):
            interaction = cast(Interaction, self.interactions[index])
            if index:
                prompts = self.prompt_selfattention[index](prompts, self.token_positions)
            patches = interaction.injector(tokens[:, 1:], prompts, self.token_positions)
            tokens = torch.cat([tokens[:, :1], patches], dim=1)
            tokens = self.slide_encoder.run_layers(tokens, low, high, None if lengths is None else lengths + 1)
            prompts = interaction.extract(prompts, tokens[:, 1:], self.token_positions, padding)
        return self._head(tokens[:, 0], prompts)

    def _head(self, image: Tensor, prompts: Tensor) -> Tensor:
        """Join CLS ``[Q, D]``, the task token and each modality's mean token, then project to ``[Q, O]``."""
        task = int(self.clinical_encoder is not None)
        parts = [image, prompts[:, task]]
        if self.gene_encoder is not None:
            parts.append(prompts[:, task + 1 :].mean(dim=1))
        if task:
            parts.append(prompts[:, 0])
        joined = torch.cat(parts, dim=-1) if self.config.token_join == "cat" else torch.stack(parts).sum(dim=0)
        out: Tensor = self.final_project(self.final_norm(joined))
        return out


def _clinical_encoder(columns: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(columns, width // 2), nn.ReLU(), nn.Linear(width // 2, width), nn.LayerNorm(width))


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that are trained, and therefore the only ones that may travel."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
