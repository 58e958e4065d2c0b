from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from modaltune.drift import Drift

PULLS = {"H1": torch.tensor([3.0, 1.0]), "H2": torch.tensor([-1.0, 1.0])}
CASES = {"H1": 30, "H2": 10}
RATE = 0.1
State = Mapping[str, Tensor]


class Weights(nn.Module):
    """Two numbers that every hospital trains and two that a batch may leave alone."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.both = nn.Parameter(start.clone())
        self.optional = nn.Parameter(torch.zeros(2))


def trained(start: Tensor, pull: Tensor, last: State, *, steps: int = 4, strength: float = 1.0) -> tuple[Tensor, State]:
    """A round of a hospital whose loss falls by ``pull`` everywhere: its weights, and what it remembers."""
    model = Weights(start)
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    drift = Drift(model, optimiser, strength, last)
    for step in range(steps):
        optimiser.zero_grad(set_to_none=True)
        (model.both @ -pull).backward()
        optimiser.step()
        drift.after_step(step + 1)
    return model.both.detach(), drift.state({"both": 1, "optional": 1})


def averaged(found: Mapping[str, Tensor]) -> Tensor:
    return sum((found[name] * CASES[name] for name in found), torch.zeros(2)) / sum(CASES.values())


def rounds(count: int, *, steps: Mapping[str, int], strength: float = 1.0) -> list[dict[str, Tensor]]:
    """Weights of each hospital at the end of each round."""
    start, last, out = torch.zeros(2), dict[str, State](), []
    for _ in range(count):
        found = {}
        for name, pull in PULLS.items():
            found[name], last[name] = trained(start, pull, last.get(name, {}), steps=steps[name], strength=strength)
        start = averaged(found)
        out.append(found)
    return out


def gap(found: Mapping[str, Tensor]) -> float:
    return float((found["H1"] - found["H2"]).norm())


def test_hospitals_that_pull_apart_move_together_after_one_round() -> None:
    first, second, third = rounds(3, steps={"H1": 4, "H2": 4})
    assert gap(first) > 1
    assert gap(second) == pytest.approx(0, abs=1e-6)
    assert gap(third) == pytest.approx(0, abs=1e-6)


def test_the_average_moves_as_it_would_have_without_correction() -> None:
    steps = {"H1": 4, "H2": 4}
    for corrected, plain in zip(rounds(4, steps=steps), rounds(4, steps=steps, strength=0.0), strict=True):
        torch.testing.assert_close(averaged(corrected), averaged(plain))


def test_half_the_strength_leaves_half_the_gap() -> None:
    first, second, third = rounds(3, steps={"H1": 4, "H2": 4}, strength=0.5)
    assert gap(second) == pytest.approx(gap(first) / 2)
    assert gap(third) == pytest.approx(gap(first) / 2)


def test_hospitals_that_take_unequal_steps_move_together_as_well() -> None:
    first, second, *_ = rounds(2, steps={"H1": 6, "H2": 2})
    assert gap(first) > 1
    assert gap(second) == pytest.approx(0, abs=1e-6)


def test_a_parameter_that_no_step_trained_or_no_case_counts_for_has_no_correction() -> None:
    model = Weights(torch.zeros(2))
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    drift = Drift(model, optimiser, 1.0, {})
    (model.both @ PULLS["H1"]).backward()
    optimiser.step()
    drift.after_step(1)
    assert {name.split("|")[0] for name in drift.state({"both": 5, "optional": 5})} == {"both"}
    assert drift.state({"both": 0, "optional": 5}) == {}


def test_without_anything_to_remember_the_round_is_that_of_the_optimiser_alone() -> None:
    weights, _ = trained(torch.ones(2), PULLS["H1"], {})
    torch.testing.assert_close(weights, 1 + 4 * RATE * PULLS["H1"])
