"""Probes on the embeddings of a trained model: fitted over hospitals as a federation would, scored on test cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from modaltune.data.batch import CaseTensors, readable
from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import TaskSpace
from modaltune.errors import ProbeError
from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.predictions import COLUMNS
from modaltune.evaluation.probes.embeddings import embedded, labelled_cases, probe_predictions, probe_spec
from modaltune.evaluation.probes.fit import Probe, ProbeSpec, fit_sites
from modaltune.evaluation.probes.sums import SiteCases
from modaltune.federation.task import Label, TaskSpec
from modaltune.models.learner import Learner
from modaltune.suppression import has_small_group

if TYPE_CHECKING:
    from simulation.compare import Hospitals

CANCER = "cancer"
"""Task of the probe that tells several cohorts apart."""
Embed = Callable[[Sequence[CaseTensors]], Mapping[str, Floats]]
"""Cases -> task -> features ``[n, F]``."""


class Fitted(NamedTuple):
    """A probe for each task that could be fitted; for each task that lacks hospitals or a probe, what is missing."""

    probes: dict[str, Probe]
    remarks: dict[str, str]


class Probed(NamedTuple):
    """Predictions by probes, and a sentence for each task with a remark of :class:`Fitted`."""

    table: pd.DataFrame
    notes: tuple[str, ...]


class Embedded(NamedTuple):
    """Cases of one split of a hospital, their rows of the cases table, and task -> features ``[n, F]``."""

    cases: Sequence[CaseTensors]
    frame: pd.DataFrame
    features: Mapping[str, Floats]


def embeddings_of(learner: Learner) -> Embed:
    """The embeddings of a model."""
    return partial(embedded, learner)


def fit_probes(data: Hospitals, train: Mapping[str, Embedded], *, together: bool) -> Fitted:
    """One probe a task on the training cases of some hospitals; a task that cannot be fitted has none.

    Args:
        train: see :func:`training_cases`.
        together: the cases lie in one place. Otherwise each hospital answers with sums, is a stratum of survival, and
            is left out where one of its groups is too small to be counted.
    """
    probes, remarks = dict[str, Probe](), dict[str, str]()
    for task in data.study.tasks:
        if not any(task.name in data.cohorts[site].tasks for site in train):
            continue
        held = {
            site: labelled_cases(task, part.cases, part.frame, part.features[task.name]) for site, part in train.items()
        }
        probe, remark = _fitted(data, probe_spec(task, data.preprocessing.tasks[task.name]), held, together)
        probes |= {task.name: probe} if probe else {}
        remarks |= {task.name: remark} if remark else {}
    return Fitted(probes, remarks)


def training_cases(
    data: Hospitals, embed: Embed, hospitals: Sequence[str], needs: Sequence[str] = ()
) -> dict[str, Embedded]:
    """The training cases of some hospitals, without those that lack a modality of ``needs``."""
    return {site: _split(data.cohorts[site], data.cases[site], "train", embed, needs) for site in sorted(hospitals)}


def _split(
    cohort: Cohort, cases: Sequence[CaseTensors], split: str, embed: Embed, needs: Sequence[str] = ()
) -> Embedded:
    readables = np.array([readable(case, needs) for case in cases], dtype=bool)
    inside = (cohort.cases["split"] == split).to_numpy() & readables
    chosen = [case for case, keep in zip(cases, inside, strict=True) if keep]
    return Embedded(chosen, cohort.cases[inside], embed(chosen))


def _fitted(
    data: Hospitals, spec: ProbeSpec, held: Mapping[str, SiteCases], together: bool
) -> tuple[Probe | None, str]:
    """A probe, if there is one, and what is missing."""
    minimum, needed = data.study.privacy.min_cell, data.study.privacy.min_contributors
    if together:
        held, minimum, needed = {"everybody": SiteCases.together(list(held.values()))}, 1, 0
    said = _suppressed(held, minimum)
    try:
        return fit_sites(spec, held, minimum, needed), said
    except ProbeError as error:
        return None, "; ".join(part for part in (said, f"not fitted, {error}") if part)


def _suppressed(held: Mapping[str, SiteCases], minimum: int) -> str:
    """Which hospitals a probe does without because they may not count their cases, in words; empty = none."""
    names = [site for site, cases in held.items() if has_small_group(np.bincount(cases.group), minimum)]
    if not names:
        return ""
    few = f"fewer than {minimum}"
    classes = all(cases.months is None for cases in held.values())
    why = f"a class of {few} cases" if classes else f"{few} deaths or survivors"
    return f"without {_listed(names)} ({why})"


def _listed(names: Sequence[str]) -> str:
    """``H1``, ``H1 and H4``, ``H1, H4 and H5``."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def probe_tables(
    data: Hospitals,
    embed: Embed,
    hospitals: Sequence[str],
    *,
    together: bool,
    needs: Sequence[str] = (),
    cancer: bool = False,
) -> Probed:
    """Predictions for test cases by probes, see :func:`fit_probes`; each cohort of several has probes of its own.

    Args:
        hospitals: whose training cases are fitted to; cohorts without any of them are not predicted.
        needs: modalities without which a case is left out of training.
        cancer: where there are several cohorts, also tell them apart, by the first task's embeddings.
    """
    train = training_cases(data, embed, hospitals, needs)
    groups = {name: sites for name, sites in data.groups.items() if not train.keys().isdisjoint(sites)}
    asked = [site for sites in groups.values() for site in sites]
    test = {site: _split(data.truth[site], data.truth_cases[site], "test", embed) for site in asked}
    tables, said = list[pd.DataFrame](), dict[str, list[str]]()
    for name, sites in groups.items():
        fitted = fit_probes(data, {site: train[site] for site in sites if site in train}, together=together)
        tables += _predictions(data, fitted.probes, {site: test[site] for site in sites})
        for task, remark in fitted.remarks.items():
            said.setdefault(task, []).append(f"in {name} {remark}" if data.cancers else remark)
    if cancer and len(groups) > 1:
        found, remark = _told_apart(data, train, test, together)
        tables += found
        said |= {CANCER: [remark]} if remark else {}
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))
    return Probed(table, tuple(f"probe of {task}: {'; '.join(remarks)}." for task, remarks in said.items()))


