"""Key-wise averaging: every parameter is averaged over the sites whose training cases exercised it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

State = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Update:
    """One site's reply: trained arrays and, for each of them, the training cases that exercised it."""

    arrays: State
    examples: Mapping[str, int]


class KeywiseMean:
    """Average of each parameter over its contributors, weighted by their cases; one site is held at a time.

    A site without RNA neither trains nor dilutes the gene encoder. A parameter with fewer than ``min_contributors``
    keeps its previous value. Sums are float64; the same sites in the same order give the same bits.
    """

    def __init__(self, previous: State, min_contributors: int = 1) -> None:
        self.previous, self.needed = previous, max(1, min_contributors)
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._cases = dict.fromkeys(previous, 0)
        self._contributors = dict.fromkeys(previous, 0)

    def add(self, update: Update) -> None:
        """Count one site in."""
        for key, cases in update.examples.items():
            if cases > 0:
                share = np.multiply(update.arrays[key], float(cases), dtype=np.float64)
                if key in self._sums:
                    self._sums[key] += share
                else:
                    self._sums[key] = share
                self._cases[key] += cases
                self._contributors[key] += 1

    def result(self) -> State:
        """The new weights."""
        return {
            key: np.asarray(self._sums[key] / self._cases[key], dtype=np.float32) if self.moved(key) else old
            for key, old in self.previous.items()
        }

    def moved(self, key: str) -> bool:
        """Whether a parameter has enough contributors to change."""
        return self._contributors[key] >= self.needed


def keywise_average(updates: Mapping[str, Update], previous: State, min_contributors: int = 1) -> State:
    """Average over sites that are all at hand, summed in the order of their names."""
    mean = KeywiseMean(previous, min_contributors)
    for site in sorted(updates):
        mean.add(updates[site])
    return mean.result()


def squared_changes(update: Update, previous: State) -> dict[str, float]:
    """Squared Euclidean length of a site's change of each parameter that its cases exercised."""
    return {
        key: float(np.sum(np.square(np.subtract(update.arrays[key], previous[key], dtype=np.float64))))
        for key, cases in update.examples.items()
        if cases > 0
    }


def shortened(update: Update, previous: State, factor: float) -> Update:
    """The update with its change multiplied by ``factor``."""
    arrays = {
        key: np.asarray(old + np.float32(factor) * (update.arrays[key] - old), dtype=np.float32)
        for key, old in previous.items()
    }
    return replace(update, arrays=arrays)
