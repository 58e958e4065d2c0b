"""Two models on the same test patients: the interval of their difference, not the overlap of two intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from modaltune.errors import ConfigError
from modaltune.evaluation.metrics import Score, bootstrap_weights, summarise
from modaltune.evaluation.predictions import metric_values
from modaltune.federation.study import TaskSpec

_SAME = ("hospital", "label", "time_months", "event")


def paired_difference(
    first: pd.DataFrame,
    second: pd.DataFrame,
    spec: TaskSpec,
    candidates: tuple[Sequence[str], Sequence[str]],
    metric: str,
    seed: int,
) -> Score:
    """Metric of the first model minus that of the second, resampled over patients together.

    Args:
        first, second: prediction tables of the same cases in the same order.
        candidates: labels that each model can choose from; a case that one of them cannot score is left out.
    Returns:
        The difference with its 95 % interval; n = cases compared.
    Raises:
        ConfigError: the tables are of different cases.
    """
    tables = [table[table["task"] == spec.name].reset_index(drop=True) for table in (first, second)]
    if not tables[0][list(_SAME)].equals(tables[1][list(_SAME)]):
        raise ConfigError(f"task {spec.name}: the predictions of the two models are of different cases; predict again")
    if spec.kind == "nominal":
        both = tables[0]["label"].isin(set(candidates[0]) & set(candidates[1])).to_numpy()
        tables = [table[both] for table in tables]
    cases = len(tables[0])
    weights = bootstrap_weights(cases, seed, spec.name)
    values = [
        metric_values(table, spec, names, metric, weights) for table, names in zip(tables, candidates, strict=True)
    ]
    return summarise([values[0] - values[1]], cases)


def events_behind(table: pd.DataFrame, spec: TaskSpec) -> int:
    """Deaths behind a C-index; cases of the rarest class (ordinal: side) behind a classification metric."""
    inside = table[table["task"] == spec.name]
    if spec.kind == "survival":
        return int(inside["event"].sum())
    labels = inside["label"].isin(spec.positive) if spec.kind == "ordinal" else inside["label"]
    counts = np.asarray(labels.value_counts())
    return int(counts.min()) if len(counts) > 1 else 0
