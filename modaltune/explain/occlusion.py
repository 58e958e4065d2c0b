"""What a score would be without something: occlusion of gene sets and of whole modalities.

A gene set is occluded by giving its genes the pooled mean of the training cases (zero, once standardised), a modality
by taking it away, so that the model sees its learnt token. A contribution is the score of the case minus the score
without.

Shapes: P gene sets, V variants of one case, C candidates, G' width of the expression input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from modaltune.data.batch import CaseTensors, collate, modalities_of, without_modality
from modaltune.data.preprocessing import Preprocessing, TaskSpace
from modaltune.encoders.gene import set_indices
from modaltune.encoders.slide import Places
from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.predictions import embed_cases, expected_risk, probabilities_of
from modaltune.explain.attention import explained
from modaltune.federation.task import TaskSpec
from modaltune.models.learner import Learner
from modaltune.step import GRAPH_LIMIT, device_of, precision_of


@dataclass(frozen=True, kw_only=True)
class Occlusion:
    """Probabilities of one case, for every task, with everything and without something.

    Attributes:
        whole: task -> ``[C]``.
        modalities: modality that the case has -> task -> ``[C]`` without it.
        gene_sets: task -> ``[P, C]`` without each gene set, in the order of ``names``.
        names: of the gene sets; none for a case without expression.
    """

    whole: Mapping[str, Floats]
    modalities: Mapping[str, Mapping[str, Floats]]
    gene_sets: Mapping[str, Floats]
    names: tuple[str, ...]


def occlude(
    learner: Learner,
    case: CaseTensors,
    preprocessing: Preprocessing,
    say: Callable[[int], None] = lambda _: None,
    *,
    modalities: bool = True,
) -> Occlusion:
    """Score one case with everything, without each of its modalities and without each gene set.

    Args:
        case: with its patches in memory.
        say: told how many gene sets are done after each pass.
        modalities: whether to score without modalities, too.
    """
    present = modalities_of(case) if modalities else ()
    shown = [case, *(without_modality(case, name) for name in present)]
    scores = [_probabilities(learner, embed_cases(learner, [one])) for one in shown]
    whole = {task: value[0] for task, value in scores[0].items()}
    names = tuple(sorted(preprocessing.gene_sets)) if case.has_expression else ()
    return Occlusion(
        whole=whole,
        modalities={
            name: {task: value[0] for task, value in score.items()}
            for name, score in zip(present, scores[1:], strict=True)
        },
        gene_sets=_without_sets(learner, case, _variants(case, preprocessing, names), whole, say),
        names=names,
    )


def _variants(case: CaseTensors, preprocessing: Preprocessing, names: Sequence[str]) -> Tensor:
    """Expression ``[P, G']`` with the genes of one set each at the pooled mean; flags of absent genes stay."""
    columns = set_indices({name: preprocessing.gene_sets[name] for name in names}, preprocessing.genes)
    rows = case.expression.repeat(len(names), 1)
    for row, members in zip(rows, columns, strict=True):
        row[list(members)] = 0
    return rows


@torch.no_grad()
def _without_sets(
    learner: Learner, case: CaseTensors, variants: Tensor, whole: Mapping[str, Floats], say: Callable[[int], None]
) -> dict[str, Floats]:
    """Probabilities ``[P, C]`` of each variant; the frozen layers before the first adapter run once for all."""
    model, device, tasks = explained(learner), device_of(learner), list(learner.kinds)
    out = {task: np.tile(whole[task], (len(variants), 1)) for task in tasks}
    changed = (variants != case.expression).any(dim=1).nonzero()[:, 0]  # a set at the mean already changes nothing
    if not len(changed):
        return out
    blank = replace(case, patches=case.patches[:0], cells=case.cells[:0], tokens=None, stored=None)
    with precision_of(device):
        tokens, places = model.image_tokens(collate([case]).to(device))
    at_once = max(1, GRAPH_LIMIT // (tokens.numel() * len(tasks)))
    done = len(variants) - len(changed)
    for part in changed.split(at_once):
        batch = collate([replace(blank, expression=variants[row]) for row in part.tolist()]).to(device)
        rows = torch.arange(len(part), device=device).repeat_interleave(len(tasks))
        here = Places(places.cells.expand(len(part), -1, -1))
        with precision_of(device):
            embedded = model.adapt(
                tokens.expand(len(part), -1, -1), here, model.modality_tokens(batch), rows, tasks * len(part)
            ).float()
        by_task = embedded.unflatten(0, (len(part), len(tasks)))
        found = _probabilities(learner, {task: by_task[:, place] for place, task in enumerate(tasks)})
        for task in tasks:
            out[task][part.numpy()] = found[task]
        done += len(part)
        say(done)
    return out


def _probabilities(learner: Learner, embeddings: Mapping[str, Tensor]) -> dict[str, Floats]:
    return {task: probabilities_of(learner, embeddings, task) for task in learner.kinds}


@dataclass(frozen=True, kw_only=True)
class Target:
    """The one number of a task that contributions are about.

    Attributes:
        task: its specification.
        space: its candidates.
        label: nominal tasks: the candidate whose probability counts.
    """

    task: TaskSpec
    space: TaskSpace
    label: str = ""

    def score(self, probabilities: Floats) -> Floats:
        """``[..., C]`` -> ``[...]``: probability of the label, of the positive levels, or risk in months."""
        if self.task.kind == "survival":
            return expected_risk(probabilities, self.space)
        wanted = self.task.positive if self.task.kind == "ordinal" else (self.label,)
        out: Floats = probabilities[..., np.isin(self.space.candidates, wanted)].sum(axis=-1)
        return out

    @property
    def direction(self) -> str:
        """What a positive contribution speaks for."""
        if self.task.kind == "survival":
            return "shorter survival"
        return " or ".join(self.task.positive) if self.task.kind == "ordinal" else self.label

    @property
    def unit(self) -> str:
        """Of a contribution, with its size in :attr:`factor`."""
        return "months" if self.task.kind == "survival" else "percentage points"

    @property
    def factor(self) -> float:
        """From a score to its unit."""
        return 1.0 if self.task.kind == "survival" else 100.0


def target_of_case(task: TaskSpec, space: TaskSpace, probabilities: Floats) -> Target:
    """The target of one case: for a nominal task the predicted label."""
    label = space.candidates[int(probabilities.argmax())] if task.kind == "nominal" else ""
    return Target(task=task, space=space, label=label)


def targets_of_cohort(task: TaskSpec, space: TaskSpace) -> list[Target]:
    """The targets of many cases: each label of a nominal task, of two only the second."""
    if task.kind != "nominal":
        return [Target(task=task, space=space)]
    labels = space.candidates if len(space.candidates) > 2 else space.candidates[1:]
    return [Target(task=task, space=space, label=label) for label in labels]


def contributions(target: Target, found: Occlusion) -> dict[str, float]:
    """Gene set -> score of the case minus score without the set, in the target's unit."""
    name = target.task.name
    changes = target.score(found.whole[name]) - target.score(found.gene_sets[name])
    return dict(zip(found.names, (target.factor * changes).tolist(), strict=True))


def modality_contributions(target: Target, found: Occlusion) -> dict[str, float]:
    """Modality of the case -> score with it minus score without, in the target's unit."""
    name, whole = target.task.name, target.score(found.whole[target.task.name])
    return {
        modality: float(target.factor * (whole - target.score(without[name])))
        for modality, without in found.modalities.items()
    }
