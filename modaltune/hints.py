"""What the others know about tasks that a hospital has no labels for.

The model that a hospital receives was trained on these tasks elsewhere. Training on the hospital's own labels alone can
make it forget them: weights that all tasks share move. So the received model first says, on the hospital's own training
cases, what it thinks about each task without a label; while the model is trained it stays near these hints (learning
without forgetting; with dropout, a semi-supervised consistency). Nothing more travels, and a task's own parameters
still count only the cases that carry its label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from modaltune.data.batch import CaseTensors, collate
from modaltune.data.loading import loaded_ahead
from modaltune.models.learner import Learner
from modaltune.step import case_groups, device_of, precision_of


@torch.no_grad()
def with_hints(learner: Learner, cases: Sequence[CaseTensors]) -> list[CaseTensors]:
    """The cases, each with the model's log-probabilities for the tasks that none of them has a target for.

    A single case without a label at a hospital that labels the task gets none: the others keep the task in mind. The
    model is asked without dropout and with all that is known of a case; its mode is left as it was.
    """
    lacking = [task for task in learner.kinds if not any(task in case.targets for case in cases)]
    if not lacking:
        return list(cases)
    found: list[CaseTensors] = []
    mode = learner.training
    learner.eval()
    groups = [cases[start:stop] for start, stop in case_groups(learner, cases, [len(lacking)] * len(cases))]
    for group, loaded in zip(groups, loaded_ahead(groups), strict=True):
        pairs = [(place, task) for place in range(len(group)) for task in lacking]
        said = iter(_log_probabilities(learner, loaded, pairs))
        found += [replace(case, hints={task: next(said) for task in lacking}) for case in group]
    learner.train(mode)
    return found


def _log_probabilities(
    learner: Learner, cases: Sequence[CaseTensors], pairs: Sequence[tuple[int, str]]
) -> list[Tensor]:
    """Log-probabilities ``[candidates]`` of each (case, task) pair, in main memory."""
    device = device_of(learner)
    rows = torch.tensor([row for row, _ in pairs], device=device)
    with precision_of(device):
        embeddings = learner(collate(cases).to(device), rows, [task for _, task in pairs]).float()
    return [
        learner.head(embedding[None], task).log_softmax(dim=-1)[0].cpu()
        for embedding, (_, task) in zip(embeddings, pairs, strict=True)
    ]
