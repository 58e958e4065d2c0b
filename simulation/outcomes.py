"""What a comparison leaves: metric rows, paired differences, predictions, embedding map, and the files of all seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from modaltune.data.case_table import task_columns
from modaltune.evaluation.paired import Differences, Pairing, comparison_rows, paired_differences
from modaltune.evaluation.predictions import (
    COSINE,
    Families,
    embed_cases,
    metric_rows,
    predict,
    renamed,
    row,
    score_models,
)
from modaltune.evaluation.probes.embeddings import as_probe_row
from modaltune.evaluation.survival import Censoring, risk_cuts
from modaltune.federation.task import FURTHER, HEADLINES
from modaltune.models.learner import Learner
from modaltune.storage import write_json
from server.cross_site import INFLUENCE
from server.report_gene_sets import GENE_SETS
from simulation.compare import Hospitals
from simulation.probes import CANCER, cancer_task

Tables = Mapping[str, pd.DataFrame]  # hospital whose model it is ("" = one model for all) -> predictions
ByTask = dict[str, list[pd.DataFrame]]  # task -> predictions of the models that hold it


@dataclass(kw_only=True)
class Outcome:
    """What one seed leaves: metric rows, predictions, changes when a hospital is left out, paired differences."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[pd.DataFrame] = field(default_factory=list)
    influence: list[dict[str, Any]] = field(default_factory=list)
    differences: list[tuple[int, Pairing, Differences]] = field(default_factory=list)
    embeddings: pd.DataFrame | None = None
    gene_sets: pd.DataFrame | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Scorer:
    """Scores the methods of one study at each hospital and at all of them, and writes into an outcome."""

    def __init__(self, data: Hospitals, outcome: Outcome) -> None:
        self.data, self.study, self.outcome = data, data.study, outcome
        self._federated: dict[str, ByTask] = {}

    def record(self, method: str, tables: Tables, *, everybody: bool = True) -> None:
        """Rows, differences from the federated model, and predictions of one method.

        Local models count where their hospital holds the task.

        Args:
            everybody: score all hospitals together, too.
        """
        holds = self._holds(tables)
        self.outcome.notes += left_out(method, tables, self._holders())
        for hospital, found in self._places(tables, {"all": sorted(self.data.truth)} if everybody else {}):
            self.outcome.rows += self._rows(method, hospital, found)
            self._compare(method, hospital, found)
        self.outcome.predictions += [
            table[[site in holds[task] for task in table["task"]]].assign(
                method=method, seed=self.study.seed, model=site
            )
            for site, table in tables.items()
        ]

    def record_probes(self, method: str, tables: Tables) -> None:
        """Headline rows of the probes on a method's embeddings: each hospital, those that share probes, the cancer."""
        cancers = self.data.cancers.values()
        for hospital, found in self._places(tables, self.data.groups):
            rows = self._rows(method, hospital, found, (HEADLINES,))
            self.outcome.rows += [as_probe_row(one) for one in rows if one["n"] or hospital not in cancers]
        self.outcome.rows += map(as_probe_row, self._cancer_rows(method, tables.values()))

    def record_cosines(self, method: str, tables: Tables) -> None:
        """Headline rows of candidate texts without the learnt temperature."""
        for hospital, found in self._places(tables, {"all": sorted(self.data.truth)}):
            self.outcome.rows += [renamed(one, COSINE) for one in self._rows(method, hospital, found, (HEADLINES,))]

    def _cancer_rows(self, method: str, tables: Iterable[pd.DataFrame]) -> list[dict[str, Any]]:
        """How well several cohorts are told apart, over everybody's test cases."""
        found = [told for table in tables if len(told := table[table["task"] == CANCER])]
        if not found:
            return []
        spec, space = cancer_task(list(self.data.groups))
        seed, metrics = self.study.seed, HEADLINES[spec.kind]
        scores = {metric: score_models(found, spec, space.candidates, metric, seed) for metric in metrics}
        return [row(method, CANCER, metric, "all", score, seed) for metric, score in scores.items()]

    def _holders(self) -> dict[str, list[str]]:
        cohorts = self.data.cohorts
        return {t.name: [site for site in sorted(cohorts) if t.name in cohorts[site].tasks] for t in self.study.tasks}

    def _holds(self, tables: Tables) -> dict[str, list[str]]:
        """Task -> the models that hold it."""
        return {
            task.name: [site for site in tables if not site or task.name in self.data.cohorts[site].tasks]
            for task in self.study.tasks
        }

    def _places(self, tables: Tables, groups: Mapping[str, Sequence[str]]) -> Iterable[tuple[str, ByTask]]:
        """Predictions for the cases of each hospital, and of some together, whose own local models count."""
        holds = self._holds(tables)
        for hospital in sorted(self.data.cohorts):
            yield (
                hospital,
                {
                    task: [
                        tables[site][tables[site]["hospital"] == hospital] for site in owners if site in ("", hospital)
                    ]
                    for task, owners in holds.items()
                },
            )
        for name, sites in groups.items():
            inside = {owner: table for owner, table in tables.items() if owner in ("", *sites)}
            parts = {owner: table[table["hospital"].isin(sites)] for owner, table in inside.items()}
            yield name, {task: [parts[owner] for owner in owners if owner in parts] for task, owners in holds.items()}

    def _censoring(self, hospital: str) -> dict[str, Censoring]:
        cohorts = self.data.cohorts
        here = [site for site in sorted(cohorts) if site in self.data.groups.get(hospital, [hospital])]
        tables = [cohorts[site].cases for site in here or sorted(cohorts)]
        return Censoring.of_training(tables, self.study.endpoints)

    def _rows(
        self, method: str, hospital: str, tables: ByTask, families: Families = (HEADLINES, FURTHER)
    ) -> list[dict[str, Any]]:
        return metric_rows(
            tables,
            self.study,
            self.data.preprocessing,
            method=method,
            hospital=hospital,
            seed=self.study.seed,
            censoring=self._censoring(hospital),
            families=families,
        )

    def _compare(self, method: str, hospital: str, tables: ByTask) -> None:
        """Differences from the federated model, everywhere for local models and at ``all`` for the others."""
        if method == "federated":
            self._federated[hospital] = tables
        elif hospital == "all" or method == "local":
            seed, censoring = self.study.seed, self._censoring(hospital)
            for spec in self.study.tasks:
                space, ours = self.data.preprocessing.tasks[spec.name], self._federated[hospital][spec.name]
                of_task = censoring.get(spec.name)
                found = paired_differences(ours, tables[spec.name], spec, (space, space), seed, of_task)
                for metric, values in found.items():
                    pairing = Pairing(a="federated", b=method, task=spec.name, metric=metric, hospital=hospital)
                    self.outcome.differences.append((seed, pairing, values))


