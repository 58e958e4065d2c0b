"""A linear Cox model trained by rounds: gradient steps on each site's own partial likelihood, then averaging.

FedAvg (McMahan et al. 2017), FedProx (Li et al. 2020) and FedAdam (Reddi et al. 2021), on standardised covariates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.probes.cox import RiskSets, cox_gradient
from modaltune.evaluation.probes.sums import SiteCases

_BETAS, _TAU = (0.9, 0.99), 1e-3


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a round goes.

    Attributes:
        local_steps: full-batch gradient steps at each site.
        learning_rate: of those, on the mean over the site's cases.
        proximal: FedProx: half this times the squared distance from the coefficients received is added.
        server_rate: FedAdam: Adam at the server, with this learning rate, on the mean change; 0 = plain averaging.
    """

    local_steps: int
    learning_rate: float
    proximal: float = 0.0
    server_rate: float = 0.0


RATES = (0.1, 0.5)
RECIPES: Mapping[str, tuple[Recipe, ...]] = {
    "fedavg": tuple(Recipe(local_steps=steps, learning_rate=rate) for steps in (1, 5, 20) for rate in RATES),
    "fedprox": tuple(
        Recipe(local_steps=steps, learning_rate=rate, proximal=proximal)
        for steps in (5, 20)
        for rate in RATES
        for proximal in (0.1, 1.0)
    ),
    "fedadam": tuple(
        Recipe(local_steps=steps, learning_rate=0.1, server_rate=rate) for steps in (1, 5) for rate in (0.01, 0.03, 0.1)
    ),
}


def trained_by_rounds(sites: Mapping[str, SiteCases], recipe: Recipe, rounds: int) -> Iterator[Floats]:
    """Coefficients ``[F]`` after each round; sites weigh by their cases."""
    names = [name for name in sorted(sites) if len(sites[name].group)]
    weights = np.array([len(sites[name].group) for name in names], dtype=np.float64)
    held = [_sorted(sites[name]) for name in names]
    coefficients = torch.zeros(sites[names[0]].features.shape[1], dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([coefficients], lr=recipe.server_rate or 1.0, betas=_BETAS, eps=_TAU)
    for _ in range(rounds):
        received = coefficients.detach().numpy().copy()
        trained = [_trained_locally(features, sets, received, recipe) for features, sets in held]
        mean = np.average(trained, axis=0, weights=weights)
        if recipe.server_rate:
            coefficients.grad = torch.from_numpy(received - mean)
            adam.step()
        else:
            coefficients.data = torch.from_numpy(mean)
        yield coefficients.detach().numpy().copy()


def _sorted(cases: SiteCases) -> tuple[Floats, RiskSets]:
    assert cases.months is not None
    sets = RiskSets.of(cases.months, cases.group.astype(bool))
    return cases.features[sets.order], sets


def _trained_locally(features: Floats, sets: RiskSets, received: Floats, recipe: Recipe) -> Floats:
    found = received.copy()
    for _ in range(recipe.local_steps):
        slope = cox_gradient(features, sets, found) / len(features)
        found = found - recipe.learning_rate * (slope + recipe.proximal * (found - received))
    return found
