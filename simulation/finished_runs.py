"""What finished runs left of their seeds, for questions across runs: two runs on the same patients, in pairs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import ConfigError
from modaltune.evaluation.paired import Pairing, comparison_rows, paired_differences
from modaltune.federation.study import Study
from modaltune.federation.task import HEADLINES
from simulation.run_folder import seed_folders


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """One seed of a finished run.

    Attributes:
        predictions: of its test cases, as in ``predictions.parquet``.
    """

    seed: int
    study: Study
    preprocessing: Preprocessing
    predictions: pd.DataFrame

    def tables(self, method: str, task: str) -> list[pd.DataFrame]:
        """Predictions of each model of a method for a task."""
        inside = self.predictions[(self.predictions["method"] == method) & (self.predictions["task"] == task)]
        return [table for _, table in inside.groupby("model", sort=True)]


def run_summary(run: Path, methods: Collection[str], hint: str) -> Mapping[str, Any]:
    """``summary.json`` of a finished run.

    Args:
        methods: whose predictions it must have.
        hint: how to make a run that has them.
    Raises:
        ConfigError: it is no such run, or lacks one.
    """
    try:
        summary: Mapping[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        known = set(pd.read_parquet(run / "predictions.parquet", columns=["method"])["method"])
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{run}: no summary.json with predictions.parquet beside it; expected a run of modaltune-simulate"
        ) from error
    if absent := sorted(set(methods) - known):
        raise ConfigError(f"{run}: no predictions of {absent[0]}; {hint}")
    return summary


def seed_runs(run: Path, seeds: Sequence[int]) -> Iterator[SeedRun]:
    """The seeds of a run, of which ``run_summary`` is known to hold."""
    predictions = pd.read_parquet(run / "predictions.parquet")
    for seed, folder in seed_folders(run, seeds).items():
        yield SeedRun(
            seed=seed,
            study=Study.from_json((folder / "study.json").read_text(encoding="utf-8")),
            preprocessing=Preprocessing.from_json((folder / "preprocessing.json").read_text(encoding="utf-8")),
            predictions=predictions[predictions["seed"] == seed],
        )


def paired_rows(first: Path, second: Path, method: str) -> list[dict[str, Any]]:
    """Rows as in ``comparisons.json``: headline metrics of a method in one run less those in the other.

    Raises:
        ConfigError: a folder is no run with that method, or the two have no seed or no patients in common.
    """
    hint = "choose another --method, or run modaltune-simulate with it"
    runs = [
        {run.seed: run for run in seed_runs(folder, run_summary(folder, [method], hint)["seeds"])}
        for folder in (first, second)
    ]
    found = []
    for seed in sorted(runs[0].keys() & runs[1].keys()):
        a, b = runs[0][seed], runs[1][seed]
        for task in a.study.tasks:
            if task.name not in b.preprocessing.tasks:
                continue
            spaces = a.preprocessing.tasks[task.name], b.preprocessing.tasks[task.name]
            sides = a.tables(method, task.name), b.tables(method, task.name)
            for metric, values in paired_differences(*sides, task, spaces, seed, metrics=HEADLINES).items():
                about = Pairing(a=str(first), b=str(second), task=task.name, metric=metric, hospital="all")
                found.append((seed, about, values))
    if not found:
        raise ConfigError(f"{first} and {second}: no seed with the same test cases in both; compare runs of one cohort")
    return comparison_rows(found)


def paired_table(rows: Sequence[Mapping[str, Any]], method: str) -> Table:
    """The rows for people."""
    table = Table("Task", f"{method}: first less second", "95 % interval", "p", "n", "Seeds", box=None)
    for row in rows:
        known = row["low"] is not None
        interval = f"{row['low']:+.3f} to {row['high']:+.3f}" if known else "n/a"
        value = "n/a" if row["difference"] is None else f"{row['difference']:+.3f}"
        p = f"{row['p']:.3f}" if known else "n/a"
        table.add_row(f"{row['task']}, {row['metric']}", value, interval, p, str(row["n"]), str(len(row["seeds"])))
    return table
