"""What a run says about hospitals that never labelled a task, from the predictions that it left."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import ConfigError
from modaltune.evaluation.metrics import Floats, Score
from modaltune.evaluation.predictions import score_models
from modaltune.federation.study import METRICS, Study

METHODS = ("federated", "separate_heads", "per_task")
WHERE = ("all", "labelled", "never labelled")
Scores = dict[tuple[str, str, str, str], dict[int, Score]]  # task, metric, where, method -> seed -> score


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one task, or on the mean of the tasks, at a group of hospitals; mean over the seeds.

    Attributes:
        where: ``all`` hospitals, those that ``labelled`` the task in training, or those that ``never labelled`` it.
        low, high: mean bounds of the 95 % bootstrap interval over patients; None for the mean of the tasks.
        difference: mean over the seeds of the value less that of one federation a task.
        error: its standard error over the seeds; None with one seed.
        seeds: for which the score is defined.
    """

    task: str
    metric: str
    where: str
    method: str
    value: float
    low: float | None
    high: float | None
    difference: float
    error: float | None
    seeds: int


def unlabelled_rows(runs: Sequence[Path]) -> list[Row]:
    """Score runs of ``modaltune-simulate ... --tasks`` by who labelled what; their seeds are averaged.

    Raises:
        ConfigError: a folder is no such run, or two runs have a seed in common.
    """
    summaries = [_summary(run) for run in runs]
    seeds = [seed for summary in summaries for seed in summary["seeds"]]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds {sorted(seeds)}: one is there twice; name runs of different seeds")
    found: Scores = {}
    for run, summary in zip(runs, summaries, strict=True):
        _add_scores(found, run, summary)
    return [_row(*key, scores, found[(*key[:3], "per_task")]) for key, scores in found.items()] + _means(found)


def _row(
    task: str, metric: str, where: str, method: str, scores: Mapping[int, Score], other: Mapping[int, Score]
) -> Row:
    table = np.array([[score.value, score.low, score.high] for score in scores.values()], dtype=np.float64)
    value, low, high = (float(number) for number in table.mean(axis=0))
    gap = table[:, 0] - np.array([other[seed].value for seed in scores], dtype=np.float64)
    return Row(
        task=task,
        metric=metric,
        where=where,
        method=method,
        value=value,
        low=low,
        high=high,
        difference=float(gap.mean()),
        error=_error(gap),
        seeds=len(gap),
    )


def _means(found: Scores) -> list[Row]:
    """Mean of the tasks, over the seeds for which all of them are defined."""
    rows = []
    for where in WHERE:
        tables = {method: [scores for key, scores in found.items() if key[2:] == (where, method)] for method in METHODS}
        each = [set(scores) for scores in tables["per_task"]]
        seeds = sorted(set.intersection(*each)) if each else []
        if len(each) < 2 or not seeds:
            continue
        values = {
            method: np.array([[scores[seed].value for seed in seeds] for scores in table], dtype=np.float64)
            for method, table in tables.items()
        }
        means = {method: table.mean(axis=0) for method, table in values.items()}
        for method, mean in means.items():
            gap = mean - means["per_task"]
            rows.append(
                Row(
                    task="mean of tasks",
                    metric="mean",
                    where=where,
                    method=method,
                    value=float(mean.mean()),
                    low=None,
                    high=None,
                    difference=float(gap.mean()),
                    error=_error(gap),
                    seeds=len(seeds),
                )
            )
    return rows


def _error(gap: Floats) -> float | None:
    """Standard error of a mean over seeds."""
    return float(gap.std(ddof=1) / len(gap) ** 0.5) if len(gap) > 1 else None


def unlabelled_table(rows: Sequence[Row]) -> Table:
    """The rows for people."""
    table = Table("Task", "Hospitals", "Method", "Value", "Less one federation a task", "Seeds", box=None)
    for row in rows:
        interval = "" if row.low is None else f" ({row.low:.2f}-{row.high:.2f})"
        error = "" if row.error is None else f" ± {row.error:.3f}"
        names = f"{row.task}, {row.metric}", row.where, row.method
        table.add_row(*names, f"{row.value:.3f}{interval}", f"{row.difference:+.3f}{error}", str(row.seeds))
    return table


def _summary(run: Path) -> Mapping[str, Any]:
    try:
        summary: Mapping[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        methods = set(pd.read_parquet(run / "predictions.parquet", columns=["method"])["method"])
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{run}: no summary.json with predictions.parquet beside it; expected a run of modaltune-simulate"
        ) from error
    if absent := sorted(set(METHODS) - methods):
        raise ConfigError(f"{run}: no predictions of {absent[0]}; run modaltune-simulate with --tasks, e.g. disjoint")
    return summary


def _add_scores(found: Scores, run: Path, summary: Mapping[str, Any]) -> None:
    """Put every score of a run that is defined into ``found``."""
    predictions = pd.read_parquet(run / "predictions.parquet")
    for seed in summary["seeds"]:
        folder = run if seed == summary["seeds"][0] else run / "seeds" / str(seed)
        study = Study.from_json((folder / "study.json").read_text(encoding="utf-8"))
        preprocessing = Preprocessing.from_json((folder / "preprocessing.json").read_text(encoding="utf-8"))
        for task, where, method in product(study.tasks, WHERE, METHODS):
            holders = [site for site, about in summary["sites"].items() if task.name in about["tasks"]]
            table = predictions[(predictions["seed"] == seed) & (predictions["method"] == method)]
            inside = table["hospital"].isin(holders)
            table = table if where == "all" else table[inside if where == "labelled" else ~inside]
            candidates, metric = preprocessing.tasks[task.name].candidates, METRICS[task.kind][0]
            score = score_models([table], task, candidates, metric, seed)
            if score.value is not None and score.low is not None:
                found.setdefault((task.name, metric, where, method), {})[seed] = score
