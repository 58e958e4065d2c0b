"""What leaves a site for a probe: a tally of its cases once, then sums for each coefficients asked about.

n cases, F features of an embedding, G groups (classes; survivors and deaths), D coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modaltune.errors import ProbeError
from modaltune.evaluation.metrics import Floats
from modaltune.suppression import has_small_group


@dataclass(frozen=True, kw_only=True)
class SiteCases:
    """Training cases of one site.

    Attributes:
        features: ``[n, F]`` embeddings.
        group: ``[n]`` class of each case; of a Cox probe 1 = death observed, 0 = censored.
        months: ``[n]`` follow-up of a Cox probe.
    """

    features: Floats
    group: NDArray[np.int64]
    months: Floats | None = None

    @classmethod
    def together(cls, parts: Sequence[SiteCases]) -> SiteCases:
        """The cases of all parts as those of one site."""
        months = [part.months for part in parts if part.months is not None]
        return cls(
            features=np.concatenate([part.features for part in parts]),
            group=np.concatenate([part.group for part in parts]),
            months=np.concatenate(months) if months else None,
        )


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Cases by group ``[G]``, mean ``[F]`` of their features and squared distances ``[F]`` from that mean."""

    counts: Floats
    mean: Floats
    squares: Floats

    @property
    def cases(self) -> float:
        """All of them."""
        return float(self.counts.sum())


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Negative log-likelihood, its gradient ``[D]`` and Hessian ``[D, D]``, summed over cases (not averaged).

    Where only the loss was asked for, the others are empty.
    """

    loss: float
    gradient: Floats
    hessian: Floats

    @classmethod
    def loss_only(cls, loss: float) -> Sums:
        """Without derivatives."""
        return cls(loss=loss, gradient=np.zeros(0), hessian=np.zeros((0, 0)))

    def packed(self) -> dict[str, Floats]:
        """As it travels: of the symmetric Hessian only the upper triangle."""
        upper = self.hessian[np.triu_indices(len(self.hessian))]
        return {"loss": np.array([self.loss]), "gradient": self.gradient, "hessian": upper}

    @classmethod
    def unpacked(cls, arrays: Mapping[str, Floats]) -> Sums:
        """The inverse of :meth:`packed`."""
        size = len(arrays["gradient"])
        hessian = np.zeros((size, size))
        hessian[np.triu_indices(size)] = arrays["hessian"]
        hessian = hessian + np.triu(hessian, 1).T
        return cls(loss=float(arrays["loss"][0]), gradient=arrays["gradient"], hessian=hessian)


def site_tally(cases: SiteCases, groups: int, minimum: int = 1) -> Tally:
    """Tally of one site; all zero when a group has some cases, but fewer than ``minimum``.

    The site is then left out as a whole: sums over its other cases only would be those of another model.
    """
    counts = np.bincount(cases.group, minlength=groups).astype(np.float64)
    width = cases.features.shape[1]
    if not counts.any() or has_small_group(counts, minimum):
        return Tally(counts=np.zeros(groups), mean=np.zeros(width), squares=np.zeros(width))
    mean = cases.features.mean(axis=0)
    return Tally(counts=counts, mean=mean, squares=((cases.features - mean) ** 2).sum(axis=0))


def contributors(tallies: Mapping[str, Tally]) -> list[str]:
    """Names of the sites that have cases to contribute, in order."""
    return sorted(site for site, tally in tallies.items() if tally.cases)


def pool_tallies(tallies: Mapping[str, Tally]) -> Tally:
    """Tally of all cases together: exact, and without the cancellation of raw sums of squares."""
    known = [tallies[site] for site in contributors(tallies)]
    if not known:
        raise ProbeError("no site has training cases that it may count")
    cases = sum(tally.cases for tally in known)
    mean = np.sum([tally.cases * tally.mean for tally in known], axis=0) / cases
    squares = np.sum([tally.squares + tally.cases * (tally.mean - mean) ** 2 for tally in known], axis=0)
    return Tally(counts=np.sum([tally.counts for tally in known], axis=0), mean=mean, squares=squares)


def pool_sums(sums: Mapping[str, Sums]) -> Sums:
    """Sum over sites, in the order of their names: the same replies give the same bits."""
    known = [sums[site] for site in sorted(sums)]
    loss = sum(part.loss for part in known)
    if not np.isfinite(loss):
        return Sums.loss_only(np.inf)  # coefficients too large for one site are too large
    return Sums(
        loss=loss,
        gradient=np.sum([part.gradient for part in known], axis=0),
        hessian=np.sum([part.hessian for part in known], axis=0),
    )
