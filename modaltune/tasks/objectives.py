"""Training objectives over label texts, one interface: embeddings, logits and targets of one task -> loss.

Shapes: Q labelled cases of one task, C candidates (classes, levels or time bins), O embedding width.
A target is the index of a candidate and ``observed``; observed False means censored: every later bin stays possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from modaltune.errors import ConfigError
from modaltune.tasks.hazards import hazard_nll
from modaltune.tasks.head import HazardHeads, SeparateHeads, TextHead

Head = TextHead | SeparateHeads


class Objective(Protocol):
    """The mean loss of the labelled cases of one task.

    Args:
        scales: ordinal: candidates of each scale, in their order; empty = all are one scale.
    """

    def __call__(
        self,
        head: Head,
        embeddings: Tensor,
        task: str,
        kind: str,
        index: Tensor,
        observed: Tensor,
        scales: Sequence[int] = (),
        /,
    ) -> Tensor: ...


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


def _scaled_loss(logits: Tensor, index: Tensor, scales: Sequence[int]) -> Tensor:
    """Log loss of the label's scale, plus the ordered loss among the levels of that scale."""
    position = torch.arange(len(scales), device=index.device).repeat_interleave(
        torch.tensor(scales, device=index.device)
    )
    mine, first = position[index], 0
    loss = F.cross_entropy(_scale_logits(logits, scales), mine, reduction="none")
    for scale, levels in enumerate(logits.split(list(scales), dim=-1)):
        inside = (mine == scale).nonzero()[:, 0]
        if levels.shape[1] > 1 and len(inside):
            level = index[inside] - first
            ordered = _cumulative_loss(levels[inside], level, torch.ones_like(level, dtype=torch.bool))
            loss = loss.index_add(0, inside, ordered)
        first += levels.shape[1]
    return loss


def _scale_logits(logits: Tensor, scales: Sequence[int]) -> Tensor:
    """Logits ``[Q, C]`` of labels -> ``[Q, S]`` of scales."""
    return torch.stack([levels.logsumexp(dim=-1) for levels in logits.split(list(scales), dim=-1)], dim=-1)


def contrastive(
    head: Head, embeddings: Tensor, task: str, kind: str, index: Tensor, observed: Tensor, scales: Sequence[int] = ()
) -> Tensor:
    """Softmax over the candidate texts.

    Nominal: cross-entropy. Ordinal and survival: mean log loss over the levels or bin edges, so that a neighbouring
    label costs less than a distant one and a censored case counts only where its status is known. Labels on several
    scales: cross-entropy of the scale, and that ordered loss within it.
    """
    logits = head(embeddings, task)
    if kind == "nominal":
        return F.cross_entropy(logits, index)
    if len(scales) > 1:
        return _scaled_loss(logits, index, scales).mean()
    return _cumulative_loss(logits, index, observed).mean()


def distillation(
    head: Head, embeddings: Tensor, task: str, kind: str, index: Tensor, observed: Tensor, scales: Sequence[int] = ()
) -> Tensor:
    """The published loss: KL between softmaxed unit embeddings and softmaxed text targets, times 10.

    Both are divided by the head's temperature first, and the loss is multiplied by its square.

    A censored case aims at the mean of the bins that are still possible; where all are, nothing is known of it.
    """
    if not isinstance(head, TextHead):
        raise ConfigError("training.objective 'distillation' needs model.head = 'text'")
    targets = head.targets(task)
    possible = possible_candidates(index, observed, len(targets)).float()
    wanted = (F.normalize(possible @ targets, dim=-1) / head.temperature).softmax(-1)
    given = (head.directions(embeddings, task) / head.temperature).log_softmax(-1)
    distances = F.kl_div(given, wanted, reduction="none").sum(dim=-1)
    return 10 * head.temperature**2 * (distances * (possible.sum(dim=-1) < len(targets))).mean()


def hazards(
    head: Head, embeddings: Tensor, task: str, kind: str, index: Tensor, observed: Tensor, scales: Sequence[int] = ()
) -> Tensor:
    """The loss of the baselines: cross-entropy, for survival the likelihood of discrete hazards."""
    if not isinstance(head, HazardHeads):
        raise ConfigError("training.objective 'hazards' needs a baseline as model.kind")
    logits = head.logits(embeddings, task)
    return hazard_nll(logits, index, observed) if kind == "survival" else F.cross_entropy(logits, index)


def agreement(
    head: Head, embeddings: Tensor, task: str, kind: str, hints: Tensor, scales: Sequence[int] = ()
) -> Tensor:
    """How far the head is from hinted log-probabilities ``[Q, C]``: the mean Kullback-Leibler divergence, 0 = equal.

    Ordered labels are compared level by level and scale by scale, as :func:`contrastive` does.
    """
    found = head(embeddings, task).log_softmax(dim=-1)
    if kind == "nominal":
        return _divergence(found, hints)
    if len(scales) < 2:
        return _ordered_divergence(found, hints).mean()
    wanted, given = _scale_logits(hints, scales), _scale_logits(found, scales)
    total = _divergence(given, wanted)
    levels = zip(found.split(list(scales), dim=-1), hints.split(list(scales), dim=-1), strict=True)
    for scale, (here, there) in enumerate(levels):
        if scales[scale] > 1:
            inside = _ordered_divergence(here.log_softmax(dim=-1), there.log_softmax(dim=-1)).mean(dim=-1)
            total = total + (wanted[:, scale].exp() * inside).mean()
    return total


def _divergence(found: Tensor, wanted: Tensor) -> Tensor:
    return F.kl_div(found, wanted, reduction="batchmean", log_target=True)


def _ordered_divergence(found: Tensor, wanted: Tensor) -> Tensor:
    """Divergence ``[Q, C - 1]`` at every level, of log-probabilities ``[Q, C]``."""
    there, here = torch.stack(_above_and_below(wanted)), torch.stack(_above_and_below(found))
    return (there.exp() * (there - here)).sum(dim=0)


OBJECTIVES: dict[str, Objective] = {"contrastive": contrastive, "distillation": distillation, "hazards": hazards}
