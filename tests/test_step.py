from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from modaltune import step
from modaltune.data.batch import CaseTensors, collate
from modaltune.data.preprocessing import Preprocessing
from modaltune.federation.study import Study
from modaltune.models.learner import Learner, build_learner
from modaltune.step import GRAPH_LIMIT, accumulate_gradients, case_groups, loss_of
from modaltune.tasks.objectives import OBJECTIVES
from modaltune.training import labelled

Gradients = dict[str, Tensor]


def gradients(learner: Learner, cases: list[CaseTensors], limit: int = GRAPH_LIMIT) -> tuple[float, Gradients]:
    learner.zero_grad(set_to_none=True)
    loss = accumulate_gradients(learner, cases, "contrastive", limit)
    return loss, {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}


def separately(learner: Learner, cases: list[CaseTensors]) -> tuple[float, Gradients]:
    """A complete forward pass for each case and task, all graphs alive, one backward pass."""
    learner.zero_grad(set_to_none=True)
    by_task = []
    for task, kind in learner.kinds.items():
        losses = []
        for case in (case for case in cases if task in case.targets):
            embedding = learner(collate([case]), torch.tensor([0]), [task])
            index, observed = case.targets[task]
            target = torch.tensor([index]), torch.tensor([observed])
            losses.append(OBJECTIVES["contrastive"](learner.head, embedding, task, kind, *target))
        by_task.append(torch.stack(losses).mean())
    loss = torch.stack(by_task).mean()
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}


def assert_same(found: tuple[float, Gradients], expected: tuple[float, Gradients]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert set(found[1]) == set(expected[1])
    largest = max(float(value.abs().max()) for value in expected[1].values())
    for name, value in expected[1].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5 * largest, rtol=1e-4, msg=name)


@pytest.mark.parametrize("limit", [1, 100, 400, 2000, GRAPH_LIMIT])
def test_the_gradient_equals_separate_passes_whatever_the_limit(
    limit: int, tiny_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    cases = labelled(tiny_cases)
    assert len({case.patch_count for case in cases}) > 2, "the test needs bags of different size"
    assert_same(gradients(tiny_learner, cases, limit), separately(tiny_learner, cases))


@pytest.mark.parametrize("limit", [1, 300])
def test_a_joint_pass_is_cut_between_cases_only(
    limit: int,
    tiny_study: Study,
    tiny_preprocessing: Preprocessing,
    tiny_targets: Gradients,
    tiny_cases: list[CaseTensors],
) -> None:
    spec = tiny_study.model.model_copy(update={"task_pass": "joint"})
    study = tiny_study.model_copy(update={"model": spec})
    learner, cases = build_learner(study, tiny_preprocessing, tiny_targets).eval(), labelled(tiny_cases)
    assert_same(gradients(learner, cases, limit), gradients(learner, cases))


@pytest.mark.parametrize("limit", [1, GRAPH_LIMIT])
def test_bfloat16_gives_nearly_the_same_gradient(
    limit: int, tiny_learner: Learner, tiny_cases: list[CaseTensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = labelled(tiny_cases)
    loss, expected = gradients(tiny_learner, cases)
    monkeypatch.setattr(step, "precision_of", lambda device: torch.autocast("cpu", dtype=torch.bfloat16))
    half_loss, found = gradients(tiny_learner, cases, limit)
    assert half_loss == pytest.approx(loss, rel=0.02)
    assert half_loss != loss
    ours, full = (torch.cat([value.flatten() for value in one.values()]) for one in (found, expected))
    assert ours.dtype == torch.float32
    assert float((ours - full).norm() / full.norm()) < 0.05


def test_the_evaluated_loss_is_the_trained_one(tiny_learner: Learner, tiny_cases: list[CaseTensors]) -> None:
    cases = labelled(tiny_cases)
    assert loss_of(tiny_learner, cases, "contrastive") == pytest.approx(gradients(tiny_learner, cases)[0], rel=1e-5)


def test_the_loss_is_the_mean_over_tasks(tiny_learner: Learner, tiny_cases: list[CaseTensors]) -> None:
    cases = labelled(tiny_cases)
    by_task = []
    for task in tiny_learner.kinds:
        held = [replace(case, targets={task: case.targets[task]}) for case in cases if task in case.targets]
        by_task.append(loss_of(tiny_learner, held, "contrastive"))
    assert loss_of(tiny_learner, cases, "contrastive") == pytest.approx(sum(by_task) / len(by_task), rel=1e-5)


def test_groups_hold_every_case_once_and_respect_the_limit(
    tiny_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    width = tiny_learner.modaltune.slide_encoder.width
    passes = [3] * len(tiny_cases)
    spans = list(case_groups(tiny_learner, tiny_cases, passes, 20 * width))
    assert [row for start, stop in spans for row in range(start, stop)] == list(range(len(tiny_cases)))
    for start, stop in spans:
        longest = max(case.patch_count for case in tiny_cases[start:stop]) + 1
        assert stop - start == 1 or longest * 3 * (stop - start) <= 20
    assert not list(case_groups(tiny_learner, [], []))
