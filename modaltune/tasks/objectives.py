"""Training objectives over label texts, one interface: embeddings, logits and targets of one task -> loss.

Shapes: Q labelled cases of one task, C candidates (classes, levels or time bins), O embedding width.
A target is the index of a candidate and ``observed``; observed False means censored: every later bin stays possible.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from modaltune.errors import ConfigError
from modaltune.tasks.hazards import hazard_nll
from modaltune.tasks.head import HazardHeads, SeparateHeads, TextHead

Head = TextHead | SeparateHeads
Objective = Callable[[Head, Tensor, str, str, Tensor, Tensor], Tensor]


def possible_candidates(index: Tensor, observed: Tensor, candidates: int) -> Tensor:
    """``[Q, C]`` True where a candidate agrees with what is known: the label itself or, if censored, it and later."""
    position = torch.arange(candidates, device=index.device)[None, :]
    return torch.where(observed[:, None], position == index[:, None], position >= index[:, None])


def _above_and_below(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``[Q, C]`` -> log P(label > c) and log P(label <= c), ``[Q, C - 1]`` each."""
    above = log_p.flip(-1).logcumsumexp(dim=-1).flip(-1)[:, 1:]
    return above, log_p.logcumsumexp(dim=-1)[:, :-1]


def _cumulative_loss(logits: Tensor, index: Tensor, observed: Tensor) -> Tensor:
    """Log loss of "above level c" for every level, skipping what censoring hides; respects the order of labels."""
    above, below = _above_and_below(logits.log_softmax(dim=-1))
    level = torch.arange(logits.shape[1] - 1, device=index.device)[None, :]
    is_above = level < index[:, None]
    known = is_above | observed[:, None]
    return -(torch.where(is_above, above, below) * known).mean(dim=-1)


def contrastive(head: Head, embeddings: Tensor, task: str, kind: str, index: Tensor, observed: Tensor) -> Tensor:
    """Softmax over the candidate texts.

    Nominal: cross-entropy. Ordinal and survival: mean log loss over the levels or bin edges, so that a neighbouring
    label costs less than a distant one and a censored case counts only where its status is known.
    """
    logits = head(embeddings, task)
    if kind == "nominal":
        return F.cross_entropy(logits, index)
    return _cumulative_loss(logits, index, observed).mean()


def distillation(head: Head, embeddings: Tensor, task: str, kind: str, index: Tensor, observed: Tensor) -> Tensor:
    """The published loss: KL between softmaxed unit embeddings and softmaxed text targets, times 10.

    A censored case aims at the mean of the bins that are still possible.
    """
    if not isinstance(head, TextHead):
        raise ConfigError("training.objective 'distillation' needs model.head = 'text'")
    targets = head.targets(task)
    possible = possible_candidates(index, observed, len(targets)).float()
    wanted = F.normalize(possible @ targets, dim=-1)
    z = F.normalize(embeddings, dim=-1)
    return 10 * F.kl_div(z.log_softmax(-1), wanted.softmax(-1), reduction="sum") / len(z)


def hazards(head: Head, embeddings: Tensor, task: str, kind: str, index: Tensor, observed: Tensor) -> Tensor:
    """The loss of the baselines: cross-entropy, for survival the likelihood of discrete hazards."""
    if not isinstance(head, HazardHeads):
        raise ConfigError("training.objective 'hazards' needs a baseline as model.kind")
    logits = head.logits(embeddings, task)
    return hazard_nll(logits, index, observed) if kind == "survival" else F.cross_entropy(logits, index)


def agreement(head: Head, embeddings: Tensor, task: str, kind: str, hints: Tensor) -> Tensor:
    """How far the head is from hinted log-probabilities ``[Q, C]``: the mean Kullback-Leibler divergence, 0 = equal.

    Ordered labels are compared level by level, as :func:`contrastive` does.
    """
    found = head(embeddings, task).log_softmax(dim=-1)
    if kind == "nominal":
        return F.kl_div(found, hints, reduction="batchmean", log_target=True)
    wanted, given = torch.stack(_above_and_below(hints)), torch.stack(_above_and_below(found))
    return (wanted.exp() * (wanted - given)).sum(dim=0).mean()


OBJECTIVES: dict[str, Objective] = {"contrastive": contrastive, "distillation": distillation, "hazards": hazards}
