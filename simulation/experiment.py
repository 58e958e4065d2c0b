"""A whole comparison for one seed: federation, local, pooled and linear models, rows and tables of a run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from modaltune.errors import ConfigError
from modaltune.evaluation.predictions import embed_cases, metric_rows
from modaltune.federation.study import Study
from modaltune.models.learner import Learner
from modaltune.storage import write_json
from simulation.compare import (
    Hospitals,
    Job,
    Scene,
    everybodys_test_cases,
    linear_predictions,
    predict_site,
    run_jobs,
)
from simulation.engine import run_federation

COMPARISONS = ("pooled", "local", "linear", "linear_local")
Say = Callable[[str], None]
Tables = Mapping[str, pd.DataFrame]  # hospital whose model it is ("" = one model for all) -> predictions


@dataclass(kw_only=True)
class Outcome:
    """What one seed leaves: metric rows, prediction tables, the summary of the run."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[pd.DataFrame] = field(default_factory=list)
    embeddings: pd.DataFrame | None = None
    summary: dict[str, Any] = field(default_factory=dict)


class Experiment:
    """Runs the methods of one study over site folders and collects their rows."""

    def __init__(self, study: Study, sites: Mapping[str, Path], truth: Mapping[str, Path], out: Path, say: Say) -> None:
        self.study, self.sites, self.truth, self.out, self.say = study, sites, truth, out, say
        self.outcome = Outcome()

    def run(self, *, comparisons: Sequence[str] = COMPARISONS, ablations: bool = False) -> Outcome:
        """Federate, compare, and fill ``out``."""
        started = time.monotonic()
        result = run_federation(self.study, self.sites, self.out, self._round_line)
        scene = Scene(
            sites=self.sites, truth=self.truth, study=self.study.to_json(), preprocessing=result.preprocessing.to_json()
        )
        data = Hospitals(scene)
        if data.budget() != result.steps and result.status == "OK":
            raise ConfigError(f"the federation took {result.steps} steps, the fair budget is {data.budget()}")
        self._record(
            data, "federated", {"": everybodys_test_cases(data, lambda s: predict_site(data, result.learner, s))}
        )
        if ablations:
            self._ablations(data, result.steps)
        self._baselines(data, scene, result.steps, comparisons)
        self.outcome.embeddings = embedding_map(data, result.learner)
        self.outcome.summary = self._summary(data, result, time.monotonic() - started)
        return self.outcome

    def _baselines(self, data: Hospitals, scene: Scene, steps: int, comparisons: Sequence[str]) -> None:
        local = [site for site in sorted(self.sites) if self._trains(data, site)]
        jobs = [Job(method="pooled", steps=steps)] if "pooled" in comparisons else []
        jobs += [Job(method="local", hospital=site, steps=steps) for site in local if "local" in comparisons]
        tables: dict[str, dict[str, pd.DataFrame]] = {}
        if jobs:
            self.say(f"training {len(jobs)} models for comparison, {steps} steps each")
            for job, table in run_jobs(scene, jobs, lambda job: self.say(f"  {job.method} {job.hospital} done")):
                tables.setdefault(job.method, {})[job.hospital] = table
        if "linear" in comparisons:
            tables["linear"] = {"": linear_predictions(data, sorted(self.sites))}
        if "linear_local" in comparisons:
            tables["linear_local"] = {site: linear_predictions(data, [site]) for site in local}
        for method, found in tables.items():
            self._record(data, method, found)

    def _trains(self, data: Hospitals, site: str) -> bool:
        return any(case.targets for case in data.split(site, "train"))

    def _ablations(self, data: Hospitals, steps: int) -> None:
        """Separate heads instead of label texts, and one federation per task."""
        spec = self.study.model_copy(update={"name": f"{self.study.name}-separate"})
        spec = spec.model_copy(update={"model": self.study.model.model_copy(update={"head": "separate"})})
        self.say("federating once more with separate heads")
        self._record(data, "separate_heads", {"": self._other(spec, data)})
        tables = []
        for task in self.study.tasks:
            holders = tuple(site for site in self.study.roster if task.name in data.cohorts[site].tasks)
            self.say(f"federating {task.name} alone over {', '.join(holders)}")
            alone = {"name": f"{self.study.name}-{task.name}", "tasks": (task,), "roster": holders}
            tables.append(self._other(self.study.model_copy(update=alone), data))
        self._record(data, "per_task", {"": pd.concat(tables, ignore_index=True)})

    def _other(self, study: Study, data: Hospitals) -> pd.DataFrame:
        """Federate a variant of the study in a folder of its own and predict everybody's test cases."""
        folder = self.out / "variants" / study.name
        folder.mkdir(parents=True)
        result = run_federation(study, {site: self.sites[site] for site in study.roster}, folder)
        scene = Scene(
            sites=self.sites, truth=self.truth, study=study.to_json(), preprocessing=result.preprocessing.to_json()
        )
        other = Hospitals(scene)
        return everybodys_test_cases(other, lambda site: predict_site(other, result.learner, site))

    def _record(self, data: Hospitals, method: str, tables: Tables) -> None:
        """Rows of one method for every hospital and for all; local models count where their hospital holds the task."""
        holds = {
            task.name: [s for s in tables if not s or task.name in data.cohorts[s].tasks] for task in self.study.tasks
        }
        options: dict[str, Any] = {"method": method, "seed": self.study.seed}
        for hospital in sorted(self.sites):
            own = {
                task: [tables[site][tables[site]["hospital"] == hospital] for site in owners if site in ("", hospital)]
                for task, owners in holds.items()
            }
            self.outcome.rows += metric_rows(own, self.study, data.preprocessing, hospital=hospital, **options)
        everybody = {task: [tables[site] for site in owners] for task, owners in holds.items()}
        self.outcome.rows += metric_rows(everybody, self.study, data.preprocessing, hospital="all", **options)
        self.outcome.predictions += [
            table[[site in holds[task] for task in table["task"]]].assign(
                method=method, seed=self.study.seed, model=site
            )
            for site, table in tables.items()
        ]

    def _round_line(self, row: Mapping[str, Any]) -> None:
        loss = "" if row.get("loss") is None else f"  loss {row['loss']:.3f}"
        trouble = "".join(f"  {name} missing" for name in row["missing"]) + "".join(
            f"  {name} refused: {why}" for name, why in row["refused"].items()
        )
        number = f"round {row['round']}/{self.study.training.rounds} " if row["phase"] == "train" else ""
        sent = f"{row['bytes_down'] / 1e6:.2f} MB down, {row['bytes_up'] / 1e6:.2f} MB up"
        self.say(f"{number}{row['phase']} {row['status']}  {row['seconds']:.1f} s  {sent}{loss}{trouble}")

    def _summary(self, data: Hospitals, result: Any, seconds: float) -> dict[str, Any]:
        sites = {}
        for site, cohort in data.cohorts.items():
            counts = cohort.cases["split"].value_counts()
            capability = result.capabilities.get(site)
            sites[site] = {
                "cases": len(cohort.cases),
                **{split: int(counts.get(split, 0)) for split in ("train", "val", "test")},
                "tasks": list(cohort.tasks),
                "modalities": [] if capability is None else list(capability.modalities),
            }
        return {
            "status": result.status,
            "sites": sites,
            "seconds": round(seconds, 1),
            "digest": self.study.digest,
            "weights": result.weights_hash,
            "budget": {"steps": result.steps},
        }


