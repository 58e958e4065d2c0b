"""Metrics of everybody's test cases from counts of each hospital, without a case leaving it.

C classes (an ordinal task has two), B = ``evaluation.bins`` of the study. Balanced accuracy, macro-F1, Brier score and
calibration error equal those of the pooled cases exactly. The ROC area comes from binned scores and is off by at most
what is reported with it. The concordance counts pairs within hospitals only: it is the index stratified by hospital.

The counts describe groups of patients: those of one class at one hospital, or all with follow-up there. A group smaller
than the least allowed, or a survival task with fewer deaths or censored cases, is left out as a whole and named; so is
a task whose small groups together would be told by the number of its cases. Inside a reported group a count can still
be small (a single misclassified case): hospitals approve these counts on their own, see ``evaluation.counts``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from modaltune.data.preprocessing import Preprocessing
from modaltune.evaluation.calibration import BINS, bin_members, brier_terms
from modaltune.evaluation.metrics import RESAMPLES, Floats, comparable_pairs, ratio, share
from modaltune.evaluation.predictions import class_outcomes, scored
from modaltune.federation.study import Study, TaskSpec
from modaltune.seeds import numpy_generator

_NORMAL = 1.959963984540054  # 97.5 % point
_PAIRS = 7


@dataclass(frozen=True)
class _Row:
    """A row of a task: ``events`` deaths, or cases of the rarest class."""

    spec: TaskSpec
    cases: float
    events: float

    def __call__(
        self, metric: str, value: float | None, error: float | None, limits: tuple[float, float] | None = None
    ) -> dict[str, Any]:
        low, high = (None, None) if value is None or limits is None else map(float, limits)
        score = {"value": None if value is None else float(value), "low": low, "high": high}
        return {
            "task": self.spec.name,
            "metric": metric,
            **score,
            "n": int(self.cases),
            "events": int(self.events),
            "error": error,
        }


@dataclass(frozen=True, kw_only=True)
class SiteCounts:
    """What one hospital tells of its test cases.

    Attributes:
        arrays: see :func:`count_shapes`; all zero of what is left out or not there.
        suppressed: groups left out: ``task/class`` or ``task``.
    """

    arrays: Mapping[str, Floats]
    suppressed: tuple[str, ...]


def count_shapes(study: Study, preprocessing: Preprocessing) -> dict[str, tuple[int, ...]]:
    """Arrays of a hospital's counts, name -> shape.

    Of a task with classes: ``.confusion`` true by predicted, ``.scores`` cases by class scored, true class and bin of
    its probability, ``.brier`` sums and sums of squares by true class, ``.calibration`` by true class and bin of
    confidence the cases and their sum of correct minus confidence. Of survival, ``.pairs``: cases, deaths, comparable
    pairs, concordant ones (ties half), and over cases the sums of concordant², concordant x comparable, comparable².
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in study.tasks:
        if spec.kind == "survival":
            shapes[f"{spec.name}.pairs"] = (_PAIRS,)
            continue
        classes = len(_classes(spec, preprocessing))
        shapes[f"{spec.name}.confusion"] = (classes, classes)
        shapes[f"{spec.name}.scores"] = (classes, classes, study.evaluation.bins)
        shapes[f"{spec.name}.brier"] = (2, classes)
        shapes[f"{spec.name}.calibration"] = (classes, BINS, 2)
    return shapes


def site_counts(table: pd.DataFrame, study: Study, preprocessing: Preprocessing, minimum: int) -> SiteCounts:
    """Counts of one hospital's prediction table.

    Args:
        minimum: smallest group that may be reported.
    """
    arrays = {name: np.zeros(shape) for name, shape in count_shapes(study, preprocessing).items()}
    suppressed: list[str] = []
    for spec in study.tasks:
        inside = scored(table, spec, preprocessing.tasks[spec.name].candidates)
        if spec.kind == "survival":
            found, small = _pairs(inside, spec, minimum)
        else:
            found, small = _class_counts(inside, spec, preprocessing, minimum, study.evaluation.bins)
        arrays |= {f"{spec.name}.{name}": value for name, value in found.items()}
        suppressed += small
    return SiteCounts(arrays=arrays, suppressed=tuple(suppressed))


