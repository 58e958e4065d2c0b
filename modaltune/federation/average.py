"""Key-wise averaging: every parameter is averaged over the sites whose training cases exercised it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

State = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Update:
    """One site's reply: trained arrays and, for each of them, the training cases that exercised it."""

    arrays: State
    examples: Mapping[str, int]


def contributors(updates: Mapping[str, Update], key: str) -> list[str]:
    """Sites whose cases exercised a parameter, by name."""
    return [site for site in sorted(updates) if updates[site].examples[key] > 0]


def keywise_average(updates: Mapping[str, Update], previous: State, min_contributors: int = 1) -> State:
    """Average of each parameter over its contributors, weighted by their cases.

    A site without RNA neither trains nor dilutes the gene encoder. A parameter with fewer than ``min_contributors``
    keeps its previous value. Sites are summed in the order of their names, in float64.
    """
    out: State = {}
    for key, old in previous.items():
        sites = contributors(updates, key)
        if len(sites) < max(1, min_contributors):
            out[key] = old
            continue
        weights = np.array([float(updates[site].examples[key]) for site in sites])
        stacked = np.stack([updates[site].arrays[key].astype(np.float64) for site in sites])
        mean = np.tensordot(weights / weights.sum(), stacked, axes=1)
        out[key] = np.asarray(mean, dtype=np.float32)
    return out
