"""Loss and gradients of one optimiser step over cases of different size and with different tasks.

The loss of a set of cases is the mean over its tasks of the mean over the task's labelled cases, plus the distance from
what hints say about tasks without a label (modaltune/hints.py). It is computed group by group, with the memory of one
graph of bounded size, and equals the loss and the gradient of all cases at once. What the tasks of a case share (frozen
prefix, modality tokens) is computed once; the gradient that reaches it is gathered over the passes of its group.

Shapes: Q (case, task) pairs, O embedding width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modaltune.data.batch import CaseTensors, collate
from modaltune.data.loading import loaded_ahead
from modaltune.models.learner import Learner
from modaltune.tasks.objectives import OBJECTIVES, agreement

GRAPH_LIMIT = 2**20
"""Numbers in the token tensors of one pass: about one (case, task) pair of 1,024 patches at width 768."""
Pair = tuple[int, str]


def device_of(learner: Learner) -> torch.device:
    """Where a model lives."""
    return next(learner.parameters()).device


def precision_of(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where a GPU computes it fast, otherwise full precision; weights stay in fp32."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weight of one (case, task) pair in the loss, by task: of pairs with a label, and of pairs with a hint."""

    labelled: Mapping[str, float]
    hinted: Mapping[str, float] = field(default_factory=dict)


def task_weights(cases: Sequence[CaseTensors], hint: float = 0.0) -> Weights:
    """Tasks count alike, and inside a task its cases; a hinted task counts ``hint`` times as much as a labelled one."""
    labelled = Counter(task for case in cases for task in case.targets)
    hinted = Counter(task for case in cases for task in case.hints)
    return Weights(
        labelled={task: 1 / (len(labelled) * count) for task, count in labelled.items()},
        hinted={task: hint / (max(1, len(labelled)) * count) for task, count in hinted.items()},
    )


def case_groups(
    learner: Learner, cases: Sequence[CaseTensors], passes: Sequence[int], limit: int = GRAPH_LIMIT
) -> Iterator[tuple[int, int]]:
    """Spans of cases whose padded token tensors stay within the limit; a case beyond it stands alone.

    Args:
        passes: how many passes each case takes.
    """
    width = learner.modaltune.token_width
    start, longest, total = 0, 0, 0
    for row, case in enumerate(cases):
        longest, total = max(longest, case.patch_count + 1), total + passes[row]
        if row > start and longest * width * total > limit:
            yield start, row
            start, longest, total = row, case.patch_count + 1, passes[row]
    if len(cases) > start:
        yield start, len(cases)


def accumulate_gradients(
    learner: Learner,
    cases: Sequence[CaseTensors],
    objective: str,
    limit: int = GRAPH_LIMIT,
    weights: Weights | None = None,
) -> float:
    """Add the gradient of the loss of labelled cases to the parameters' and return the loss.

    Args:
        limit: see :data:`GRAPH_LIMIT`.
        weights: :func:`task_weights` of a larger batch of which these cases are a share.
    """
    weights, total = task_weights(cases) if weights is None else weights, 0.0
    spans = case_groups(learner, cases, _passes(learner, cases), limit)
    for group in loaded_ahead(cases[start:stop] for start, stop in spans):
        total += _group_gradients(learner, group, weights, objective, limit)
    return total


@torch.no_grad()
def loss_of(learner: Learner, cases: Sequence[CaseTensors], objective: str) -> float:
    """Loss of labelled cases; the model is taken as it is (call ``eval()`` first to switch dropout off)."""
    weights, total = task_weights(cases), 0.0
    spans = case_groups(learner, cases, _passes(learner, cases))
    for group in loaded_ahead(cases[start:stop] for start, stop in spans):
        pairs = _pairs(group)
        rows, names = _columns(learner, pairs)
        with precision_of(device_of(learner)):
            embeddings = learner(collate(group).to(device_of(learner)), rows, names).float()
        total += float(_loss(learner, embeddings, group, pairs, weights, objective))
    return total


def _passes(learner: Learner, cases: Sequence[CaseTensors]) -> list[int]:
    joint = learner.modaltune.config.task_pass == "joint"
    return [1 if joint else len(case.targets) + len(case.hints) for case in cases]


def _pairs(cases: Sequence[CaseTensors]) -> list[Pair]:
    return [(row, task) for row, case in enumerate(cases) for task in (*case.targets, *case.hints)]


def _columns(learner: Learner, pairs: Sequence[Pair]) -> tuple[Tensor, list[str]]:
    return torch.tensor([row for row, _ in pairs], device=device_of(learner)), [task for _, task in pairs]


def _loss(
    learner: Learner,
    embeddings: Tensor,
    cases: Sequence[CaseTensors],
    pairs: Sequence[Pair],
    weights: Weights,
    objective: str,
) -> Tensor:
    """Weighted sum over pairs with embeddings ``[Q, O]``."""
    head, device, losses = learner.head, embeddings.device, []
    for task in sorted({task for _, task in pairs}):
        kind, scales = learner.kinds[task], learner.scales.get(task, ())
        inside = [(place, cases[row]) for place, (row, name) in enumerate(pairs) if name == task]
        if known := [(place, case.targets[task]) for place, case in inside if task in case.targets]:
            index = torch.tensor([target for _, (target, _) in known], device=device)
            observed = torch.tensor([seen for _, (_, seen) in known], device=device)
            mine = embeddings[torch.tensor([place for place, _ in known], device=device)]
            mean = OBJECTIVES[objective](head, mine, task, kind, index, observed, scales)
            losses.append(mean * (weights.labelled[task] * len(known)))
        if hinted := [(place, case.hints[task]) for place, case in inside if task in case.hints]:
            mine = embeddings[torch.tensor([place for place, _ in hinted], device=device)]
            hints = torch.stack([hint for _, hint in hinted]).to(device)
            mean = agreement(head, mine, task, kind, hints, scales)
            losses.append(mean * (weights.hinted[task] * len(hinted)))
    return torch.stack(losses).sum()


def _group_gradients(
    learner: Learner, cases: Sequence[CaseTensors], weights: Weights, objective: str, limit: int
) -> float:
    model, pairs = learner.modaltune, _pairs(cases)
    batch = collate(cases).to(device_of(learner))
    with precision_of(device_of(learner)):
        tokens, places = model.image_tokens(batch)
        shared = [tokens, *model.modality_tokens(batch)]
    one_pass = max(1, limit // tokens[0].numel()) if model.config.task_pass == "exact" else len(pairs)
    if one_pass < len(pairs):
        leaves = [value.detach().requires_grad_(value.requires_grad) for value in shared]
    else:
        leaves = shared
    total = 0.0
    for start in range(0, len(pairs), one_pass):
        part = pairs[start : start + one_pass]
        rows, names = _columns(learner, part)
        with precision_of(device_of(learner)):
            embeddings = model.adapt(leaves[0], places, leaves[1:], rows, names).float()
        loss = _loss(learner, embeddings, cases, part, weights, objective)
        loss.backward()
        total += float(loss.detach())
    if leaves is not shared:
        reached = [(value, leaf.grad) for value, leaf in zip(shared, leaves, strict=True) if leaf.grad is not None]
        torch.autograd.backward([value for value, _ in reached], [grad for _, grad in reached])
    return total