def _predictions(data: Hospitals, probes: Mapping[str, Probe], test: Mapping[str, Embedded]) -> list[pd.DataFrame]:
    spaces = data.preprocessing.tasks
    return [
        probe_predictions(probes[task.name], part.frame, site, task, spaces[task.name], part.features[task.name])
        for site, part in test.items()
        for task in data.study.tasks
        if task.name in probes and task.name in data.truth[site].tasks
    ]


def cancer_task(names: Sequence[str]) -> tuple[TaskSpec, TaskSpace]:
    """Which of several cancers a case has: a task that is probed and never trained."""
    labels = tuple(Label(value=name, text=name) for name in names)
    spec = TaskSpec(name=CANCER, kind="nominal", template="{text}", labels=labels)
    return spec, TaskSpace(candidates=tuple(names), texts=tuple(names))


def _told_apart(
    data: Hospitals, train: Mapping[str, Embedded], test: Mapping[str, Embedded], together: bool
) -> tuple[list[pd.DataFrame], str]:
    """Predictions of the cancer of everybody's test cases, and what is missing; all cases of a hospital have one."""
    names, first = list(data.groups), data.study.tasks[0].name
    task, space = cancer_task(names)
    held = {
        site: SiteCases(
            features=part.features[first], group=np.full(len(part.cases), names.index(data.cancers[site]), np.int64)
        )
        for site, part in train.items()
    }
    probe, remark = _fitted(data, probe_spec(task, space), held, together)
    if probe is None:
        return [], remark
    return [
        probe_predictions(
            probe, part.frame.assign(**{CANCER: data.cancers[site]}), site, task, space, part.features[first]
        )
        for site, part in test.items()
    ], remark