def pooled_metrics(sites: Iterable[Mapping[str, Floats]], study: Study) -> list[dict[str, Any]]:
    """Metrics of all hospitals' reported groups together.

    Returns:
        Objects ``{"task", "metric", "value", "low", "high", "n", "events", "error"}``: value None when undefined; 95 %
        interval over patients, None where counts give none; events deaths, or cases of the rarest class; error the most
        by which the value can differ from that of the same cases in one table (None: a metric of its own).
    """
    known = list(sites)
    rows = []
    for spec in study.tasks:
        names = sorted({name for site in known for name in site if name.rpartition(".")[0] == spec.name})
        total = {name.rpartition(".")[2]: np.sum([site[name] for site in known], axis=0) for name in names}
        if spec.kind == "survival" and total:
            rows.append(_concordance(spec, total["pairs"]))
        elif total:
            rows += _class_metrics(spec, total, study.seed)
    return rows


def _classes(spec: TaskSpec, preprocessing: Preprocessing) -> tuple[str, ...]:
    return ("others", "positive") if spec.kind == "ordinal" else tuple(preprocessing.tasks[spec.name].candidates)


def _class_counts(
    table: pd.DataFrame, spec: TaskSpec, preprocessing: Preprocessing, minimum: int, bins: int
) -> tuple[dict[str, Floats], list[str]]:
    labels, probabilities = class_outcomes(table, spec, preprocessing.tasks[spec.name].candidates)
    classes = _classes(spec, preprocessing)
    truth = np.eye(len(classes))[labels]
    groups = truth.sum(axis=0)
    small = (groups < minimum) & (groups > 0)
    if 0 < groups[small].sum() < minimum:  # the number of all cases would tell how many they are
        return {}, [spec.name]
    truth[:, small] = 0
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    level = np.minimum((probabilities * bins).astype(int), bins - 1)
    members, terms = bin_members(confidence), brier_terms(labels, probabilities)
    surplus = (predicted == labels) - confidence
    arrays = {
        "confusion": truth.T @ np.eye(len(classes))[predicted],
        "scores": np.stack([truth.T @ np.eye(bins)[level[:, c]] for c in range(len(classes))]),
        "brier": np.stack([terms @ truth, terms**2 @ truth]),
        "calibration": np.stack([truth.T @ members, truth.T @ (members * surplus[:, None])], axis=2),
    }
    return arrays, [f"{spec.name}/{name}" for name, left_out in zip(classes, small, strict=True) if left_out]


def _pairs(table: pd.DataFrame, spec: TaskSpec, minimum: int) -> tuple[dict[str, Floats], list[str]]:
    event = table["event"].to_numpy().astype(bool)
    deaths, others = event.sum(), (~event).sum()
    if len(table) and (deaths < minimum or 0 < others < minimum):
        return {}, [spec.name]
    months, risk = table["time_months"].to_numpy(np.float64), table["risk"].to_numpy(np.float64)
    comparable, concordant = comparable_pairs(months, event, risk)
    whole, right = (pairs.sum(axis=0) + pairs.sum(axis=1) for pairs in (comparable, concordant))
    sums = (len(table), deaths, comparable.sum(), concordant.sum(), right @ right, right @ whole, whole @ whole)
    return {"pairs": np.array(sums, np.float64)}, []


def _concordance(spec: TaskSpec, pairs: Floats) -> dict[str, Any]:
    """Its interval is the infinitesimal jackknife's: what each patient moves, squared and summed within hospitals."""
    cases, deaths, comparable, concordant, right, both, whole = pairs
    row = _Row(spec, cases, deaths)
    if not comparable:
        return row("c_index_stratified", None, None)
    value = concordant / comparable
    variance = max(0.0, right - 2 * value * both + value**2 * whole) / comparable**2
    return row("c_index_stratified", value, None, _around(value, variance))


