from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modaltune.errors import ConfigError
from modaltune.tasks.head import SeparateHeads, TextHead, candidate_targets
from modaltune.tasks.objectives import agreement, contrastive, distillation, possible_candidates

KINDS = ("ordinal", "survival")
TRUE, FALSE = torch.tensor([True]), torch.tensor([False])


class AsLogits(TextHead):
    """A head whose logits are the embeddings."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, embeddings: Tensor, task: str) -> Tensor:
        return embeddings


def loss_of(probabilities: list[float], label: int, *, observed: bool = True, kind: str = "survival") -> float:
    logits = torch.tensor([probabilities]).log()
    return float(contrastive(AsLogits(), logits, "task", kind, torch.tensor([label]), torch.tensor([observed])))


def a_text_head(candidates: int = 4, width: int = 6, temperature: float = 1.0) -> TextHead:
    texts = torch.randn(candidates, width, generator=torch.Generator().manual_seed(0))
    return TextHead({"task": candidate_targets(texts, centre=False)}, temperature=temperature)


def some_embeddings(cases: int = 5, width: int = 6) -> Tensor:
    return torch.randn(cases, width, generator=torch.Generator().manual_seed(1))


def test_the_nominal_loss_is_cross_entropy_over_the_candidates() -> None:
    head, embeddings, index = a_text_head(), some_embeddings(), torch.tensor([0, 3, 1, 1, 2])
    ours = contrastive(head, embeddings, "task", "nominal", index, torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(ours, F.cross_entropy(head(embeddings, "task"), index))


@pytest.mark.parametrize("kind", KINDS)
def test_the_ordered_loss_asks_at_every_level_whether_the_label_lies_above(kind: str) -> None:
    shares = [0.2, 0.3, 0.5]
    assert loss_of(shares, 0, kind=kind) == pytest.approx(-(math.log(0.2) + math.log(0.5)) / 2)
    assert loss_of(shares, 1, kind=kind) == pytest.approx(-(math.log(0.8) + math.log(0.5)) / 2)
    assert loss_of(shares, 2, kind=kind) == pytest.approx(-(math.log(0.8) + math.log(0.5)) / 2)


def test_a_censored_case_counts_only_the_levels_it_has_passed() -> None:
    shares = [0.2, 0.3, 0.5]
    assert loss_of(shares, 0, observed=False) == pytest.approx(0)
    assert loss_of(shares, 1, observed=False) == pytest.approx(-math.log(0.8) / 2)
    assert loss_of(shares, 2, observed=False) == pytest.approx(-(math.log(0.8) + math.log(0.5)) / 2)


def test_with_two_levels_the_ordered_loss_is_cross_entropy() -> None:
    logits, index = some_embeddings(5, 2), torch.tensor([0, 1, 1, 0, 1])
    ours = contrastive(AsLogits(), logits, "task", "ordinal", index, torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(ours, F.cross_entropy(logits, index))


@pytest.mark.parametrize("label", range(5))
def test_mistaking_a_label_for_a_neighbour_costs_less_than_for_a_distant_one(label: int) -> None:
    costs = [loss_of([0.9 if level == said else 0.025 for level in range(5)], label) for said in range(5)]
    by_distance = sorted(range(5), key=lambda said: abs(said - label))
    for near, far in pairwise(by_distance):
        if abs(near - label) < abs(far - label):
            assert costs[near] < costs[far]


@given(
    logits=st.lists(st.floats(-6, 6, width=32), min_size=3, max_size=6),
    reached=st.integers(0, 5),
    shuffle=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_a_censored_case_does_not_care_when_its_death_comes_later(
    logits: list[float], reached: int, shuffle: object
) -> None:
    reached = min(reached, len(logits) - 1)
    later = logits[reached:]
    shuffle.shuffle(later)  # type: ignore[attr-defined]
    before, after = (
        contrastive(AsLogits(), torch.tensor([row]), "task", "survival", torch.tensor([reached]), FALSE)
        for row in (logits, logits[:reached] + later)
    )
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)


def test_a_case_censored_in_the_first_bin_has_no_gradient() -> None:
    logits = some_embeddings(1, 4).requires_grad_()
    contrastive(AsLogits(), logits, "task", "survival", torch.tensor([0]), FALSE).backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_gradient_of_a_death_lifts_its_own_bin() -> None:
    for label in range(4):
        logits = torch.zeros(1, 4, requires_grad=True)
        contrastive(AsLogits(), logits, "task", "survival", torch.tensor([label]), TRUE).backward()
        assert logits.grad is not None
        assert int(logits.grad.argmin()) == label


@pytest.mark.parametrize("kind", ["nominal", *KINDS])
def test_certain_and_wrong_logits_give_a_finite_loss_and_gradient(kind: str) -> None:
    logits = torch.tensor([[200.0, -200.0, -200.0], [-200.0, -200.0, 200.0]], requires_grad=True)
    loss = contrastive(AsLogits(), logits, "task", kind, torch.tensor([2, 0]), torch.tensor([True, True]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.any()


def loss_on_scales(probabilities: list[float], label: int, scales: tuple[int, ...]) -> float:
    logits, index = torch.tensor([probabilities]).log(), torch.tensor([label])
    return float(contrastive(AsLogits(), logits, "task", "ordinal", index, TRUE, scales))


def test_levels_are_ordered_within_their_scale_and_scales_are_not() -> None:
    shares = [0.1, 0.2, 0.3, 0.15, 0.25]  # three levels of one cancer, two of another
    second = -math.log(0.4)
    assert loss_on_scales(shares, 4, (3, 2)) == pytest.approx(second - math.log(0.25 / 0.4))
    edges = -(math.log(0.5 / 0.6) + math.log(0.3 / 0.6)) / 2
    assert loss_on_scales(shares, 2, (3, 2)) == pytest.approx(-math.log(0.6) + edges)
    assert loss_on_scales([*shares[3:], *shares[:3]], 4, (2, 3)) == pytest.approx(-math.log(0.6) + edges)
    assert loss_on_scales([0.5, 0.5], 0, (1, 1)) == pytest.approx(-math.log(0.5))


def test_what_the_wrong_scale_costs_does_not_depend_on_where_the_scales_stand() -> None:
    def costs(label: int, scales: tuple[int, ...]) -> list[float]:
        return [loss_on_scales([0.89 if at == said else 0.01 for at in range(12)], label, scales) for said in range(12)]

    first, second = costs(3, (4, 4, 4)), costs(7, (4, 4, 4))
    assert first[4:8] == pytest.approx(first[8:])
    assert len({round(cost, 4) for cost in first[4:]}) == 1
    assert first == pytest.approx([*second[4:8], *second[:4], *second[8:]], rel=1e-5)
    assert first[3] < first[2] < first[4]


def test_one_scale_is_no_scale() -> None:
    logits, index = some_embeddings(5, 4), torch.tensor([0, 3, 1, 1, 2])
    seen = torch.ones(5, dtype=torch.bool)
    alone = contrastive(AsLogits(), logits, "task", "ordinal", index, seen)
    assert torch.equal(contrastive(AsLogits(), logits, "task", "ordinal", index, seen, (4,)), alone)


def test_hints_on_several_scales_are_met_by_themselves_alone_and_pull_towards_them() -> None:
    hints = some_embeddings(5, 7).log_softmax(dim=-1)
    for scales in ((), (3, 4), (1, 6)):
        logits = hints.clone().requires_grad_()
        equal = agreement(AsLogits(), logits, "task", "ordinal", hints, scales)
        equal.backward()
        assert float(equal.detach()) == pytest.approx(0, abs=1e-6)
        assert logits.grad is not None
        assert logits.grad.abs().max() < 1e-6
        assert float(agreement(AsLogits(), hints.roll(1, dims=0), "task", "ordinal", hints, scales)) > 0.01


def test_what_stays_possible_is_the_label_or_after_censoring_everything_later() -> None:
    possible = possible_candidates(torch.tensor([1, 1, 3]), torch.tensor([True, False, False]), 4)
    assert possible.int().tolist() == [[0, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1]]


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_distillation_is_the_published_loss_on_observed_cases(temperature: float) -> None:
    head, embeddings, index = a_text_head(temperature=temperature), some_embeddings(), torch.tensor([0, 3, 1, 1, 2])
    ours = distillation(head, embeddings, "task", "nominal", index, torch.ones(5, dtype=torch.bool))
    total = 0.0
    for row, label in zip(embeddings.double(), index.tolist(), strict=True):
        z, u = row / row.norm() / temperature, head.targets("task")[label].double() / temperature
        p, q = u.exp() / u.exp().sum(), z.exp() / z.exp().sum()
        total += 10 * temperature**2 * float((p * (p.log() - q.log())).sum())
    assert float(ours) == pytest.approx(total / 5, rel=1e-4)


def test_distillation_is_zero_where_the_embedding_is_the_text() -> None:
    head = a_text_head()
    ours = distillation(head, 3 * head.targets("task"), "task", "nominal", torch.arange(4), TRUE.expand(4))
    assert float(ours) == pytest.approx(0, abs=1e-5)


def test_distillation_aims_a_censored_case_at_the_mean_of_what_is_possible() -> None:
    head = a_text_head()
    middle = head.targets("task")[2:].mean(dim=0, keepdim=True)
    aimed = distillation(head, middle, "task", "survival", torch.tensor([2]), FALSE)
    observed = distillation(head, middle, "task", "survival", torch.tensor([2]), TRUE)
    assert float(aimed) == pytest.approx(0, abs=1e-5)
    assert float(observed) > 0.01


def test_distillation_leaves_a_case_of_which_nothing_is_known_where_it_is() -> None:
    head, embeddings = a_text_head(), some_embeddings(2).requires_grad_()
    index, observed = torch.tensor([0, 0]), torch.tensor([False, True])
    distillation(head, embeddings, "task", "survival", index, observed).backward()
    assert embeddings.grad is not None
    assert not embeddings.grad[0].any()
    assert embeddings.grad[1].any()


def test_distillation_needs_texts() -> None:
    head = SeparateHeads({"task": 4}, 6)
    with pytest.raises(ConfigError, match=r"needs model\.head = 'text'"):
        distillation(head, some_embeddings(), "task", "nominal", torch.zeros(5, dtype=torch.long), TRUE.expand(5))
