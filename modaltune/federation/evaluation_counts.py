"""Counts of test cases as they travel with an evaluation: which arrays, and what is wrong with them.

The same check runs at the hospital's gate before they leave and at the server when they arrive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modaltune.data.preprocessing import Preprocessing
from modaltune.evaluation.federated import SUM_DECIMALS, count_shapes
from modaltune.evaluation.metrics import Floats
from modaltune.federation.manifest import Manifest
from modaltune.federation.study import Study
from modaltune.federation.task import TaskSpec
from modaltune.federation.wire import floats
from modaltune.suppression import has_small_group

COUNTS = "counts"
_SUMS = (".brier", ".calibration")
_LOOSE = 0.1  # more than rounding moves any of the sums that are compared


def counts_manifest(study: Study, preprocessing: Preprocessing) -> Manifest:
    """Arrays of a site's counts."""
    return Manifest(shapes=count_shapes(study, preprocessing), dtype="float64")


def rounded(counts: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
    """Counts as they leave: sums over scores without further digits."""
    return floats({name: np.round(v, SUM_DECIMALS) if name.endswith(_SUMS) else v for name, v in counts.items()})


def problem_with_counts(
    counts: Mapping[str, Floats], study: Study, minimum: int, cases: int, labelled: Mapping[str, float]
) -> str | None:
    """What is wrong with counts that fit their manifest; None = nothing.

    Args:
        minimum: smallest group that may be told.
        cases: test cases there are.
        labelled: task -> test cases that carry its label, where that was told, too.
    """
    for task in study.tasks:
        own = {name.rpartition(".")[2]: value for name, value in counts.items() if name.rpartition(".")[0] == task.name}
        problem = _of_pairs(own["pairs"], minimum) if task.kind == "survival" else _of_classes(own, minimum)
        counted = _counted(counts, task)
        if problem is None and counted > cases:
            problem = "more cases than there are"
        if problem is None and counted not in (0, labelled.get(task.name, counted)):
            problem = "other cases than its scores"
        if problem is not None:
            return f"counts of {task.name} tell of {problem}"
    return None


def labelled_cases(metrics: Mapping[str, float]) -> dict[str, float]:
    """Task -> test cases with its label, from the metrics of an evaluation; infinite where they do not agree."""
    told: dict[str, set[float]] = {}
    for name, value in metrics.items():
        group, _, part = name.rpartition(".")
        if part == "n":
            told.setdefault(group.rpartition(".")[0], set()).add(value)
    return {task: min(found) if len(found) == 1 else math.inf for task, found in told.items()}


def counted_sites(counts: Mapping[str, Mapping[str, Floats]], study: Study) -> dict[str, list[str]]:
    """Task -> sites whose counts of it are not all held back, from each site's counts."""
    return {task.name: [site for site in counts if _counted(counts[site], task)] for task in study.tasks}


def _counted(counts: Mapping[str, Floats], task: TaskSpec) -> float:
    """Test cases in a task's counts."""
    if task.kind == "survival":
        return float(counts[f"{task.name}.pairs"][0])
    return float(counts[f"{task.name}.confusion"].sum())


def disclosed(study: Study) -> str:
    """What counts would make leave, for who approves."""
    if not study.evaluation.counts:
        return "none"
    return (
        "once, for each task: test cases by true and predicted class; for each class, its own and other test cases by"
        f" probability in {study.evaluation.bins} steps; with {SUM_DECIMALS} decimals, sum of Brier scores and of their"
        " squares, and in ten bins of confidence the sum of correct minus confidence; of survival cases, deaths,"
        " comparable and concordant pairs, and three sums of squares of the pairs of a case; nothing of a task with a"
        " class (deaths, censored) of too few cases, but within a larger class a count can be a single case"
    )


def _of_classes(own: Mapping[str, Floats], minimum: int) -> str | None:
    confusion, scores, brier, calibration = (own[name] for name in ("confusion", "scores", "brier", "calibration"))
    groups = confusion.sum(axis=1)
    cases = groups.sum()
    if not _whole(confusion) or not _whole(scores):
        return "no whole number of cases"
    if has_small_group(groups, minimum):
        return f"a class with fewer than {minimum} cases"
    own_cases = groups[1:] if len(groups) == 2 else groups
    if not (scores.sum(axis=2) == np.stack([cases - own_cases, own_cases], axis=1)).all():
        return "different numbers of cases"
    if np.abs(calibration).sum() > cases + _LOOSE:
        return "confidence beyond 0..1"
    score, square = brier
    if not (0 <= square <= score + _LOOSE and score <= cases and score**2 <= (square + _LOOSE) * cases):
        return "Brier scores that no cases have"
    return None


def _of_pairs(pairs: Floats, minimum: int) -> str | None:
    cases, deaths, comparable, concordant, right, both, whole = pairs
    if not _whole(4 * pairs) or not _whole(pairs[:3]):
        return "no whole number of pairs"
    if deaths > cases or has_small_group(np.array([cases, deaths, cases - deaths]), minimum):
        return f"fewer than {minimum} cases, deaths or others"
    bounded = concordant <= comparable <= cases * (cases - 1) / 2 and right <= both <= whole
    # the sums over cases are at least as large as with the pairs spread evenly over them, but for rounding
    even = (1 - 1e-9) * 4
    spread = whole * cases >= even * comparable**2 and right * cases >= even * concordant**2
    if not bounded or not spread or whole > 2 * comparable * max(cases - 1, 0):
        return "pairs that no cases have"
    return None


def _whole(values: Floats) -> bool:
    return bool((values >= 0).all() and (values == np.floor(values)).all())
