"""Does a score only tell the classes of another task apart? The same score among cases of one class.

Where two cancers have different outlooks, telling them apart is enough for a concordance of survival above one half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.table import Table

from modaltune.errors import ConfigError
from modaltune.evaluation.metrics import (
    Floats,
    Score,
    bootstrap_weights,
    comparable_pairs,
    concordance,
    concordant_pairs,
    summarise,
)
from modaltune.evaluation.predictions import class_outcomes, metric_values, scored
from modaltune.federation.task import METRICS, TaskSpec
from simulation.finished_runs import SeedRun, run_summary, seed_runs

_CASE = ["hospital", "row"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method on a task, mean over the seeds; n of the first of them.

    Attributes:
        metric: ``auc`` or ``c_index``.
        everyone: over all pairs of the test cases whose class is known.
        within: over the pairs of the same class only.
        seeds: for which both are defined.
    """

    task: str
    metric: str
    method: str
    everyone: Score
    within: Score
    seeds: int


def within_rows(run: Path, task: str) -> list[Row]:
    """The other tasks of a finished run; those with more than two classes have no pairs to restrict and are left out.

    Args:
        task: whose classes they may have learnt in place of their own labels.
    Raises:
        ConfigError: the folder is no finished run, or the task is not one with classes.
    """
    seeds = run_summary(run, ["federated"], "expected a run of modaltune-simulate")["seeds"]
    found: dict[tuple[str, str, str], list[tuple[Score, Score]]] = {}
    for one in seed_runs(run, seeds):
        for key, scores in _scores(one, task):
            if all(score.low is not None for score in scores):
                found.setdefault(key, []).append(scores)
    return [
        Row(
            task=key[0],
            metric=key[1],
            method=key[2],
            everyone=_mean([everyone for everyone, _ in scores]),
            within=_mean([within for _, within in scores]),
            seeds=len(scores),
        )
        for key, scores in found.items()
    ]


def within_table(rows: Sequence[Row], task: str) -> Table:
    """The rows for people."""
    table = Table("Task", "Method", "All cases", f"Within each {task}", "n", "Seeds", box=None)
    for row in rows:
        values = (f"{score.value:.3f} ({score.low:.2f}-{score.high:.2f})" for score in (row.everyone, row.within))
        table.add_row(f"{row.task}, {row.metric}", row.method, *values, str(row.within.n), str(row.seeds))
    return table


def _scores(one: SeedRun, task: str) -> Iterator[tuple[tuple[str, str, str], tuple[Score, Score]]]:
    classes = _classes(one, task)
    for spec in one.study.tasks:
        candidates = one.preprocessing.tasks[spec.name].candidates
        if spec.name == task or (spec.kind == "nominal" and len(candidates) > 2):
            continue
        metric = METRICS[spec.kind][0]
        for method in one.predictions["method"].unique():
            models = [scored(table, spec, candidates) for table in one.tables(method, spec.name)]
            models = [table.join(classes, on=_CASE, how="inner") for table in models]
            cases = len(models[0]) if models else 0
            weights = bootstrap_weights(cases, one.seed, spec.name)
            everyone = [metric_values(table, spec, candidates, metric, weights) for table in models]
            within = [_within(table, spec, candidates, weights) for table in models]
            yield (spec.name, metric, method), (summarise(everyone, cases), summarise(within, cases))


def _classes(one: SeedRun, task: str) -> pd.Series:
    """Class of each test case."""
    spec = next((spec for spec in one.study.tasks if spec.name == task), None)
    if spec is None or spec.kind == "survival":
        known = [spec.name for spec in one.study.tasks if spec.kind != "survival"]
        raise ConfigError(f"--task {task}: no task of this run with classes; choose from {', '.join(known)}")
    table = one.predictions[one.predictions["task"] == task].drop_duplicates(_CASE)
    return table.set_index(_CASE)["label"].rename("class")


def _within(table: pd.DataFrame, spec: TaskSpec, candidates: Sequence[str], weights: Floats) -> Floats:
    if spec.kind == "survival":
        months, risk = table["time_months"].to_numpy(np.float64), table["risk"].to_numpy(np.float64)
        comparable, concordant = comparable_pairs(months, table["event"].to_numpy().astype(bool), risk)
    else:
        labels, probabilities = class_outcomes(table, spec, candidates)
        comparable = np.outer(labels == 1, labels == 0).astype(np.float64)  # their share is the area under the curve
        concordant = concordant_pairs(comparable, probabilities[:, 1])
    classes = table["class"].to_numpy()
    same = classes[:, None] == classes[None, :]
    return concordance(comparable * same, concordant * same, weights)


def _mean(scores: Sequence[Score]) -> Score:
    bounds = np.array([[score.value, score.low, score.high] for score in scores], dtype=np.float64).mean(axis=0)
    value, low, high = map(float, bounds)
    return Score(value=value, low=low, high=high, n=scores[0].n)
