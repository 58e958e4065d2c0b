"""Metrics of everybody's test cases from counts of each hospital, without a case leaving it.

C classes (an ordinal task has two), B bins. Balanced accuracy, macro-F1, Brier score and calibration error equal those
of the pooled cases exactly. The ROC area comes from binned scores and is off by at most what is reported with it. The
concordance counts pairs within hospitals only: it is the index stratified by hospital, not the pooled one.

The counts describe groups of patients: those of one class at one hospital, or all with follow-up there. A group smaller
than the least allowed, or a survival task with fewer deaths, is left out as a whole and named. Inside a reported group
a count can still be small (a single misclassified case): these counts are for a channel that adds them up before
anybody sees them, or for hospitals that have agreed to show them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from modaltune.data.preprocessing import Preprocessing
from modaltune.evaluation.calibration import bin_members, brier_terms
from modaltune.evaluation.metrics import Floats, comparable_pairs
from modaltune.evaluation.predictions import class_outcomes, scored
from modaltune.federation.study import Study, TaskSpec

SCORE_BINS = 256


@dataclass(frozen=True, kw_only=True)
class SiteCounts:
    """What one hospital tells of its test cases.

    Attributes:
        arrays: name -> counts. Of a task with classes: ``.confusion`` ``[C, C]`` true by predicted, ``.scores``
            ``[C, C, B]`` cases by class scored, true class and bin of its probability, ``.brier`` ``[C]`` sums by true
            class, ``.calibration`` ``[C, 10, 2]`` cases and sum of correct minus confidence by true class. Of survival:
            ``.pairs`` ``[3]`` cases, comparable pairs, concordant ones (ties half).
        suppressed: groups left out: ``task/class`` or ``task``.
    """

    site: str
    arrays: Mapping[str, Floats]
    suppressed: tuple[str, ...]


def site_counts(
    table: pd.DataFrame, study: Study, preprocessing: Preprocessing, minimum: int, *, bins: int = SCORE_BINS
) -> SiteCounts:
    """Counts of one hospital's prediction table.

    Args:
        minimum: smallest group that may be reported.
    """
    site = str(table["hospital"].iloc[0]) if len(table) else ""
    arrays: dict[str, Floats] = {}
    suppressed: list[str] = []
    for spec in study.tasks:
        candidates = preprocessing.tasks[spec.name].candidates
        inside = scored(table, spec, candidates)
        if spec.kind == "survival":
            found, small = _pairs(inside, spec, minimum)
        else:
            found, small = _class_counts(inside, spec, candidates, minimum, bins)
        arrays |= {f"{spec.name}.{name}": value for name, value in found.items()}
        suppressed += small
    return SiteCounts(site=site, arrays=arrays, suppressed=tuple(suppressed))


def pooled_metrics(sites: Iterable[SiteCounts], study: Study) -> list[dict[str, Any]]:
    """Metrics of all hospitals' reported groups together.

    Returns:
        Objects ``{"task", "metric", "value", "n", "error"}``: value None when undefined, error the most by which it can
        differ from that of the pooled cases (None: a metric of its own, not comparable).
    """
    known = list(sites)
    rows = []
    for spec in study.tasks:
        total = _total(known, spec.name)
        if "pairs" in total:
            cases, comparable, concordant = total["pairs"]
            value = concordant / comparable if comparable else None
            rows.append(_row(spec, "c_index_stratified", value, cases, None))
        elif total:
            rows += _class_metrics(spec, total)
    return rows


def _class_counts(
    table: pd.DataFrame, spec: TaskSpec, candidates: Sequence[str], minimum: int, bins: int
) -> tuple[dict[str, Floats], list[str]]:
    labels, probabilities = class_outcomes(table, spec, candidates)
    classes = ("others", "positive") if spec.kind == "ordinal" else tuple(candidates)
    truth = np.eye(len(classes))[labels]
    small = (truth.sum(axis=0) < minimum) & (truth.sum(axis=0) > 0)
    truth[:, small] = 0
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    level = np.minimum((probabilities * bins).astype(int), bins - 1)
    members = bin_members(confidence)
    surplus = (predicted == labels) - confidence
    arrays = {
        "confusion": truth.T @ np.eye(len(classes))[predicted],
        "scores": np.stack([truth.T @ np.eye(bins)[level[:, c]] for c in range(len(classes))]),
        "brier": brier_terms(labels, probabilities) @ truth,
        "calibration": np.stack([truth.T @ members, truth.T @ (members * surplus[:, None])], axis=2),
    }
    return arrays, [f"{spec.name}/{name}" for name, left_out in zip(classes, small, strict=True) if left_out]


def _pairs(table: pd.DataFrame, spec: TaskSpec, minimum: int) -> tuple[dict[str, Floats], list[str]]:
    event = table["event"].to_numpy().astype(bool)
    if len(table) and event.sum() < minimum:
        return {}, [spec.name]
    months, risk = table["time_months"].to_numpy(np.float64), table["risk"].to_numpy(np.float64)
    comparable, concordant = comparable_pairs(months, event, risk)
    return {"pairs": np.array([len(table), comparable.sum(), concordant.sum()])}, []


def _total(sites: Sequence[SiteCounts], task: str) -> dict[str, Floats]:
    total: dict[str, Floats] = {}
    for site in sites:
        for name, value in site.arrays.items():
            owner, _, kind = name.rpartition(".")
            if owner == task:
                total[kind] = total[kind] + value if kind in total else value
    return total


def _class_metrics(spec: TaskSpec, total: Mapping[str, Floats]) -> list[dict[str, Any]]:
    confusion = total["confusion"]
    cases, right = confusion.sum(), np.diag(confusion)
    true, said = confusion.sum(axis=1), confusion.sum(axis=0)
    several = np.count_nonzero(true) > 1
    occur = true + said > 0
    area, error = _area(total["scores"])
    gaps = np.abs(total["calibration"][:, :, 1].sum(axis=0)).sum()
    return [
        _row(spec, "auc", area, cases, error),
        _row(spec, "balanced_accuracy", (right[true > 0] / true[true > 0]).mean() if several else None, cases, 0.0),
        _row(spec, "macro_f1", (2 * right[occur] / (true + said)[occur]).mean() if several else None, cases, 0.0),
        _row(spec, "brier", total["brier"].sum() / cases if cases else None, cases, 0.0),
        _row(spec, "ece", gaps / cases if cases else None, cases, 0.0),
    ]


def _area(scores: Floats) -> tuple[float | None, float | None]:
    """Mean one-vs-rest area over classes, and half the share of pairs whose scores fall into one bin: its error."""
    found = []
    for c in range(len(scores)):
        positive, negative = scores[c, c], scores[c].sum(axis=0) - scores[c, c]
        pairs = positive.sum() * negative.sum()
        if pairs:
            tied = float(positive @ negative)
            below = negative.cumsum() - negative
            found.append(((float(positive @ below) + 0.5 * tied) / pairs, 0.5 * tied / pairs))
    if not found:
        return None, None
    areas, errors = zip(*found, strict=True)
    return float(np.mean(areas)), float(np.mean(errors))


def _row(spec: TaskSpec, metric: str, value: float | None, cases: float, error: float | None) -> dict[str, Any]:
    number = None if value is None else float(value)
    return {"task": spec.name, "metric": metric, "value": number, "n": int(cases), "error": error}
