"""ModalTune: a frozen slide encoder steered by modality and task tokens through Modal Adapters (ICCV 2025).

Shapes: B cases, Q (case, task) pairs, N patches, T tokens, D slide-encoder width, O embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modaltune.data.batch import Batch
from modaltune.encoders.gene import GeneEncoderConfig, build_gene_encoder
from modaltune.encoders.slide import Places, SlideEncoder
from modaltune.errors import ConfigError
from modaltune.models.adapters import AdapterConfig, Interaction, TokenSelfAttention, init_adapters


@dataclass(frozen=True, kw_only=True)
class ModalTuneConfig:
    """What surrounds the slide encoder.

    ``vectors`` lists further modalities: name, width of the vector, number of tokens.
    """

    tasks: tuple[str, ...]
    gene_indices: tuple[tuple[int, ...], ...] = ()
    clinical_width: int = 0
    vectors: tuple[tuple[str, int, int], ...] = ()
    output_width: int = 256
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    gene_encoder: GeneEncoderConfig = field(default_factory=GeneEncoderConfig)
    token_join: str = "sum"
    gene_summary: str = "mean"
    task_pass: str = "exact"
    frozen_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.gene_summary not in ("mean", "cls"):
            raise ConfigError(f"model.gene_summary {self.gene_summary!r} is unknown; choose from cls, mean")
        if self.task_pass not in ("exact", "joint"):
            raise ConfigError(f"model.task_pass {self.task_pass!r} is unknown; choose from exact, joint")
        if not 0 <= self.frozen_dropout < 1:
            raise ConfigError(f"model.frozen_dropout must be in [0, 1), got {self.frozen_dropout}")
        if self.frozen_dropout and self.adapter.groups[0][0] > 0:
            raise ConfigError("model.frozen_dropout needs adapters from the first layer on: a prefix is cached")
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

    A case without slides shows the adapters one learnt patch, a case without another modality learnt tokens in its
    place, so every case passes through the same layers.
    """

    def __init__(self, slide_encoder: SlideEncoder, config: ModalTuneConfig) -> None:
        super().__init__()
        width = slide_encoder.width
        if config.adapter.groups[-1][1] != slide_encoder.depth - 1:
            raise ConfigError(
                f"adapter.groups end at layer {config.adapter.groups[-1][1]} but the slide encoder's last layer is"
                f" {slide_encoder.depth - 1}"
            )
        self.config = config
        self.slide_encoder = slide_encoder.requires_grad_(False)
        for part in slide_encoder.modules() if config.frozen_dropout else ():
            if isinstance(part, nn.Dropout):
                part.p = config.frozen_dropout
        self.task_tokens = TaskTokens(config.tasks, width)
        self.gene_encoder = (
            build_gene_encoder(config.gene_indices, width, config.gene_encoder) if config.gene_indices else None
        )
        self.clinical_encoder = _clinical_encoder(config.clinical_width, width) if config.clinical_width else None
        self.vector_encoders = nn.ModuleDict(
            {name: _vector_encoder(columns, width, tokens) for name, columns, tokens in config.vectors}
        )
        gene_tokens = config.gene_encoder.tokens if config.gene_indices else 0
        summary = int(gene_tokens > 0 and config.gene_summary == "cls")
        self.gene_cls = nn.Parameter(torch.zeros(1, 1, width)) if summary else None
        self.token_positions = nn.Parameter(
            torch.zeros(
                int(config.clinical_width > 0) + 1 + summary + gene_tokens + sum(t for *_, t in config.vectors), width
            )
        )
        self.missing = nn.ParameterDict({"slides": nn.Parameter(0.02 * torch.randn(1, width))})
        if gene_tokens:
            self.missing["expression"] = nn.Parameter(0.02 * torch.randn(gene_tokens, width))
        for name, _, tokens in config.vectors:
            self.missing[name] = nn.Parameter(0.02 * torch.randn(tokens, width))
        groups = len(config.adapter.groups)
        self.interactions = nn.ModuleList(
            Interaction(width, config.adapter, last=index == groups - 1) for index in range(groups)
        )
        self.prompt_selfattention = nn.ModuleList(
            TokenSelfAttention(width, config.adapter) if index else nn.Identity() for index in range(groups)
        )
        own_part = [gene_tokens, config.clinical_width, *(tokens for *_, tokens in config.vectors)]
        parts = 1 if config.token_join == "sum" else 2 + sum(size > 0 for size in own_part)
        self.final_norm = nn.LayerNorm(parts * width)
        self.final_project = nn.Linear(parts * width, config.output_width)
        for module in (
            self.interactions,
            self.prompt_selfattention,
            self.clinical_encoder,
            self.vector_encoders,
            self.final_project,
        ):
            if module is not None:
                init_adapters(module)
        nn.init.trunc_normal_(self.token_positions, std=0.02)
        if self.gene_cls is not None:
            nn.init.trunc_normal_(self.gene_cls, std=0.02)

    @property
    def token_width(self) -> int:
        """D, the numbers per patch that a pass keeps."""
        return self.slide_encoder.width

    def train(self, mode: bool = True) -> ModalTune:
        """Training mode for what is trained; the frozen slide encoder stays deterministic unless asked otherwise."""
        super().train(mode)
        self.slide_encoder.train(mode and self.config.frozen_dropout > 0)
        return self

    def forward(self, batch: Batch, cases: Tensor, tasks: Sequence[str]) -> Tensor:
        """Embed (case, task) pairs.

        Args:
            batch: B cases.
            cases: ``[Q]`` row in the batch of each pair.
            tasks: Q task names.
        Returns:
            ``[Q, O]`` embeddings, not normalised.
        """
        tokens, places = self.image_tokens(batch)
        return self.adapt(tokens, places, self.modality_tokens(batch), cases, tasks)

    def embed(self, batch: Batch, tasks: Sequence[str] | None = None) -> Tensor:
        """All cases for several tasks: ``[B, K, O]``."""
        names = list(tasks or self.config.tasks)
        cases = torch.arange(len(batch), device=batch.lengths.device).repeat_interleave(len(names))
        out: Tensor = self(batch, cases, names * len(batch)).unflatten(0, (len(batch), len(names)))
        return out

    def image_tokens(self, batch: Batch) -> tuple[Tensor, Places]:
        """What the first adapter sees: CLS and patches ``[B, N + 1, D]``, and where these lie.

        Nothing trained goes into it but the learnt patch of cases without slides.
        """
        lengths = batch.lengths.clamp(min=1)
        places = Places(batch.cells, None if bool((lengths == batch.cells.shape[1]).all()) else lengths)
        if batch.tokens is None:
            return self._frozen_prefix(self._patches(batch), places), places
        absent = batch.lengths == 0
        if not bool(absent.any()):
            return batch.tokens, places
        learnt = self.missing["slides"].to(batch.tokens.dtype).unsqueeze(0)
        rows = self._frozen_prefix(learnt, Places(batch.cells.new_zeros(1, 1, 2)))
        return torch.where(
            absent[:, None, None], F.pad(rows, (0, 0, 0, batch.tokens.shape[1] - 2)), batch.tokens
        ), places

    def modality_tokens(self, batch: Batch) -> list[Tensor]:
        """Clinical token ``[B, 1, D]``, gene tokens ``[B, T, D]``, then further ones; only those that the model has."""
        parts: list[Tensor] = []
        if self.clinical_encoder is not None:
            parts.append(self.clinical_encoder(batch.clinical).unsqueeze(1))
        if self.gene_encoder is not None:
            parts.append(self._gene_tokens(batch))
        return parts + [self._vector_tokens(batch, name) for name, *_ in self.config.vectors]

    def adapt(
        self,
        tokens: Tensor,
        places: Places,
        modalities: Sequence[Tensor],
        cases: Tensor,
        tasks: Sequence[str],
    ) -> Tensor:
        """Adapters and the rest of the slide encoder for (case, task) pairs.

        ``exact``: a complete pass for each pair. ``joint``: one pass for each case with the tokens of all tasks.

        Args:
            tokens, places: from :meth:`image_tokens`.
            modalities: from :meth:`modality_tokens`.
            cases: ``[Q]`` rows of the pairs.
            tasks: Q task names.
        Returns:
            ``[Q, O]``.
        """
        if self.config.task_pass == "exact":
            chosen = self.task_tokens(tasks)
            return self._pass(tokens[cases], places.of(cases), [part[cases] for part in modalities], chosen)[:, 0]
        rows, place = cases.unique(return_inverse=True)
        chosen = self.task_tokens(self.config.tasks).transpose(0, 1).expand(len(rows), -1, -1)
        out = self._pass(tokens[rows], places.of(rows), [part[rows] for part in modalities], chosen)
        return out[place, torch.tensor([self.config.tasks.index(task) for task in tasks], device=out.device)]

    def _frozen_prefix(self, patches: Tensor, places: Places) -> Tensor:
        first = self.config.adapter.groups[0][0]
        return self.slide_encoder.run_layers(self.slide_encoder.with_cls(patches), 0, first - 1, places)

    def _patches(self, batch: Batch) -> Tensor:
        """Embedded patches ``[B, N, D]``, the learnt one in the first row of a case without slides."""
        tokens = self.slide_encoder.embed(batch.patches, batch.cells)
        absent = batch.lengths == 0
        if bool(absent.any()):
            tokens = torch.where(absent[:, None, None], self.missing["slides"].to(tokens.dtype), tokens)
        return tokens

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

    def _vector_tokens(self, batch: Batch, name: str) -> Tensor:
        learnt: Tensor = self.missing[name].expand(len(batch), -1, -1)
        if name not in batch.vectors:
            return learnt
        rows, values = batch.vectors[name]
        tokens: Tensor = self.vector_encoders[name](values)
        return learnt.to(tokens.dtype).index_put((rows,), tokens)

    def _pass(self, tokens: Tensor, places: Places, modalities: Sequence[Tensor], tasks: Tensor) -> Tensor:
        """All groups on ``tokens [Q, N + 1, D]`` with ``tasks [Q, t, D]`` task tokens each -> ``[Q, t, O]``."""
        clinical = int(self.clinical_encoder is not None)
        prompts = [*modalities[:clinical], tasks]
        if self.gene_cls is not None:
            prompts.append(self.gene_cls.expand(len(tokens), -1, -1))
        joined = torch.cat([*prompts, *modalities[clinical:]], dim=1)
        position: Tensor = self.token_positions
        if (count := tasks.shape[1]) > 1:  # all task tokens stand at the one task position
            task = position[clinical : clinical + 1].expand(count, -1)
            position = torch.cat([position[:clinical], task, position[clinical + 1 :]])
        padding = None
        if places.lengths is not None:
            padding = torch.arange(tokens.shape[1] - 1, device=tokens.device)[None, :] >= places.lengths[:, None]
        for index, (low, high) in enumerate(self.config.adapter.groups):
            interaction = cast(Interaction, self.interactions[index])
            if index:
                joined = self.prompt_selfattention[index](joined, position)
            patches = interaction.injector(tokens[:, 1:], joined, position)
            tokens = torch.cat([tokens[:, :1], patches], dim=1)
            tokens = self.slide_encoder.run_layers(tokens, low, high, places)
            joined = interaction.extract(joined, tokens[:, 1:], position, padding)
        return self._head(self.slide_encoder.image(tokens, places), joined, count)

    def _head(self, image: Tensor, prompts: Tensor, tasks: int) -> Tensor:
        """Join image ``[Q, 1, D]``, each task token and each modality's token, then project to ``[Q, t, O]``."""
        clinical = int(self.clinical_encoder is not None)
        parts = [image, prompts[:, clinical : clinical + tasks]]
        further = [tokens for *_, tokens in self.config.vectors]
        own = prompts.shape[1] - clinical - tasks - sum(further)
        genes, *vectors = prompts[:, clinical + tasks :].split([own, *further], dim=1)
        if self.gene_encoder is not None:
            parts.append(genes.mean(dim=1, keepdim=True) if self.gene_cls is None else genes[:, :1])
        parts += [tokens.mean(dim=1, keepdim=True) for tokens in vectors]
        if clinical:
            parts.append(prompts[:, :1])
        if self.config.token_join == "cat":
            joined = torch.cat([part.expand(-1, tasks, -1) for part in parts], dim=-1)
        else:
            joined = torch.stack([part.expand(-1, tasks, -1) for part in parts]).sum(dim=0)
        out: Tensor = self.final_project(self.final_norm(joined))
        return out


def _vector_encoder(columns: int, width: int, tokens: int) -> nn.Sequential:
    """``[B, columns]`` -> ``[B, tokens, D]``."""
    return nn.Sequential(
        nn.Linear(columns, width // 2),
        nn.ReLU(),
        nn.Linear(width // 2, tokens * width),
        nn.Unflatten(-1, (tokens, width)),
        nn.LayerNorm(width),
    )


def _clinical_encoder(columns: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(columns, width // 2), nn.ReLU(), nn.Linear(width // 2, width), nn.LayerNorm(width))


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that are trained, and therefore the only ones that may travel."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
