"""What a run says about hospitals that never labelled a task, from the predictions that it left."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import ConfigError
from modaltune.evaluation.predictions import score_models
from modaltune.federation.study import METRICS, Study

METHODS = ("federated", "separate_heads", "per_task")
WHERE = ("all", "labelled", "never labelled")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one task at a group of hospitals, mean over the seeds.

    Attributes:
        where: ``all`` hospitals, those that ``labelled`` the task in training, or those that ``never labelled`` it.
        cases: test cases of the first seed.
        low, high: mean bounds of the 95 % bootstrap interval over patients.
        difference: mean over the seeds of the value less that of one federation a task.
        error: its standard error over the seeds; None with one seed.
    """

    task: str
    metric: str
    where: str
    method: str
    cases: int
    value: float
    low: float
    high: float
    difference: float
    error: float | None


def unlabelled_rows(runs: Sequence[Path]) -> list[Row]:
    """Score runs of ``modaltune-simulate ... --tasks`` by who labelled what; their seeds are averaged.

    Raises:
        ConfigError: a folder is no such run, or two runs have a seed in common.
    """
    summaries = [_summary(run) for run in runs]
    seeds = [seed for summary in summaries for seed in summary["seeds"]]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds {sorted(seeds)}: one is there twice; name runs of different seeds")
    found: dict[tuple[str, str, str, str], list[tuple[float, float, float, int]]] = {}
    for run, summary in zip(runs, summaries, strict=True):
        for task, metric, where, method, score in _scores(run, summary):
            found.setdefault((task, metric, where, method), []).append(score)
    rows = []
    for (task, metric, where, method), scores in found.items():
        table, other = np.array(scores), np.array(found[(task, metric, where, "per_task")])
        value, low, high, _ = table.mean(axis=0)
        gap = table[:, 0] - other[:, 0]
        error = float(gap.std(ddof=1) / len(gap) ** 0.5) if len(gap) > 1 else None
        rows.append(
            Row(
                task=task,
                metric=metric,
                where=where,
                method=method,
                cases=int(table[0, 3]),
                value=float(value),
                low=float(low),
                high=float(high),
                difference=float(gap.mean()),
                error=error,
            )
        )
    return rows


def unlabelled_table(rows: Sequence[Row]) -> Table:
    """The rows for people."""
    table = Table("Task", "Hospitals", "n", "Method", "Value", "Less one federation a task", box=None)
    for row in rows:
        error = "" if row.error is None else f" ± {row.error:.3f}"
        value = f"{row.value:.3f} ({row.low:.2f}-{row.high:.2f})"
        names = f"{row.task}, {row.metric}", row.where, str(row.cases), row.method
        table.add_row(*names, value, f"{row.difference:+.3f}{error}")
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


def _scores(
    run: Path, summary: Mapping[str, Any]
) -> Iterator[tuple[str, str, str, str, tuple[float, float, float, int]]]:
    """Every score that is defined: task, metric, where, method, (value, low, high, cases)."""
    predictions = pd.read_parquet(run / "predictions.parquet")
    for seed in summary["seeds"]:
        folder = run if seed == summary["seeds"][0] else run / "seeds" / str(seed)
        study = Study.from_json((folder / "study.json").read_text(encoding="utf-8"))
        preprocessing = Preprocessing.from_json((folder / "preprocessing.json").read_text(encoding="utf-8"))
        for task in study.tasks:
            holders = [site for site, about in summary["sites"].items() if task.name in about["tasks"]]
            candidates, metric = preprocessing.tasks[task.name].candidates, METRICS[task.kind][0]
            for where in WHERE:
                for method in METHODS:
                    table = predictions[(predictions["seed"] == seed) & (predictions["method"] == method)]
                    inside = table["hospital"].isin(holders)
                    table = table if where == "all" else table[inside if where == "labelled" else ~inside]
                    score = score_models([table], task, candidates, metric, seed)
                    if score.value is not None and score.low is not None and score.high is not None:
                        yield task.name, metric, where, method, (score.value, score.low, score.high, score.n)
