"""Predictions of a model and the metric rows made of them.

A prediction table has one row per (case, task), with the columns :data:`COLUMNS`.
Probabilities are over the task's candidates, in their order; risk higher = worse. Tables carry no patient identifier:
``row`` is a case's place among the hospital's cases that were asked for, so that tables of two methods can be paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from modaltune.data.batch import CaseTensors, collate, readable
from modaltune.data.cohort import Cohort
from modaltune.data.loading import loaded_ahead
from modaltune.data.preprocessing import Preprocessing, TaskSpace
from modaltune.evaluation.metrics import (
    Floats,
    Score,
    balanced_accuracy,
    binary_auc,
    bootstrap_weights,
    c_index,
    macro_auc,
    summarise,
)
from modaltune.federation.study import METRICS, Study, TaskSpec
from modaltune.models.learner import Learner
from modaltune.step import case_groups, device_of, precision_of
from modaltune.tasks.hazards import hazard_risk
from modaltune.tasks.head import HazardHeads

COLUMNS = ("hospital", "row", "task", "label", "probabilities", "time_months", "event", "risk")


@torch.no_grad()
def embed_cases(learner: Learner, cases: Sequence[CaseTensors]) -> dict[str, Tensor]:
    """Embeddings ``[n, O]`` of every case for every task of the model."""
    learner.eval()
    tasks, device = list(learner.kinds), device_of(learner)
    passes = [len(tasks)] * len(cases)
    groups = (cases[start:stop] for start, stop in case_groups(learner, cases, passes))
    with precision_of(device):
        parts = [learner.modaltune.embed(collate(group).to(device), tasks).float() for group in loaded_ahead(groups)]
    joined = torch.cat(parts) if parts else torch.zeros(0, len(tasks), learner.modaltune.config.output_width)
    return {task: joined[:, index] for index, task in enumerate(tasks)}


def expected_risk(probabilities: Floats, space: TaskSpace) -> Floats:
    """Negative expected death time in months ``[n]`` from probabilities ``[n, S]`` over time bins."""
    out: Floats = -(probabilities @ np.asarray(space.bin_times))
    return out


@torch.no_grad()
def probabilities_of(learner: Learner, embeddings: Mapping[str, Tensor], task: str) -> Floats:
    """Zero-shot probabilities ``[n, C]`` over the candidate texts of a task."""
    out: Floats = learner.head(embeddings[task], task).softmax(dim=-1).double().cpu().numpy()
    return out


@torch.no_grad()
def _hazard_risk(learner: Learner, embeddings: Mapping[str, Tensor], task: str) -> Floats | None:
    """Risk ``[n]`` of a survival task whose head gives hazards."""
    head = learner.head
    if not isinstance(head, HazardHeads) or task not in head.survival:
        return None
    out: Floats = hazard_risk(head.logits(embeddings[task], task)).double().cpu().numpy()
    return out


def prediction_table(
    frame: pd.DataFrame,
    hospital: str,
    spec: TaskSpec,
    space: TaskSpace,
    probabilities: Floats,
    risk: Floats | None = None,
) -> pd.DataFrame:
    """Predictions of one task for the cases of ``frame`` that carry its label.

    Args:
        risk: ``[n]`` of survival; None = from the probabilities.
    """
    survival = spec.kind == "survival"
    columns = ["time_months", "event"] if survival else [spec.name]
    frame = frame.reindex(columns=columns)
    known = frame.notna().all(axis=1).to_numpy()
    inside = frame[known]
    if risk is None:
        risk = expected_risk(probabilities, space) if survival else np.full(len(frame), np.nan)
    return pd.DataFrame(
        {
            "hospital": hospital,
            "row": np.flatnonzero(known),
            "task": spec.name,
            "label": None if survival else inside[spec.name].to_numpy(),
            "probabilities": list(probabilities[known]),
            "time_months": inside["time_months"].to_numpy(np.float64) if survival else np.nan,
            "event": inside["event"].to_numpy(np.float64) if survival else np.nan,
            "risk": risk[known],
        }
    )


def predict(
    learner: Learner,
    study: Study,
    preprocessing: Preprocessing,
    cohort: Cohort,
    cases: Sequence[CaseTensors],
    split: str | None = "test",
) -> pd.DataFrame:
    """Predictions for a cohort's cases of one split (None = all), for every task of the study that the site labels.

    A case without a modality that the model cannot do without is left out.

    Args:
        cases: all cases of the cohort, prepared, in the order of ``cohort.cases``.
    """
    inside = np.ones(len(cohort.cases), dtype=bool) if split is None else (cohort.cases["split"] == split).to_numpy()
    frame = cohort.cases[inside]
    chosen = [case for case, keep in zip(cases, inside, strict=True) if keep]
    embeddings = embed_cases(learner, chosen)
    tables = [
        prediction_table(
            frame,
            cohort.site,
            task,
            preprocessing.tasks[task.name],
            probabilities_of(learner, embeddings, task.name),
            _hazard_risk(learner, embeddings, task.name),
        )
        for task in study.tasks
        if task.name in cohort.tasks
    ]
    return readable_rows(pd.concat(tables, ignore_index=True), chosen, study.model.needs)


def readable_rows(table: pd.DataFrame, cases: Sequence[CaseTensors], needs: Sequence[str]) -> pd.DataFrame:
    """The rows of a prediction table whose cases a model can read; ``cases`` are those that were asked for."""
    can = np.array([readable(case, needs) for case in cases], dtype=bool)
    out: pd.DataFrame = table[can[table["row"].to_numpy(np.int64)]].reset_index(drop=True)
    return out


def metric_values(
    table: pd.DataFrame, spec: TaskSpec, candidates: Sequence[str], metric: str, weights: Floats
) -> Floats:
    """One metric of a prediction table, per weight row. -> ``[R]``."""
    if spec.kind == "survival":
        event = table["event"].to_numpy().astype(bool)
        return c_index(table["time_months"].to_numpy(np.float64), event, table["risk"].to_numpy(np.float64), weights)
    probabilities = np.stack(table["probabilities"].to_list()) if len(table) else np.zeros((0, len(candidates)))
    if spec.kind == "ordinal":
        chance = probabilities[:, [name in spec.positive for name in candidates]].sum(axis=1)
        positive = table["label"].isin(spec.positive).to_numpy()
        if metric == "auc":
            return binary_auc(positive, chance, weights)
        return balanced_accuracy(positive.astype(np.int64), (chance > 0.5).astype(np.int64), weights)
    positions = {name: index for index, name in enumerate(candidates)}
    labels = np.array([positions[label] for label in table["label"]], dtype=np.int64)
    if metric == "auc":
        return macro_auc(labels, probabilities, weights)
    return balanced_accuracy(labels, probabilities.argmax(axis=1).astype(np.int64), weights)


def score_models(
    tables: Iterable[pd.DataFrame], spec: TaskSpec, candidates: Sequence[str], metric: str, seed: int
) -> Score:
    """Mean over models of a metric on the same cases, resampled together; a model without predictions is left out."""
    scored = [_scored(table, spec, candidates) for table in tables]
    known = [table for table in scored if len(table)]
    cases = len(known[0]) if known else 0
    weights = bootstrap_weights(cases, seed, spec.name)
    return summarise([metric_values(table, spec, candidates, metric, weights) for table in known], cases)


def _scored(table: pd.DataFrame, spec: TaskSpec, candidates: Sequence[str]) -> pd.DataFrame:
    """Rows of the task; nominal labels that are no candidate of the federation cannot be scored."""
    inside = table[table["task"] == spec.name]
    return inside[inside["label"].isin(candidates)] if spec.kind == "nominal" else inside


def metric_rows(
    tables: Mapping[str, Sequence[pd.DataFrame]],
    study: Study,
    preprocessing: Preprocessing,
    *,
    method: str,
    hospital: str,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of ``metrics.json`` for one method at one hospital (or ``all``).

    Args:
        tables: task -> prediction tables of that task's models; the row is the mean over models.
    """
    rows = []
    for spec in study.tasks:
        candidates = preprocessing.tasks[spec.name].candidates
        for metric in METRICS[spec.kind]:
            score = score_models(tables.get(spec.name, ()), spec, candidates, metric, seed)
            rows.append(row(method, spec.name, metric, hospital, score, seed))
    return rows


def row(method: str, task: str, metric: str, hospital: str, score: Score, seed: int) -> dict[str, Any]:
    """One object of ``metrics.json``."""
    return {"method": method, "task": task, "metric": metric, "hospital": hospital, **vars(score), "seed": seed}
