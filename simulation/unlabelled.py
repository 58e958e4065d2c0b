"""What a run says about hospitals that never labelled a task, from the predictions that it left."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from modaltune.errors import ConfigError
from modaltune.evaluation.metrics import Floats, Score
from modaltune.evaluation.predictions import score_models
from modaltune.federation.task import METRICS
from simulation.finished_runs import run_summary, seed_runs

AGAINST = "per_task"
METHODS = ("federated", "separate_heads", AGAINST, "per_task_same_cost", "texts_alone", "local")
"""Of which a run may lack some; of ``local``, the models of the hospitals that label the task, their mean."""
WHERE = ("all", "labelled", "never labelled")
Scores = dict[tuple[str, str, str, str], dict[int, Score]]  # task, metric, where, method -> seed -> score


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one task, or on the mean of the tasks, at a group of hospitals; mean over the seeds.

    Attributes:
        where: ``all`` hospitals, those that ``labelled`` the task in training, or those that ``never labelled`` it.
        low, high: mean bounds of the 95 % bootstrap interval over patients; None for the mean of the tasks.
        difference: mean over the seeds of the value less that of the method that all are held against.
        error: its standard error over the seeds, as if these were independent; they split the same patients, so
            against new patients it is larger by the square root of 1 + seeds x test cases / training cases (Nadeau and
            Bengio 2003), 1.7 with five seeds. None with one seed.
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


def unlabelled_rows(
    runs: Sequence[Path], rules: Mapping[str, Sequence[Path]] | None = None, against: str = AGAINST
) -> list[Row]:
    """Score runs of ``modaltune-simulate ... --tasks`` by who labelled what; their seeds are averaged.

    Args:
        rules: other training rules, name -> runs of the shared model alone, with seeds that ``runs`` have, too.
        against: method or rule that the others are held against.
    Raises:
        ConfigError: a folder is no such run, two runs have a seed in common, or a rule was tried on other cases.
    """
    found: Scores = {}
    needed = [method for method in ("federated", against) if method not in (rules or {})]
    seeds = _add_runs(found, runs, {method: method for method in METHODS}, needed)
    for rule, tried in (rules or {}).items():
        if rule in METHODS:
            raise ConfigError(f"--rule {rule} is the name of a method")
        if sorted(own := _add_runs(found, tried, {"federated": rule}, ["federated"])) != sorted(seeds):
            raise ConfigError(f"--rule {rule} has seeds {sorted(own)}, the runs have {sorted(seeds)}")
    _check_cases(found)
    tasks, methods = ([*dict.fromkeys(key[part] for key in found)] for part in (0, 3))
    keys = sorted(found, key=lambda key: (tasks.index(key[0]), WHERE.index(key[2]), methods.index(key[3])))
    rows = [_row(key, found[key], found.get((*key[:3], against), {})) for key in keys]
    return [row for row in rows if row is not None] + _means(found, methods, against)


def _row(key: tuple[str, str, str, str], scores: Mapping[int, Score], other: Mapping[int, Score]) -> Row | None:
    seeds = [seed for seed in scores if seed in other]
    if not seeds:
        return None
    table = np.array([[scores[seed].value, scores[seed].low, scores[seed].high] for seed in seeds], dtype=np.float64)
    value, low, high = (float(number) for number in table.mean(axis=0))
    gap = table[:, 0] - np.array([other[seed].value for seed in seeds], dtype=np.float64)
    task, metric, where, method = key
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


def _means(found: Scores, methods: Sequence[str], against: str) -> list[Row]:
    """Mean of the tasks, over the seeds for which all of them are defined."""
    rows = []
    for where, method in product(WHERE, methods):
        pairs = [
            (found.get((*key[:3], method), {}), scores) for key, scores in found.items() if key[2:] == (where, against)
        ]
        seeds = sorted(set.intersection(*({*own} & {*other} for own, other in pairs))) if pairs else []
        if len(pairs) < 2 or not seeds:
            continue
        values = np.array([[[side[seed].value for seed in seeds] for side in pair] for pair in pairs], np.float64)
        mean, other = values.mean(axis=0)
        rows.append(
            Row(
                task="mean of tasks",
                metric="mean",
                where=where,
                method=method,
                value=float(mean.mean()),
                low=None,
                high=None,
                difference=float((mean - other).mean()),
                error=_error(mean - other),
                seeds=len(seeds),
            )
        )
    return rows


def _error(gap: Floats) -> float | None:
    """Standard error of a mean over seeds."""
    return float(gap.std(ddof=1) / len(gap) ** 0.5) if len(gap) > 1 else None


def unlabelled_table(rows: Sequence[Row], against: str = AGAINST) -> Table:
    """The rows for people."""
    table = Table("Task", "Hospitals", "Method", "Value", f"Less {against}", "Seeds", box=None)
    for row in rows:
        interval = "" if row.low is None else f" ({row.low:.2f}-{row.high:.2f})"
        error = "" if row.error is None else f" ± {row.error:.3f}"
        names = f"{row.task}, {row.metric}", row.where, row.method
        table.add_row(*names, f"{row.value:.3f}{interval}", f"{row.difference:+.3f}{error}", str(row.seeds))
    return table


def _add_runs(found: Scores, runs: Sequence[Path], methods: Mapping[str, str], needed: Collection[str]) -> list[int]:
    """Put every defined score of runs into ``found``; their seeds.

    Args:
        methods: as a run calls them -> as they are called here.
        needed: those of them that no run may lack.
    """
    summaries = [run_summary(run, needed, "run modaltune-simulate with --tasks, e.g. disjoint") for run in runs]
    seeds = [int(seed) for summary in summaries for seed in summary["seeds"]]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds {sorted(seeds)}: one is there twice; name runs of different seeds")
    for run, summary in zip(runs, summaries, strict=True):
        _add_scores(found, run, summary, methods)
    return seeds


def _check_cases(found: Scores) -> None:
    """Of one seed, every method was scored on as many cases."""
    numbers: dict[tuple[str, str, int], int] = {}
    for (task, _, where, method), scores in found.items():
        for seed, score in scores.items():
            if (known := numbers.setdefault((task, where, seed), score.n)) != score.n:
                raise ConfigError(f"{method}, seed {seed}: {score.n} test cases of {task}, the other runs have {known}")


def _add_scores(found: Scores, run: Path, summary: Mapping[str, Any], methods: Mapping[str, str]) -> None:
    for one in seed_runs(run, summary["seeds"]):
        for task, where, (method, name) in product(one.study.tasks, WHERE, methods.items()):
            holders = [site for site, about in summary["sites"].items() if task.name in about["tasks"]]
            known = one.predictions["model"].isin(["", *holders])
            table = one.predictions[known & (one.predictions["method"] == method)]
            inside = table["hospital"].isin(holders)
            table = table if where == "all" else table[inside if where == "labelled" else ~inside]
            candidates, metric = one.preprocessing.tasks[task.name].candidates, METRICS[task.kind][0]
            models = [predicted for _, predicted in table.groupby("model")]
            score = score_models(models, task, candidates, metric, one.seed)
            if score.value is not None and score.low is not None:
                found.setdefault((task.name, metric, where, name), {})[one.seed] = score
