"""Whether a model may be released: nobody served worse than by their own model, no metric on too few patients.

What is judged are scores on test cases. Nothing here chooses anything by them: the model is as it is, and is either
let out or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modaltune.data.preprocessing import Preprocessing
from modaltune.evaluation.metrics import Score
from modaltune.evaluation.paired import headline_differences
from modaltune.evaluation.predictions import events_behind, outcome_groups
from modaltune.federation.study import Study
from modaltune.federation.task import AT_HORIZONS, TaskSpec

Row = Mapping[str, Any]
Events = dict[tuple[str, str], int | None]
"""(hospital, task) -> deaths, or cases of the rarest class, among the test cases; None = too few to leave the hospital.
"""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Federated model minus a hospital's own one, on that hospital's own test cases; positive = federated is better."""

    hospital: str
    task: str
    metric: str
    difference: Score


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What speaks against a release.

    Attributes:
        problems: reasons to refuse, one sentence each.
        not_assessed: what could not be judged, one sentence each.
        comparisons: with the hospitals' own models.
        events: behind the metrics, where the run knows them.
        at_horizon: (hospital, task, metric) -> deaths until a metric's time or patients alive after it, the fewer.
        thin: those of them that rest on too few; the model is released without these scores.
    """

    problems: tuple[str, ...]
    not_assessed: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    events: Events
    at_horizon: Mapping[tuple[str, str, str], int]
    thin: frozenset[tuple[str, str, str]]


def judge(
    study: Study, rows: Sequence[Row], preprocessing: Preprocessing | None, predictions: pd.DataFrame | None
) -> Verdict:
    """Judge the model of a run by its metric rows and, in a simulation, by the predictions behind them.

    Args:
        rows: as in ``metrics.json``.
        preprocessing: needed with predictions: candidates of each task.
        predictions: of single test cases, which exist in a simulation only.
    """
    mine = rows_of(study, rows)
    events: Events = {(row["hospital"], row["task"]): row["events"] for row in mine if "events" in row}
    comparisons: list[Comparison] = []
    problems: list[str] = []
    unseen: list[str] = []
    at_horizon: dict[tuple[str, str, str], int] = {}
    if predictions is not None and preprocessing is not None:
        tables = predictions[predictions["seed"] == study.seed]
        comparisons = list(own_model_comparisons(study, preprocessing, tables))
        cases = _Cases(study, preprocessing, tables[tables["method"] == "federated"])
        events |= cases.events()
        problems, unseen = [*cases.without_a_number()], [*cases.unseen()]
        at_horizon = cases.at_horizon()
    thin = frozenset(key for key, fewer in at_horizon.items() if fewer < study.release.min_events)
    return Verdict(
        problems=(*problems, *_untested(study, mine), *_worse(comparisons), *_too_few(study, mine, events)),
        not_assessed=(
            *_not_compared(mine, comparisons),
            *_undefined(mine),
            *unseen,
            *_events_unknown(mine, events),
            *_thin(study, thin),
        ),
        comparisons=tuple(comparisons),
        events=events,
        at_horizon=at_horizon,
        thin=thin,
    )


def rows_of(study: Study, rows: Sequence[Row]) -> list[Row]:
    """Rows of the model itself: a cell of a study has some of groups of hospitals, and of what is only probed, too."""
    places, tasks = {"all", *study.roster}, {task.name for task in study.tasks}
    found = [row for row in rows if row["method"] == "federated" and row["seed"] == study.seed]
    return [row for row in found if row["hospital"] in places and row["task"] in tasks]


def own_model_comparisons(study: Study, preprocessing: Preprocessing, tables: pd.DataFrame) -> Iterator[Comparison]:
    """Each hospital's own test cases under the federated model and under the model it trained alone."""
    local = tables[tables["method"] == "local"]
    for hospital in study.roster:
        federated = tables[(tables["method"] == "federated") & (tables["hospital"] == hospital)]
        own = local[(local["hospital"] == hospital) & (local["model"] == hospital)]
        for spec in study.tasks:
            if spec.name not in set(own["task"]):
                continue
            space = preprocessing.tasks[spec.name]
            for metric, found in headline_differences(federated, own, spec, (space, space), study.seed).items():
                yield Comparison(hospital=hospital, task=spec.name, metric=metric, difference=found)


def _worse(comparisons: Sequence[Comparison]) -> Iterator[str]:
    for found in comparisons:
        score = found.difference
        if score.high is not None and score.high < 0:
            yield (
                f"{found.hospital} is served worse than by its own model: {found.task} {found.metric}"
                f" {score.value:+.3f}, 95 % {score.low:+.3f} to {score.high:+.3f}"
            )