def left_out(method: str, tables: Tables, holders: Mapping[str, Sequence[str]]) -> list[str]:
    """Sentences about hospitals that a mean over hospitals' own models does without: theirs could not be fitted.

    Args:
        holders: task -> hospitals that label it.
    """
    notes = []
    for task, sites in holders.items() if "" not in tables else ():
        lacking = [site for site in sites if site not in tables or not (tables[site]["task"] == task).any()]
        if lacking and len(lacking) < len(sites):
            notes.append(
                f"{method}, {task}: {', '.join(lacking)} could not fit a model of their own; the row is the mean over"
                f" the other {len(sites) - len(lacking)} of {len(sites)} hospitals."
            )
    return notes


def training_risk_cuts(data: Hospitals, learner: Learner) -> dict[str, list[float]]:
    """Where the risks that a model gives training cases part into groups, for each survival task."""
    parts = [
        predict(learner, data.study, data.preprocessing, cohort, data.cases[site], split="train")
        for site, cohort in data.cohorts.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    cuts = {}
    for task in data.study.tasks:
        inside = table[table["task"] == task.name]
        if task.kind == "survival":
            cuts[task.name] = list(risk_cuts(inside["risk"].to_numpy(np.float64), inside["event"].to_numpy() > 0))
    return cuts


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
            column = task_columns(task.name)[1]
            event = frame[column] if column in frame else pd.Series([None] * len(frame))
            columns[task.name] = [None if pd.isna(e) else "died" if e else "censored" for e in event]
        else:
            values = frame[task.name] if task.name in frame else pd.Series([None] * len(frame))
            columns[task.name] = [None if pd.isna(v) else str(v) for v in values]
    return pd.DataFrame(columns)


def write_outcomes(folder: Path, outcomes: Sequence[Outcome], summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Write metrics, comparisons, predictions, embedding map, gene sets and summary of all seeds; the metric rows."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    write_json(folder / "metrics.json", rows)
    found = [difference for outcome in outcomes for difference in outcome.differences]
    write_json(folder / "comparisons.json", comparison_rows(found))
    if influence := [row for outcome in outcomes for row in outcome.influence]:
        write_json(folder / INFLUENCE, influence)
    pd.concat([t for outcome in outcomes for t in outcome.predictions], ignore_index=True).to_parquet(
        folder / "predictions.parquet", index=False
    )
    maps = [outcome.embeddings for outcome in outcomes if outcome.embeddings is not None]
    pd.concat(maps, ignore_index=True).to_parquet(folder / "embeddings.parquet", index=False)
    sets = [outcome.gene_sets for outcome in outcomes if outcome.gene_sets is not None]
    if sets:
        pd.concat(sets, ignore_index=True).to_parquet(folder / GENE_SETS, index=False)
    write_json(folder / "summary.json", summary)
    return rows