def _class_metrics(spec: TaskSpec, total: Mapping[str, Floats], seed: int) -> list[dict[str, Any]]:
    confusion = total["confusion"]
    groups = confusion.sum(axis=1)
    cases, several = groups.sum(), np.count_nonzero(groups) > 1
    row = _Row(spec, cases, groups[groups > 0].min() if several else 0)
    tables = np.concatenate([confusion[None], _resampled(confusion, seed, spec.name, "confusion")])
    rows = [row("auc_binned", *_area(total["scores"], seed, spec.name))]
    for metric, values in (("balanced_accuracy", _recall(tables)), ("macro_f1", _f1(tables))):
        rows.append(row(metric, values[0] if several else None, 0.0, _percentiles(values[1:])))
    if not cases:
        return [*rows, row("brier", None, 0.0), row("ece", None, 0.0)]
    score, square = total["brier"].sum(axis=1) / cases
    rows.append(row("brier", score, 0.0, _around(score, max(0.0, square - score**2) / cases)))
    gaps = np.abs(total["calibration"][:, :, 1].sum(axis=0)).sum()
    return [*rows, row("ece", gaps / cases, 0.0)]


def _recall(tables: Floats) -> Floats:
    """Balanced accuracy of confusion tables ``[R, C, C]``, over the classes of the first."""
    right, true = np.einsum("rcc->rc", tables), tables.sum(axis=2)
    present = true[0] > 0
    recalls = [ratio(right[:, c], true[:, c]) for c in np.flatnonzero(present)]
    out: Floats = np.mean(recalls or [np.full(len(tables), np.nan)], axis=0)
    return out


def _f1(tables: Floats) -> Floats:
    """Macro-F1 of confusion tables ``[R, C, C]``, over the classes that occur in each."""
    right, both = np.einsum("rcc->rc", tables), tables.sum(axis=1) + tables.sum(axis=2)
    scores = np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)
    return ratio(scores.sum(axis=1), (both > 0).sum(axis=1).astype(np.float64))


def _area(scores: Floats, seed: int, task: str) -> tuple[float | None, float | None, tuple[float, float] | None]:
    """Mean one-vs-rest area over classes, half the share of pairs whose scores fall into one bin, and an interval.

    With more than two classes the bounds are means over classes, which is at least as wide as resampling them together.
    """
    found = []
    for c in range(1, 2) if len(scores) == 2 else range(len(scores)):
        sides = np.stack([scores[c, c], scores[c].sum(axis=0) - scores[c, c]])
        if sides.sum(axis=1).all():
            drawn = np.concatenate([sides[None], _resampled(sides, seed, task, "scores", c)])
            positive, negative = drawn[:, 0], drawn[:, 1]
            below = negative.cumsum(axis=1) - negative
            tied, pairs = (positive * negative).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1)
            values = share((positive * below).sum(axis=1) + 0.5 * tied, pairs)
            found.append((values[0], 0.5 * tied[0] / pairs[0], *_percentiles(values[1:])))
    if not found:
        return None, None, None
    area, error, low, high = np.mean(found, axis=0)
    return float(area), float(error), (float(low), float(high))


def _resampled(counts: Floats, *names: Any) -> Floats:
    """``[RESAMPLES, ...]`` counts of as many cases, drawn with replacement from those counted."""
    cases = int(counts.sum())
    if not cases:
        return np.zeros((RESAMPLES, *counts.shape))
    seed, *rest = names
    drawn = numpy_generator(seed, "bootstrap", "counts", *rest).multinomial(
        cases, counts.ravel() / cases, size=RESAMPLES
    )
    return drawn.reshape(RESAMPLES, *counts.shape).astype(np.float64)


def _percentiles(values: Floats) -> tuple[float, float]:
    defined = values[np.isfinite(values)]
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (np.nan, np.nan)
    return float(low), float(high)


def _around(value: float, variance: float) -> tuple[float, float]:
    half = _NORMAL * float(np.sqrt(variance))
    return max(0.0, value - half), min(1.0, value + half)
