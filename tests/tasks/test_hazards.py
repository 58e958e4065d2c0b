from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modaltune.errors import ConfigError
from modaltune.tasks.hazards import bin_log_probabilities, hazard_nll, hazard_risk
from modaltune.tasks.head import HazardHeads, SeparateHeads
from modaltune.tasks.objectives import OBJECTIVES

LOGITS = st.lists(st.floats(-6, 6, width=32), min_size=2, max_size=6)


def survival_curve(logits: list[float]) -> list[float]:
    """The definition: the product of what is left in each bin."""
    curve, left = [], 1.0
    for logit in logits:
        left *= 1 - 1 / (1 + math.exp(-logit))
        curve.append(left)
    return curve


@given(LOGITS)
def test_probabilities_are_the_steps_of_the_survival_curve_and_the_last_bin_is_open(logits: list[float]) -> None:
    curve = [1.0, *survival_curve(logits)]
    steps = [before - after for before, after in pairwise(curve[:-1])]
    expected = torch.tensor([*steps, curve[-2]], dtype=torch.float64)
    found = bin_log_probabilities(torch.tensor([logits], dtype=torch.float64)).exp()[0]
    torch.testing.assert_close(found, expected)
    assert float(found.sum()) == pytest.approx(1)


@given(LOGITS, st.booleans(), st.data())
def test_the_loss_is_the_likelihood_of_what_was_seen(logits: list[float], died: bool, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(logits) - 1))
    curve = survival_curve(logits)
    hazard = 1 / (1 + math.exp(-logits[place]))
    before = 1.0 if place == 0 else curve[place - 1]
    expected = -math.log(before * hazard) if died else -0.5 * math.log(curve[place])  # censored cases count half
    found = hazard_nll(torch.tensor([logits], dtype=torch.float64), torch.tensor([place]), torch.tensor([died]))
    assert float(found) == pytest.approx(expected, rel=1e-6)


@given(LOGITS, st.data())
def test_a_higher_hazard_in_any_bin_is_a_higher_risk(logits: list[float], data: st.DataObject) -> None:
    worse = list(logits)
    worse[data.draw(st.integers(0, len(logits) - 1))] += 1
    low, high = hazard_risk(torch.tensor([logits, worse], dtype=torch.float64))
    assert high > low


def test_the_loss_stays_finite_for_hazards_that_are_sure() -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = hazard_nll(logits, torch.tensor([1]), torch.tensor([True]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_a_class_task_has_cross_entropy_and_only_hazard_heads_have_hazards() -> None:
    head = HazardHeads({"diagnosis": 3, "survival": 4}, 5, ["survival"])
    embeddings, index, seen = torch.randn(2, 5), torch.tensor([0, 2]), torch.tensor([True, True])
    logits: Tensor = head(embeddings, "diagnosis")
    expected = -logits.log_softmax(-1)[torch.arange(2), index].mean()
    torch.testing.assert_close(OBJECTIVES["hazards"](head, embeddings, "diagnosis", "nominal", index, seen), expected)
    assert torch.equal(head.logits(embeddings, "diagnosis"), logits)
    with pytest.raises(ConfigError, match="needs a baseline"):
        OBJECTIVES["hazards"](SeparateHeads({"d": 2}, 5), embeddings, "d", "nominal", index, seen)
