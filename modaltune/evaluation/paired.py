"""Two methods on the same patients: the difference of a metric, resampled together.

R weight rows as in :mod:`modaltune.evaluation.metrics`; the same row draws the same patients for both methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from modaltune.data.preprocessing import TaskSpace
from modaltune.data.site import HASH_SPLIT
from modaltune.evaluation.metrics import Floats, Score, bootstrap_weights, summarise
from modaltune.evaluation.predictions import metric_values, scored
from modaltune.evaluation.survival import Censoring
from modaltune.federation.task import HEADLINES, METRICS, TaskSpec
from modaltune.seeds import numpy_generator

_SHARED = (HASH_SPLIT["test"] / HASH_SPLIT["train"]) ** 0.5
"""What repeated splits of the same patients have in common (Nadeau and Bengio 2003: test over training cases)."""


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """What is compared: method ``a`` with method ``b`` on a task, metric and hospital (or ``all``)."""

    a: str
    b: str
    task: str
    metric: str
    hospital: str


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Metric of a minus metric of b with one seed.

    Attributes:
        values: ``[R]`` difference per weight row; the first one is the estimate.
        cases: number of patients.
    """

    values: Floats
    cases: int


def paired_differences(
    a: Sequence[pd.DataFrame],
    b: Sequence[pd.DataFrame],
    spec: TaskSpec,
    spaces: tuple[TaskSpace, TaskSpace],
    seed: int,
    censoring: Censoring | None = None,
    metrics: Mapping[str, Sequence[str]] = METRICS,
) -> dict[str, Differences]:
    """Metrics of a task for two methods on the same patients.

    Args:
        a, b: prediction tables of each method's models, cases in the same order; a method's value is their mean. Only
            patients whom all tables have are compared.
        spaces: of either method: candidates that it can choose from. A case that one cannot score is left out.
        metrics: by kind of task.

    Returns:
        metric -> differences; empty when the methods were not scored on the same patients.
    """
    known = [_known(tables, spec, space) for tables, space in zip((a, b), spaces, strict=True)]
    shared = _shared([table for tables in known for table in tables])
    first, second = shared[: len(known[0])], shared[len(known[0]) :]
    if not first or not second or not _same_patients([*first, *second]):
        return {}
    weights = bootstrap_weights(len(first[0]), seed, spec.name)
    out = {}
    for metric in metrics[spec.kind]:
        means = [
            _mean(tables, spec, space, metric, weights, censoring)
            for tables, space in zip((first, second), spaces, strict=True)
        ]
        out[metric] = Differences(values=means[0] - means[1], cases=len(first[0]))
    return out


def headline_differences(
    first: pd.DataFrame, second: pd.DataFrame, spec: TaskSpec, spaces: tuple[TaskSpace, TaskSpace], seed: int
) -> dict[str, Score]:
    """Headline metrics of one model minus those of another, each with its 95 % interval; n = cases compared."""
    found = paired_differences([first], [second], spec, spaces, seed, metrics=HEADLINES)
    nothing = Differences(values=np.full(1, np.nan), cases=0)
    return {metric: summarise([(of := found.get(metric, nothing)).values], of.cases) for metric in HEADLINES[spec.kind]}


def comparison_rows(found: Iterable[tuple[int, Pairing, Differences]], seed: int = 0) -> list[dict[str, Any]]:
    """Rows of ``comparisons.json``: each pairing over all its seeds.

    Args:
        found: seed of the run, what was compared, the differences.
        seed: of the resampling over runs.
    """
    grouped: dict[Pairing, dict[int, Differences]] = {}
    for run, pairing, differences in found:
        grouped.setdefault(pairing, {})[run] = differences
    return [vars(pairing) | _over_seeds(runs, pairing, seed) for pairing, runs in grouped.items()]


def _over_seeds(runs: Mapping[int, Differences], pairing: Pairing, seed: int) -> dict[str, Any]:
    """Mean difference with its 95 % interval and two-sided p; None where undefined.

    A draw is the mean over seeds, its standard error times one of Student's t, and, weighted by :data:`_SHARED`, the
    deviation of one resample of patients in one of them: seeds split the same patients, so their estimates are not
    independent. With one seed the deviation counts in full.
    """
    known = {run: found.values for run, found in runs.items() if np.isfinite(found.values[0])}
    cases = max(found.cases for found in runs.values())
    empty = {"difference": None, "low": None, "high": None, "p": None, "n": cases, "seeds": sorted(runs)}
    if not known:
        return empty
    values = np.stack([known[run] for run in sorted(known)])
    estimates, count = values[:, 0], len(values)
    generator = numpy_generator(seed, "paired", *vars(pairing).values())
    resamples = values.shape[1] - 1
    mean = float(estimates.mean())
    means = mean + _standard_error(estimates) * generator.standard_t(max(count - 1, 1), size=resamples)
    chosen = generator.integers(count, size=resamples)
    deviation = values[chosen, np.arange(1, resamples + 1)] - estimates[chosen]
    draws = means + (deviation if count == 1 else _SHARED * deviation)
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return empty | {"difference": mean, "seeds": sorted(known)}
    low, high = np.percentile(draws, [2.5, 97.5])
    p = _two_sided_p(draws)
    return empty | {"difference": mean, "low": float(low), "high": float(high), "p": p, "seeds": sorted(known)}


def _standard_error(estimates: Floats) -> float:
    return float(estimates.std(ddof=1) / len(estimates) ** 0.5) if len(estimates) > 1 else 0.0


def _two_sided_p(draws: Floats) -> float:
    """Twice the smaller share of draws on one side of zero, never zero itself."""
    below, above = np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0)
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(draws) + 1)))


def _known(tables: Sequence[pd.DataFrame], spec: TaskSpec, space: TaskSpace) -> list[pd.DataFrame]:
    return [found for table in tables if len(found := scored(table, spec, space.candidates))]


def _shared(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The rows of the patients whom every table has: a method that needs a modality scores fewer."""
    keys = [list(zip(table["hospital"], table["row"], strict=True)) for table in tables]
    everywhere = set(keys[0]).intersection(*map(set, keys[1:])) if keys else set()
    return [
        table[[key in everywhere for key in own]].reset_index(drop=True)
        for table, own in zip(tables, keys, strict=True)
    ]


def _same_patients(tables: Sequence[pd.DataFrame]) -> bool:
    """As far as tables without identifiers can tell: the same hospitals and outcomes, row by row."""
    rows = [table[["hospital", "label", "time_months", "event"]].reset_index(drop=True) for table in tables]
    return all(rows[0].astype(object).equals(other.astype(object)) for other in rows[1:])


def _mean(
    tables: Sequence[pd.DataFrame],
    spec: TaskSpec,
    space: TaskSpace,
    metric: str,
    weights: Floats,
    censoring: Censoring | None,
) -> Floats:
    """Mean over the models in which the metric is defined. -> ``[R]``."""
    rows = [
        metric_values(table, spec, space.candidates, metric, weights, edges=space.bin_edges, censoring=censoring)
        for table in tables
    ]
    defined = [row for row in rows if np.isfinite(row[0])]
    return np.mean(defined, axis=0) if defined else np.full(len(weights), np.nan)
