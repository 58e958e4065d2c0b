"""Predictions of a model and the metric rows made of them.

A prediction table has one row per (case, task), with the columns :data:`COLUMNS`.
Probabilities are over the task's candidates, in their order; risk higher = worse. Tables carry no patient identifier:
``row`` is a case's place among the hospital's cases that were asked for, so that tables of two methods can be paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from modaltune.data.batch import CaseTensors, collate, readable
from modaltune.data.case_table import task_columns
from modaltune.data.cohort import Cohort
from modaltune.data.loading import loaded_ahead
from modaltune.data.preprocessing import Preprocessing, TaskSpace
from modaltune.evaluation.calibration import brier, calibration_error
from modaltune.evaluation.metrics import (
    Floats,
    Score,
    balanced_accuracy,
    bootstrap_weights,
    c_index,
    macro_auc,
    macro_f1,
    summarise,
)
from modaltune.evaluation.survival import Censoring, auc_at, brier_at, c_index_ipcw, survival_at
from modaltune.federation.study import Study
from modaltune.federation.task import AT_HORIZONS, FURTHER, HEADLINES, TaskSpec
from modaltune.models.learner import Learner
from modaltune.step import case_groups, device_of, precision_of
from modaltune.tasks.hazards import hazard_risk
from modaltune.tasks.head import HazardHeads, TextHead

_OF_CLASSES: Mapping[str, Callable[[NDArray[np.int64], NDArray[np.int64], Floats], Floats]] = {
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
}
_OF_PROBABILITIES: Mapping[str, Callable[[NDArray[np.int64], Floats, Floats], Floats]] = {
    "auc": macro_auc,
    "brier": brier,
    "ece": calibration_error,
}
Families = Sequence[Mapping[str, Sequence[str]]]
COSINE = "_cosine"
"""Names of scores of the candidate texts without the learnt temperature end in it."""
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
def probabilities_of(
    learner: Learner, embeddings: Mapping[str, Tensor], task: str, *, temperature: bool = True
) -> Floats:
    """Zero-shot probabilities ``[n, C]`` over the candidate texts of a task.

    Args:
        temperature: with the learnt scale of the task; without, of the cosines themselves (a head of texts only).
    """
    score = learner.head if temperature or not isinstance(learner.head, TextHead) else learner.head.cosines
    out: Floats = score(embeddings[task], task).softmax(dim=-1).double().cpu().numpy()
    return out


@torch.no_grad()
def risk_of(learner: Learner, embeddings: Mapping[str, Tensor], task: str) -> Floats | None:
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
    survival, columns = spec.kind == "survival", task_columns(spec.name)
    frame = frame.reindex(columns=list(columns))
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
            "time_months": inside[columns[0]].to_numpy(np.float64) if survival else np.nan,
            "event": inside[columns[1]].to_numpy(np.float64) if survival else np.nan,
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
    embeddings: Mapping[str, Tensor] | None = None,
    *,
    temperature: bool = True,
) -> pd.DataFrame:
    """Predictions for a cohort's cases of one split (None = all), for every task of the study that the site labels.

    A case without a modality that the model cannot do without is left out.

    Args:
        cases: all cases of the cohort, prepared, in the order of ``cohort.cases``.
        embeddings: of those of the split, where they are known already.
        temperature: see :func:`probabilities_of`.
    """
    inside = np.ones(len(cohort.cases), dtype=bool) if split is None else (cohort.cases["split"] == split).to_numpy()
    frame = cohort.cases[inside]
    chosen = [case for case, keep in zip(cases, inside, strict=True) if keep]
    embeddings = embed_cases(learner, chosen) if embeddings is None else embeddings
    tables = [
        prediction_table(
            frame,
            cohort.site,
            task,
            preprocessing.tasks[task.name],
            probabilities_of(learner, embeddings, task.name, temperature=temperature),
            risk_of(learner, embeddings, task.name),
        )
        for task in study.tasks
        if task.name in cohort.tasks
    ]
    if not tables:
        return pd.DataFrame(columns=list(COLUMNS))
    return readable_rows(pd.concat(tables, ignore_index=True), chosen, study.model.needs)


def readable_rows(table: pd.DataFrame, cases: Sequence[CaseTensors], needs: Sequence[str]) -> pd.DataFrame:
    """The rows of a prediction table whose cases a model can read; ``cases`` are those that were asked for."""
    can = np.array([readable(case, needs) for case in cases], dtype=bool)
    out: pd.DataFrame = table[can[table["row"].to_numpy(np.int64)]].reset_index(drop=True)
    return out


def metric_values(
    table: pd.DataFrame,
    spec: TaskSpec,
    candidates: Sequence[str],
    metric: str,
    weights: Floats,
    *,
    edges: Sequence[float] = (),
    censoring: Censoring | None = None,
) -> Floats:
    """One metric of a prediction table, per weight row. -> ``[R]``; NaN where a score is not a finite number.

    Args:
        edges: survival: inner edges of the time bins, in months.
        censoring: survival: of training cases; without it what needs it is NaN.
    """
    if spec.kind == "survival":
        return _survival_values(table, metric, weights, edges, censoring)
    labels, probabilities = class_outcomes(table, spec, candidates)
    if not np.isfinite(probabilities).all():
        return np.full(len(weights), np.nan)
    if metric in _OF_CLASSES:
        return _OF_CLASSES[metric](labels, probabilities.argmax(axis=1).astype(np.int64), weights)
    return _OF_PROBABILITIES[metric](labels, probabilities, weights)


def class_outcomes(table: pd.DataFrame, spec: TaskSpec, candidates: Sequence[str]) -> tuple[NDArray[np.int64], Floats]:
    """Label positions ``[n]`` and probabilities ``[n, C]``; an ordinal task has two classes, its positive one last."""
    labels = _label_positions(table, spec, candidates)
    probabilities = np.stack(table["probabilities"].to_list()) if len(table) else np.zeros((0, len(candidates)))
    if spec.kind == "ordinal":
        chance = probabilities[:, [name in spec.positive for name in candidates]].sum(axis=1)
        return labels, np.stack([1 - chance, chance], axis=1)
    return labels, probabilities


def _label_positions(table: pd.DataFrame, spec: TaskSpec, candidates: Sequence[str]) -> NDArray[np.int64]:
    if spec.kind == "ordinal":
        return table["label"].isin(spec.positive).to_numpy().astype(np.int64)
    positions = {name: index for index, name in enumerate(candidates)}
    return np.array([positions[label] for label in table["label"]], dtype=np.int64)


def _survival_values(
    table: pd.DataFrame, metric: str, weights: Floats, edges: Sequence[float], censoring: Censoring | None
) -> Floats:
    months, risk = table["time_months"].to_numpy(np.float64), table["risk"].to_numpy(np.float64)
    event = table["event"].to_numpy().astype(bool)
    if not np.isfinite(risk).all():
        return np.full(len(weights), np.nan)
    if metric == "c_index":
        return c_index(months, event, risk, weights)
    if censoring is None or not len(table):
        return np.full(len(weights), np.nan)
    if metric == "c_index_ipcw":
        return c_index_ipcw(months, event, risk, censoring, weights)
    horizon = AT_HORIZONS["survival"][metric]
    if metric.startswith("auc"):
        return auc_at(horizon, months, event, risk, censoring, weights)
    if table["probabilities"].isna().any():  # a linear model predicts a risk only
        return np.full(len(weights), np.nan)
    survival = survival_at(horizon, np.stack(table["probabilities"].to_list()), edges)
    return brier_at(horizon, months, event, survival, censoring, weights)


def score_models(
    tables: Iterable[pd.DataFrame],
    spec: TaskSpec,
    candidates: Sequence[str],
    metric: str,
    seed: int,
    *,
    edges: Sequence[float] = (),
    censoring: Censoring | None = None,
) -> Score:
    """Mean over models of a metric on the same cases, resampled together; a model without predictions is left out."""
    known = [table for table in (scored(table, spec, candidates) for table in tables) if len(table)]
    cases = len(known[0]) if known else 0
    weights = bootstrap_weights(cases, seed, spec.name)
    rows = [
        metric_values(table, spec, candidates, metric, weights, edges=edges, censoring=censoring) for table in known
    ]
    return summarise(rows, cases)


def scored(table: pd.DataFrame, spec: TaskSpec, candidates: Sequence[str]) -> pd.DataFrame:
    """Rows of the task whose label can be scored.

    Nominal: a candidate of the federation. Ordinal: any level of the vocabulary, since it is on one of the two sides.
    """
    inside = table[table["task"] == spec.name]
    if spec.kind == "survival":
        return inside
    return inside[inside["label"].isin(candidates if spec.kind == "nominal" else spec.values)]


def outcome_groups(table: pd.DataFrame, spec: TaskSpec, candidates: Sequence[str]) -> NDArray[np.int64]:
    """Cases that are scored, by outcome: each candidate; ordinal: other levels, positive ones; survivors, deaths."""
    inside = scored(table, spec, candidates)
    if spec.kind == "survival":
        return np.bincount(inside["event"].astype(np.int64), minlength=2)
    classes = 2 if spec.kind == "ordinal" else len(candidates)
    return np.bincount(_label_positions(inside, spec, candidates), minlength=classes)


def events_behind(groups: NDArray[np.int64], spec: TaskSpec) -> int:
    """Deaths behind a C-index; cases of the rarest class that is there (ordinal: side) behind other metrics.

    Args:
        groups: see :func:`outcome_groups`.
    """
    if spec.kind == "survival":
        return int(groups[1])
    there = groups[groups > 0]
    return int(there.min()) if len(there) > 1 else 0


def metric_rows(
    tables: Mapping[str, Sequence[pd.DataFrame]],
    study: Study,
    preprocessing: Preprocessing,
    *,
    method: str,
    hospital: str,
    seed: int,
    censoring: Mapping[str, Censoring] | None = None,
    families: Families = (HEADLINES, FURTHER),
) -> list[dict[str, Any]]:
    """Rows of ``metrics.json`` for one method at one hospital (or ``all``).

    Args:
        tables: task -> prediction tables of that task's models; the row is the mean over models.
        families: metrics by kind of task; the rows of one family come before those of the next.
        censoring: of the training cases of those hospitals, by survival task; without it what is weighted for censoring
            is undefined.
    """
    rows = []
    for names in families:
        for spec in study.tasks:
            space = preprocessing.tasks[spec.name]
            for metric in names[spec.kind]:
                score = score_models(
                    tables.get(spec.name, ()),
                    spec,
                    space.candidates,
                    metric,
                    seed,
                    edges=space.bin_edges,
                    censoring=(censoring or {}).get(spec.name),
                )
                rows.append(row(method, spec.name, metric, hospital, score, seed))
    return rows


def renamed(row: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    """A metric row under the name that scores of another kind have: ``auc_probe``, ``auc_cosine``."""
    return {**row, "metric": f"{row['metric']}{suffix}"}


def row(method: str, task: str, metric: str, hospital: str, score: Score, seed: int) -> dict[str, Any]:
    """One object of ``metrics.json``."""
    return {"method": method, "task": task, "metric": metric, "hospital": hospital, **vars(score), "seed": seed}
