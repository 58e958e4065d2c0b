"""Metrics of everybody's test cases from counts of each hospital, without a case leaving it.

Balanced accuracy and macro-F1 equal those of the counted cases in one table exactly. Brier score and calibration error
come from sums that leave rounded, the ROC area from binned scores: they are off by at most what is reported with them.
The concordance counts pairs within hospitals only: it is the index stratified by hospital.

A hospital leaves out a task of which one of its classes has some cases, but fewer than the least allowed (survival:
deaths, or censored cases): all of the task, because metrics and numbers of cases of the others would tell the small
class. Inside a class that is told a count can be small (a single misclassified case): hospitals approve these counts on
their own, see ``evaluation.counts``.
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
from modaltune.federation.study import Study
from modaltune.federation.task import TaskSpec
from modaltune.seeds import numpy_generator
from modaltune.suppression import has_small_group

SUM_DECIMALS = 2
"""Decimals of sums over scores (``.brier``, ``.calibration``): more would tell the probability of a lone case."""
_ROUNDED = 0.5 * 10**-SUM_DECIMALS
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
        known = limits if value is not None and np.isfinite(limits or np.nan).all() else None
        low, high = (None, None) if known is None else map(float, known)
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
        arrays: see :func:`count_shapes`; all zero of a task that is left out or not there.
        suppressed: tasks left out.
    """

    arrays: Mapping[str, Floats]
    suppressed: tuple[str, ...]


def count_shapes(study: Study, preprocessing: Preprocessing) -> dict[str, tuple[int, ...]]:
    """Arrays of a hospital's counts, name -> shape.

    Of a task with classes (an ordinal one has two): ``.confusion`` true by predicted; ``.scores`` for each scored class
    (of two: the second) cases of other classes and its own by bin of its probability; ``.brier`` sum and sum of
    squares; ``.calibration`` sum of correct minus confidence by bin of confidence. Of survival, ``.pairs``: cases,
    deaths, comparable pairs, concordant ones (ties half), and over cases the sums of concordant², concordant x
    comparable, comparable².
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in study.tasks:
        if spec.kind == "survival":
            shapes[f"{spec.name}.pairs"] = (_PAIRS,)
            continue
        classes = len(_classes(spec, preprocessing))
        shapes[f"{spec.name}.confusion"] = (classes, classes)
        shapes[f"{spec.name}.scores"] = (len(_scored_classes(classes)), 2, study.evaluation.bins)
        shapes[f"{spec.name}.brier"] = (2,)
        shapes[f"{spec.name}.calibration"] = (BINS,)
    return shapes


def site_counts(table: pd.DataFrame, study: Study, preprocessing: Preprocessing, minimum: int) -> SiteCounts:
    """Counts of one hospital's prediction table.

    Args:
        minimum: smallest group that may be reported.
    """
    arrays = {name: np.zeros(shape) for name, shape in count_shapes(study, preprocessing).items()}
    suppressed = []
    for spec in study.tasks:
        inside = scored(table, spec, preprocessing.tasks[spec.name].candidates)
        if spec.kind == "survival":
            found = _pairs(inside, minimum)
        else:
            found = _class_counts(inside, spec, preprocessing, minimum, study.evaluation.bins)
        if found is None:
            suppressed.append(spec.name)
        arrays |= {f"{spec.name}.{name}": value for name, value in (found or {}).items()}
    return SiteCounts(arrays=arrays, suppressed=tuple(suppressed))


def pooled_metrics(sites: Iterable[Mapping[str, Floats]], study: Study) -> list[dict[str, Any]]:
    """Metrics of all hospitals' reported groups together.

    Returns:
        Objects ``{"task", "metric", "value", "low", "high", "n", "events", "error"}``: value None when undefined; 95 %
        interval over patients, None where counts give none; events deaths, or cases of the rarest class; error the most
        by which the value can differ from that of the counted cases in one table (None: undefined, or a metric of its
        own).
    """
    known = list(sites)
    rows = []
    for spec in study.tasks:
        names = sorted({name for site in known for name in site if name.rpartition(".")[0] == spec.name})
        total = {name.rpartition(".")[2]: np.sum([site[name] for site in known], axis=0) for name in names}
        if spec.kind == "survival" and total:
            rows.append(_concordance(spec, total["pairs"]))
        elif total:
            rows += _class_metrics(spec, total, len(known), study.seed)
    return rows


def _classes(spec: TaskSpec, preprocessing: Preprocessing) -> tuple[str, ...]:
    return ("others", "positive") if spec.kind == "ordinal" else tuple(preprocessing.tasks[spec.name].candidates)


def _scored_classes(classes: int) -> range:
    """Classes whose probability is scored against the others; of two, the second."""
    return range(1, 2) if classes == 2 else range(classes)


def _class_counts(
    table: pd.DataFrame, spec: TaskSpec, preprocessing: Preprocessing, minimum: int, bins: int
) -> dict[str, Floats] | None:
    labels, probabilities = class_outcomes(table, spec, preprocessing.tasks[spec.name].candidates)
    classes = len(_classes(spec, preprocessing))
    truth = np.eye(classes)[labels]
    if has_small_group(truth.sum(axis=0), minimum):
        return None
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    level = np.minimum((probabilities * bins).astype(int), bins - 1)
    terms = brier_terms(labels, probabilities)
    sides = [
        [np.bincount(level[inside, c], minlength=bins) for inside in (labels != c, labels == c)]
        for c in _scored_classes(classes)
    ]
    return {
        "confusion": truth.T @ np.eye(classes)[predicted],
        "scores": np.array(sides, np.float64),
        "brier": np.array([terms.sum(), (terms**2).sum()]),
        "calibration": ((predicted == labels) - confidence) @ bin_members(confidence),
    }


def _pairs(table: pd.DataFrame, minimum: int) -> dict[str, Floats] | None:
    event = table["event"].to_numpy().astype(bool)
    deaths, others = event.sum(), (~event).sum()
    if len(table) and (not deaths or has_small_group(np.array([others, deaths]), minimum)):
        return None
    months, risk = table["time_months"].to_numpy(np.float64), table["risk"].to_numpy(np.float64)
    comparable, concordant = comparable_pairs(months, event, risk)
    whole, right = (pairs.sum(axis=0) + pairs.sum(axis=1) for pairs in (comparable, concordant))
    sums = (len(table), deaths, comparable.sum(), concordant.sum(), right @ right, right @ whole, whole @ whole)
    return {"pairs": np.array(sums, np.float64)}


def _concordance(spec: TaskSpec, pairs: Floats) -> dict[str, Any]:
    """Its interval is the infinitesimal jackknife's: what each patient moves, squared and summed within hospitals."""
    cases, deaths, comparable, concordant, right, both, whole = pairs
    row = _Row(spec, cases, deaths)
    if not comparable:
        return row("c_index_stratified", None, None)
    value = concordant / comparable
    variance = max(0.0, right - 2 * value * both + value**2 * whole) / comparable**2
    return row("c_index_stratified", value, None, _around(value, variance))