def embedding_map(data: Hospitals, learner: Learner) -> pd.DataFrame:
    """Test cases as points: the first task's embeddings on their two leading components, with hospital and labels."""
    first, parts, frames = data.study.tasks[0].name, [], []
    for site in sorted(data.truth):
        keep = (data.truth[site].cases["split"] == "test").to_numpy()
        chosen = [case for case, k in zip(data.truth_cases[site], keep, strict=True) if k]
        parts.append(embed_cases(learner, chosen)[first].cpu().numpy())
        frames.append(_labels(data, site, data.truth[site].cases[keep]))
    points = np.concatenate(parts)
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    flat = PCA(2, random_state=0).fit_transform(points)
    table = pd.concat(frames, ignore_index=True)
    return table.assign(x=flat[:, 0], y=flat[:, 1], seed=data.study.seed)


def _labels(data: Hospitals, site: str, frame: pd.DataFrame) -> pd.DataFrame:
    columns: dict[str, Sequence[Any]] = {"hospital": [site] * len(frame)}
    for task in data.study.tasks:
        if task.kind == "survival":
            event = frame["event"] if "event" in frame else pd.Series([None] * len(frame))
            columns[task.name] = [None if pd.isna(e) else "died" if e else "censored" for e in event]
        else:
            values = frame[task.name] if task.name in frame else pd.Series([None] * len(frame))
            columns[task.name] = [None if pd.isna(v) else str(v) for v in values]
    return pd.DataFrame(columns)


def write_outcomes(folder: Path, outcomes: Sequence[Outcome], summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Write metrics, predictions, embedding map and summary of all seeds; returns the metric rows."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    write_json(folder / "metrics.json", rows)
    pd.concat([t for outcome in outcomes for t in outcome.predictions], ignore_index=True).to_parquet(
        folder / "predictions.parquet", index=False
    )
    maps = [outcome.embeddings for outcome in outcomes if outcome.embeddings is not None]
    pd.concat(maps, ignore_index=True).to_parquet(folder / "embeddings.parquet", index=False)
    write_json(folder / "summary.json", summary)
    return rows
