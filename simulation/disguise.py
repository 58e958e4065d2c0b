"""Does the unit of the expression tell the diagnosis? Z-scores taken inside each class do.

Such a z-score is (x - mean) / deviation with the class's own mean and deviation, so the classes have the same mean. But
no measurement is below zero, so each gene ends at -mean / deviation, another value in each class. A model can read the
class off these ends, and no patient of a new hospital, measured in another unit, has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from modaltune.data.tcga import TcgaTables
from modaltune.errors import DataError
from simulation.sites import class_and_event, draw_split

FEWEST_CASES = 20
"""Of a class that is compared."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Disguise:
    """How well a linear model tells the two largest classes of the diagnosis from expression.

    Attributes:
        classes: the two diagnoses.
        cases: with either diagnosis and expression.
        ends: distance of the lowest values of the two classes in deviations, median over genes; of z-scores, because
            the lowest logarithm is that of a measurement of zero.
        scores: ``all`` values, those ``below`` and those ``above`` the gene's median, the other ones set to it -> area
            under the ROC curve on the test cases of each seed.
    """

    cohort: str
    classes: tuple[str, str]
    cases: int
    ends: float
    scores: Mapping[str, tuple[float, ...]]


def disguise(tables: TcgaTables, seeds: Sequence[int]) -> Disguise:
    """Measure one cohort; genes that some case lacks are left out.

    Args:
        seeds: each draws another split.
    Raises:
        DataError: fewer than two classes have expression of enough cases.
    """
    expression = tables.expression.dropna(axis="columns")
    cases = tables.cases.loc[expression.index]
    counts = cases["diagnosis"].value_counts()
    classes = [str(name) for name in counts.index[counts >= FEWEST_CASES][:2]]
    if len(classes) < 2:
        raise DataError(f"{tables.cohort}: fewer than two diagnoses have expression of {FEWEST_CASES} cases")
    cases = cases[cases["diagnosis"].isin(classes)]
    values = expression.loc[cases.index].to_numpy(np.float64)
    second = (cases["diagnosis"] == classes[1]).to_numpy()
    runs = [_scores(values, second, _test(cases, seed, tables.cohort)) for seed in seeds]
    return Disguise(
        cohort=tables.cohort,
        classes=(classes[0], classes[1]),
        cases=len(cases),
        ends=_ends(values, second),
        scores={part: tuple(run[part] for run in runs) for part in runs[0]},
    )


def disguise_table(found: Sequence[Disguise]) -> Table:
    """A line a cohort: where genes end, and the area under the ROC curve, mean over seeds."""
    table = Table("cohort", "cases", "ends apart", "AUC, all values", "below the median", "above the median")
    for row in found:
        scores = (f"{np.mean(row.scores[part]):.3f}" for part in ("all", "below", "above"))
        table.add_row(row.cohort, str(row.cases), f"{row.ends:.2f}", *scores)
    return table


def _test(cases: pd.DataFrame, seed: int, cohort: str) -> NDArray[np.bool_]:
    return (draw_split(class_and_event(cases), seed, cohort) == "test").to_numpy()


def _ends(values: Floats, second: NDArray[np.bool_]) -> float:
    apart = np.abs(values[second].min(axis=0) - values[~second].min(axis=0))
    deviation = values.std(axis=0)
    return float(np.median(apart[deviation > 0] / deviation[deviation > 0]))


def _scores(values: Floats, second: NDArray[np.bool_], test: NDArray[np.bool_]) -> dict[str, float]:
    middle = np.median(values[~test], axis=0)
    parts = {"all": values, "below": np.minimum(values, middle), "above": np.maximum(values, middle)}
    scores = {}
    for part, inputs in parts.items():
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000, class_weight="balanced"))
        scored = model.fit(inputs[~test], second[~test]).decision_function(inputs[test])
        scores[part] = float(roc_auc_score(second[test], scored))
    return scores
