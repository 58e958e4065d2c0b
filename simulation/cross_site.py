"""Federations that leave one hospital out: what each hospital gives to the others, and gets from them.

Rows of the model trained without H3 have the method ``without_H3``. At H3 it is a model that never saw the hospital;
elsewhere the difference to the model of all hospitals is H3's influence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import FederationError
from modaltune.evaluation.metrics import Score
from modaltune.evaluation.paired import headline_differences
from modaltune.evaluation.predictions import metric_rows, row
from modaltune.federation.study import Study
from modaltune.federation.task import HEADLINES
from server.report_data import LEFT_OUT


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A federation that ended: its study, its preprocessing, and predictions for everybody's test cases."""

    study: Study
    preprocessing: Preprocessing
    table: pd.DataFrame


def study_without(study: Study, site: str, cohorts: Mapping[str, Cohort]) -> Study:
    """The same study without one hospital, and without the tasks that only this hospital labels.

    Raises:
        FederationError: the others label none.
    """
    roster = tuple(name for name in study.roster if name != site)
    tasks = tuple(task for task in study.tasks if any(task.name in cohorts[name].tasks for name in roster))
    if not tasks:
        raise FederationError(f"no other hospital labels any task of study {study.name}")
    return study.among(roster, name=f"{study.name}-without-{site}", tasks=tasks)


def matrix_rows(everybody: Trained, without: Mapping[str, Trained]) -> list[dict[str, Any]]:
    """Headline rows of every model that lacks a hospital, at every hospital and at all of them.

    A task that the others do not label has rows without a value.
    """
    rows, seed = [], everybody.study.seed
    for site, other in without.items():
        method, tasks = f"{LEFT_OUT}{site}", {task.name for task in other.study.tasks}
        for hospital in (*sorted(everybody.study.roster), "all"):
            tables = {task: [_at(other.table, hospital)] for task in tasks}
            rows += metric_rows(
                tables,
                other.study,
                other.preprocessing,
                method=method,
                hospital=hospital,
                seed=seed,
                families=(HEADLINES,),
            )
            for spec in everybody.study.tasks:
                if spec.name not in tasks:
                    cases = int((_at(everybody.table, hospital)["task"] == spec.name).sum())
                    nothing = Score(value=None, low=None, high=None, n=cases)
                    rows += [row(method, spec.name, metric, hospital, nothing, seed) for metric in HEADLINES[spec.kind]]
    return rows


def influence_rows(everybody: Trained, without: Mapping[str, Trained]) -> list[dict[str, Any]]:
    """What each hospital's cases change: with it minus without it, on the same test patients.

    Returns:
        Rows ``site, task, metric, hospital, value, low, high, n, seed``; positive = the score is better with ``site``.
    """
    rows = []
    for site, other in without.items():
        for hospital in (*sorted(everybody.study.roster), "all"):
            first, second = _at(everybody.table, hospital), _at(other.table, hospital)
            for spec in other.study.tasks:
                spaces = (everybody.preprocessing.tasks[spec.name], other.preprocessing.tasks[spec.name])
                for metric, score in headline_differences(first, second, spec, spaces, everybody.study.seed).items():
                    about = {"site": site, "task": spec.name, "metric": metric, "hospital": hospital}
                    rows.append(about | vars(score) | {"seed": everybody.study.seed})
    return rows


def _at(table: pd.DataFrame, hospital: str) -> pd.DataFrame:
    return table if hospital == "all" else table[table["hospital"] == hospital]
