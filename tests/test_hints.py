from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import pytest
import torch
from torch import Tensor

from modaltune.data.batch import CaseTensors, collate
from modaltune.data.preprocessing import Preprocessing
from modaltune.evaluation.predictions import embed_cases
from modaltune.federation.settings import TrainingSpec
from modaltune.federation.study import Study
from modaltune.hints import with_hints
from modaltune.models.learner import Learner, build_learner
from modaltune.models.modaltune import trainable_state
from modaltune.step import accumulate_gradients, task_weights
from modaltune.storage import digest_state
from modaltune.tasks.objectives import agreement
from modaltune.training import fit, labelled, round_steps

SPEC = TrainingSpec(batch_size=8, learning_rate=5e-3, modality_dropout=0.0, warmup=0.0, hints=0.0)
HELD = SPEC.model_copy(update={"hints": 1.0})


@dataclass(frozen=True)
class OnDisk:
    """Patches of a case that lie in a file."""

    case: CaseTensors
    fixed: bool = False
    nbytes: int = 0

    @property
    def count(self) -> int:
        return self.case.patch_count

    def load(self) -> dict[str, Tensor]:
        return {"patches": self.case.patches, "cells": self.case.cells}

    def resampled(self, seed: int) -> Self:
        return self


@pytest.fixture
def other_learner(tiny_study: Study, tiny_preprocessing: Preprocessing, tiny_targets: dict[str, Tensor]) -> Learner:
    """A second model with the same initial weights."""
    return build_learner(tiny_study, tiny_preprocessing, tiny_targets)


def only(cases: list[CaseTensors], task: str) -> list[CaseTensors]:
    return [replace(case, targets={task: case.targets[task]}) for case in cases if task in case.targets]


def without(cases: list[CaseTensors], task: str) -> list[CaseTensors]:
    """The cases of a hospital that does not label a task."""
    return [replace(case, targets={name: t for name, t in case.targets.items() if name != task}) for case in cases]


def gradients(learner: Learner, cases: list[CaseTensors], hint: float, limit: int = 2**20) -> dict[str, Tensor]:
    learner.zero_grad(set_to_none=True)
    accumulate_gradients(learner, cases, "contrastive", limit, task_weights(cases, hint))
    return {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}