def _too_few(study: Study, rows: Sequence[Row], events: Events) -> Iterator[str]:
    least = study.release
    for (hospital, task), found in _grouped(rows).items():
        cases, where = min(row["n"] for row in found), f"{task} at {'all hospitals' if hospital == 'all' else hospital}"
        what = "deaths" if study.task(task).kind == "survival" else "test cases of the rarest class"
        rare = events.get((hospital, task), least.min_events)
        if cases < least.min_cases:
            yield f"{where} rests on {cases} test cases, release.min_cases = {least.min_cases}"
        elif rare is None:
            yield f"{where} rests on fewer {what} than the hospital tells"
        elif rare < least.min_events:
            yield f"{where} rests on {rare} {what}, release.min_events = {least.min_events}"


def _untested(study: Study, rows: Sequence[Row]) -> Iterator[str]:
    tested = {row["task"] for row in rows if row["value"] is not None}
    for task in study.tasks:
        if task.name not in tested:
            yield f"{task.name} has no test score at any hospital"


def _not_compared(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> Iterator[str]:
    assessed = {(found.hospital, found.task) for found in comparisons if found.difference.high is not None}
    left = sorted({(row["hospital"], row["task"]) for row in rows if row["hospital"] != "all" and row["n"]} - assessed)
    if left and not assessed:
        yield "No hospital was compared with a model of its own: none was trained."
    elif left:
        named = ", ".join(f"{task} at {hospital}" for hospital, task in left)
        yield f"Not compared with the hospital's own model (it has none, or the difference is undefined): {named}."


def _undefined(rows: Sequence[Row]) -> Iterator[str]:
    left = sorted({(row["hospital"], row["task"]) for row in rows if row["n"]} - set(_grouped(rows)))
    if left:
        named = ", ".join(f"{task} at {hospital}" for hospital, task in left)
        yield f"Without a score in spite of test cases (one class only, no deaths, or no number predicted): {named}."


def _events_unknown(rows: Sequence[Row], events: Events) -> Iterator[str]:
    if unknown := sorted(set(_grouped(rows)) - set(events)):
        named = ", ".join(f"{task} at {hospital}" for hospital, task in unknown)
        yield f"The number of deaths, or of cases of the rarest class, was not reported: {named}."


def _thin(study: Study, thin: frozenset[tuple[str, str, str]]) -> Iterator[str]:
    least = study.release.min_events
    for metric in AT_HORIZONS["survival"]:
        if named := sorted(f"{task} at {hospital}" for hospital, task, name in thin if name == metric):
            yield f"{metric} rests on fewer than {least} deaths or survivors and is left out: {', '.join(named)}."


def _grouped(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows with a value, by hospital and task."""
    out: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["value"] is not None:
            out.setdefault((row["hospital"], row["task"]), []).append(row)
    return out


@dataclass(frozen=True)
class _Cases:
    """Predictions of the federated model for single test cases."""

    study: Study
    preprocessing: Preprocessing
    table: pd.DataFrame

    def events(self) -> Events:
        """Over all hospitals a class that no test case has counts, too: 0."""
        out: Events = {}
        for place, spec, own in self._parts():
            groups = self._groups(own, spec)
            rarest = place == "all" and spec.kind != "survival"
            out[place, spec.name] = int(groups.min()) if rarest else events_behind(groups, spec)
        return out

    def at_horizon(self) -> dict[tuple[str, str, str], int]:
        """Deaths until each time at which survival is scored, or patients alive after it, whichever are fewer."""
        out: dict[tuple[str, str, str], int] = {}
        for place, spec, own in self._parts():
            for metric, months in AT_HORIZONS[spec.kind].items():
                died = int(((own["time_months"] <= months) & (own["event"] > 0)).sum())
                out[place, spec.name, metric] = min(died, int((own["time_months"] > months).sum()))
        return out

    def unseen(self) -> Iterator[str]:
        """Classes that the model may answer and hospitals with test cases do not have."""
        absent: dict[tuple[str, str], list[str]] = {}
        for place, spec, own in self._parts():
            candidates, groups = self.preprocessing.tasks[spec.name].candidates, self._groups(own, spec)
            if place != "all" and spec.kind == "nominal":
                for index in np.flatnonzero(groups == 0):
                    absent.setdefault((spec.name, candidates[index]), []).append(place)
        for (task, label), places in absent.items():
            yield f"{task}: no test case of {label} at {', '.join(places)}."

    def without_a_number(self) -> Iterator[str]:
        """Predictions that no score can count."""
        for place, spec, own in self._parts():
            said = own["risk"] if spec.kind == "survival" else own["probabilities"].map(np.sum)
            lost = int((~np.isfinite(said.to_numpy(np.float64))).sum())
            if lost and place != "all":
                yield f"{spec.name} at {place}: {lost} of {len(own)} predictions are not finite numbers"

    def _parts(self) -> Iterator[tuple[str, TaskSpec, pd.DataFrame]]:
        for place in ("all", *self.study.roster):
            inside = self.table if place == "all" else self.table[self.table["hospital"] == place]
            for spec in self.study.tasks:
                if len(own := inside[inside["task"] == spec.name]):
                    yield place, spec, own

    def _groups(self, own: pd.DataFrame, spec: TaskSpec) -> NDArray[np.int64]:
        return outcome_groups(own, spec, self.preprocessing.tasks[spec.name].candidates)
