"""From an embedding to scores over a task's candidate labels.

Shapes: Q cases of one task, C candidates, O embedding width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modaltune.tasks.hazards import bin_log_probabilities

_FIRST_SCALE = 4.0
LARGEST_SCALE = 100.0


def candidate_targets(texts: Tensor, *, centre: bool) -> Tensor:
    """Projected candidate texts ``[C, O]`` -> unit targets.

    Sentence embeddings of one task are nearly parallel; taking away their mean keeps what tells them apart.
    """
    unit = F.normalize(texts, dim=-1)
    if centre and len(unit) > 1:
        unit = F.normalize(unit - unit.mean(dim=0), dim=-1)
    return unit


class TextHead(nn.Module):
    """One space for all tasks: cosine to the task's candidate texts, times a learnt scale per task.

    Args:
        candidates: unit targets ``[C, O]`` of each task.
        temperature: of distillation.
        maps: each task has a linear map into the space, which only cases with its label train. Without, all that tells
            tasks apart is their tokens, and sites that label other tasks move the rest.
    """

    def __init__(self, candidates: Mapping[str, Tensor], *, temperature: float = 1.0, maps: bool = False) -> None:
        super().__init__()
        self.temperature = temperature
        self.candidates = nn.ParameterDict(
            {task: nn.Parameter(value.clone(), requires_grad=False) for task, value in candidates.items()}
        )
        self.scale = nn.ParameterDict({task: nn.Parameter(torch.tensor(_FIRST_SCALE).log()) for task in candidates})
        self.maps = nn.ParameterDict(
            {task: nn.Parameter(torch.zeros(2 * value.shape[1:])) for task, value in candidates.items() if maps}
        )

    def targets(self, task: str) -> Tensor:
        """Frozen unit targets ``[C, O]``."""
        targets: Tensor = self.candidates[task]
        return targets

    def directions(self, embeddings: Tensor, task: str) -> Tensor:
        """``[Q, O] -> [Q, O]`` unit vectors in the space of the texts."""
        if task in self.maps:
            embeddings = embeddings + embeddings @ self.maps[task]
        return F.normalize(embeddings, dim=-1)

    def cosines(self, embeddings: Tensor, task: str) -> Tensor:
        """``[Q, O] -> [Q, C]`` cosines to the candidate texts: logits without the learnt scale."""
        return self.directions(embeddings, task) @ self.targets(task).T

    def forward(self, embeddings: Tensor, task: str) -> Tensor:
        """``[Q, O] -> [Q, C]`` logits."""
        scale = self.scale[task].exp().clamp(max=LARGEST_SCALE)
        logits: Tensor = scale * self.directions(embeddings, task) @ self.targets(task).T
        return logits


class SeparateHeads(nn.Module):
    """The usual multi-task model: one linear classifier per task and no label text."""

    def __init__(self, classes: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.classifiers = nn.ModuleDict({task: nn.Linear(width, count) for task, count in classes.items()})

    def forward(self, embeddings: Tensor, task: str) -> Tensor:
        """``[Q, O] -> [Q, C]`` logits."""
        out: Tensor = self.classifiers[task](embeddings)
        return out


class HazardHeads(SeparateHeads):
    """Separate heads of which those of survival tasks give hazards of the time bins."""

    def __init__(self, classes: Mapping[str, int], width: int, survival: Collection[str]) -> None:
        super().__init__(classes, width)
        self.survival = frozenset(survival)

    def logits(self, embeddings: Tensor, task: str) -> Tensor:
        """``[Q, O] -> [Q, C]`` of the classes, or of the hazards."""
        return super().forward(embeddings, task)

    def forward(self, embeddings: Tensor, task: str) -> Tensor:
        """``[Q, O] -> [Q, C]`` whose softmax are probabilities of the candidates, for survival as hazards have them."""
        logits = self.logits(embeddings, task)
        return bin_log_probabilities(logits) if task in self.survival else logits