def test_hints_are_what_the_model_says_about_tasks_that_nobody_here_labels(
    tiny_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    embeddings = embed_cases(tiny_learner, tiny_cases)
    for row, case in enumerate(with_hints(tiny_learner.train(), without(tiny_cases, "stage"))):
        assert set(case.hints) == {"stage"}
        for task, hint in case.hints.items():
            said = tiny_learner.head(embeddings[task][row : row + 1], task).log_softmax(dim=-1)[0]
            torch.testing.assert_close(hint, said, atol=1e-5, rtol=1e-4)
            assert not hint.requires_grad
    assert tiny_learner.training


def test_slides_stay_on_disk_where_another_subset_is_drawn_for_each_epoch(
    tiny_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    cases = without(tiny_cases, "stage")
    stored = [replace(c, patches=c.patches[:0], cells=c.cells[:0], stored=OnDisk(c)) for c in cases]
    found = with_hints(tiny_learner, stored)
    assert [case.stored for case in found] == [case.stored for case in stored]
    for case, held in zip(found, with_hints(tiny_learner, cases), strict=True):
        assert torch.equal(case.hints["stage"], held.hints["stage"])


def test_hints_change_nothing_where_every_task_has_labels(
    tiny_learner: Learner, other_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    assert any(set(case.targets) < set(tiny_learner.kinds) for case in tiny_cases), "single cases may lack some"
    outcomes = [
        fit(learner, tiny_cases, spec, steps=4, seed=0, anchored=True)
        for learner, spec in ((tiny_learner, SPEC), (other_learner, HELD))
    ]
    assert outcomes[0] == outcomes[1]
    assert digest_state(trainable_state(tiny_learner)) == digest_state(trainable_state(other_learner))


def test_a_model_alone_gets_no_hints(
    tiny_learner: Learner, other_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    fit(tiny_learner, tiny_cases, SPEC, steps=3, seed=0)
    fit(other_learner, tiny_cases, HELD, steps=3, seed=0)
    assert digest_state(trainable_state(tiny_learner)) == digest_state(trainable_state(other_learner))


def test_the_starting_model_agrees_with_its_own_hints(tiny_learner: Learner, tiny_cases: list[CaseTensors]) -> None:
    cases = with_hints(tiny_learner, only(tiny_cases, "diagnosis"))
    plain, hinted = (gradients(tiny_learner.eval(), cases, weight) for weight in (0.0, 1.0))
    largest = max(float(value.abs().max()) for value in plain.values())
    for name, value in plain.items():
        torch.testing.assert_close(hinted[name], value, atol=1e-5 * largest, rtol=1e-4)


@pytest.mark.parametrize("limit", [1, 2**20])
def test_the_gradient_is_that_of_the_labels_plus_that_of_the_hints(
    limit: int, tiny_learner: Learner, other_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    fit(other_learner, tiny_cases, SPEC, steps=3, seed=1)
    cases = with_hints(other_learner, labelled(without(tiny_cases, "stage")))
    learner = tiny_learner.eval()
    labels, both = (gradients(learner, cases, weight, limit) for weight in (0.0, 0.5))
    learner.zero_grad(set_to_none=True)
    tasks = len({task for case in cases for task in case.targets})
    for task, kind in learner.kinds.items():
        if not (lacking := [case for case in cases if task in case.hints]):
            continue
        embeddings = torch.cat([learner(collate([case]), torch.tensor([0]), [task]) for case in lacking])
        hints = torch.stack([case.hints[task] for case in lacking])
        (0.5 / tasks * agreement(learner.head, embeddings, task, kind, hints)).backward()
    expected = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    largest = max(float(value.abs().max()) for value in both.values())
    assert any(float((both[name] - labels[name]).abs().max()) > 1e-3 * largest for name in labels)
    for name, value in both.items():
        more = value - labels.get(name, torch.zeros_like(value))
        wanted = expected.get(name, torch.zeros_like(value))
        torch.testing.assert_close(more, wanted, atol=1e-5 * largest, rtol=1e-3, msg=name)


def test_a_hospital_with_one_task_forgets_less_of_the_others(
    tiny_learner: Learner, other_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    cases = only(tiny_cases, "diagnosis")
    moved = []
    for learner, spec in ((tiny_learner, SPEC), (other_learner, SPEC.model_copy(update={"hints": 10.0}))):
        fit(learner, tiny_cases, SPEC, steps=10, seed=3)
        before = with_hints(learner, cases)
        fit(learner, cases, spec, steps=10, seed=4, anchored=True)
        after = embed_cases(learner, cases)
        moved.append(
            sum(
                float(
                    agreement(
                        learner.head, after[task], task, kind, torch.stack([c.hints[task] for c in before])
                    ).detach()
                )
                for task, kind in learner.kinds.items()
                if task != "diagnosis"
            )
        )
    assert moved[1] < 0.5 * moved[0]


def test_hints_count_no_case_for_the_parameters_of_a_task(tiny_learner: Learner, tiny_cases: list[CaseTensors]) -> None:
    examples = fit(tiny_learner, only(tiny_cases, "stage"), HELD, steps=2, seed=0, anchored=True).examples
    assert examples["head.scale.stage"] > 0
    assert examples["head.scale.diagnosis"] == examples["modaltune.task_tokens.vectors.diagnosis"] == 0


def test_a_round_may_be_a_part_of_a_pass() -> None:
    assert round_steps(100, SPEC) == 13
    assert round_steps(100, SPEC.model_copy(update={"local_epochs": 0.34})) == 4
    assert round_steps(3, SPEC.model_copy(update={"local_epochs": 0.1})) == 1