def _class_metrics(spec: TaskSpec, total: Mapping[str, Floats], sites: int, seed: int) -> list[dict[str, Any]]:
    confusion = total["confusion"]
    groups = confusion.sum(axis=1)
    cases, several = groups.sum(), np.count_nonzero(groups) > 1
    row = _Row(spec, cases, groups[groups > 0].min() if several else 0)
    tables = np.concatenate([confusion[None], _resampled(confusion, seed, spec.name, "confusion")])
    rows = [row("auc_binned", *_area(total["scores"], seed, spec.name))]
    for metric, values in (("balanced_accuracy", _recall(tables)), ("macro_f1", _f1(tables))):
        rows.append(row(metric, values[0] if several else None, 0.0, _percentiles(values[1:])))
    if not cases:
        return [*rows, row("brier", None, None), row("ece", None, None)]
    (score, square), error = total["brier"] / cases, _ROUNDED * sites / cases
    rows.append(row("brier", score, error, _around(score, max(0.0, square - score**2) / cases)))
    return [*rows, row("ece", np.abs(total["calibration"]).sum() / cases, BINS * error)]


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

    With more than two classes the bounds are means over classes, usually wider than resampling them together.
    """
    found = []
    for c, sides in enumerate(scores):
        if sides.sum(axis=1).all():
            drawn = np.concatenate([sides[None], _resampled(sides, seed, task, "scores", c)])
            negative, positive = drawn[:, 0], drawn[:, 1]
            below = negative.cumsum(axis=1) - negative
            tied, pairs = (positive * negative).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1)
            values = share((positive * below).sum(axis=1) + 0.5 * tied, pairs)
            found.append((values[0], 0.5 * tied[0] / pairs[0], *_percentiles(values[1:])))
    if not found:
        return None, None, None
    area, error, low, high = np.mean(found, axis=0)
    return float(area), float(error), (float(low), float(high))


def _resampled(counts: Floats, seed: int, *names: object) -> Floats:
    """``[RESAMPLES, ...]`` counts of as many cases, drawn with replacement from those counted."""
    cases = int(counts.sum())
    if not cases:
        return np.zeros((RESAMPLES, *counts.shape))
    generator = numpy_generator(seed, "bootstrap", "counts", *names)
    drawn = generator.multinomial(cases, counts.ravel() / cases, size=RESAMPLES)
    return drawn.reshape(RESAMPLES, *counts.shape).astype(np.float64)


def _percentiles(values: Floats) -> tuple[float, float]:
    defined = values[np.isfinite(values)]
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (np.nan, np.nan)
    return float(low), float(high)


def _around(value: float, variance: float) -> tuple[float, float]:
    half = _NORMAL * float(np.sqrt(variance))
    return max(0.0, value - half), min(1.0, value + half)
