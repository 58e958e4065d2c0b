"""Probes on the embeddings of a trained model: fitted over hospitals as a federation would, scored on test cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from modaltune.data.batch import CaseTensors, readable
from modaltune.errors import ProbeError
from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.predictions import COLUMNS
from modaltune.evaluation.probes.embeddings import embedded, labelled_cases, probe_predictions, probe_spec
from modaltune.evaluation.probes.fit import Probe, fit_sites
from modaltune.evaluation.probes.sums import SiteCases
from modaltune.models.learner import Learner
from modaltune.suppression import has_small_group

if TYPE_CHECKING:
    from simulation.compare import Hospitals

Embed = Callable[[Sequence[CaseTensors]], Mapping[str, Floats]]
"""Cases -> task -> features ``[n, F]``."""


class Fitted(NamedTuple):
    """A probe for each task that could be fitted, and a sentence for each task that lacks hospitals or a probe."""

    probes: dict[str, Probe]
    notes: tuple[str, ...]


class Probed(NamedTuple):
    """Predictions by probes, and the sentences of :class:`Fitted`."""

    table: pd.DataFrame
    notes: tuple[str, ...]


def embeddings_of(learner: Learner) -> Embed:
    """The embeddings of a model."""
    return partial(embedded, learner)


def fit_probes(
    data: Hospitals, embed: Embed, hospitals: Sequence[str], *, together: bool, needs: Sequence[str] = ()
) -> Fitted:
    """One probe a task on training cases; a task that cannot be fitted has none.

    Args:
        needs: modalities without which a case is left out.
        together: the cases lie in one place. Otherwise each hospital answers with sums, is a stratum of survival, and
            is left out where one of its groups is too small to be counted.
    """
    train, frames = dict[str, list[CaseTensors]](), dict[str, pd.DataFrame]()
    for site in sorted(hospitals):
        cases, frame = data.split(site, "train"), data.cohorts[site].cases
        keep = [readable(case, needs) for case in cases]
        train[site] = [case for case, kept in zip(cases, keep, strict=True) if kept]
        frames[site] = frame[frame["split"] == "train"][keep]
    embeddings = {site: embed(cases) for site, cases in train.items()}
    probes, notes = dict[str, Probe](), list[str]()
    for task in data.study.tasks:
        held = {
            site: labelled_cases(task, cases, frames[site], embeddings[site][task.name])
            for site, cases in train.items()
        }
        minimum, needed = data.study.privacy.min_cell, data.study.privacy.min_contributors
        if together:
            held, minimum, needed = {"everybody": SiteCases.together(list(held.values()))}, 1, 0
        said = _suppressed(held, minimum)
        try:
            probes[task.name] = fit_sites(probe_spec(task, data.preprocessing.tasks[task.name]), held, minimum, needed)
        except ProbeError as error:
            said.append(f"not fitted, {error}")
        if said:
            notes.append(f"probe of {task.name}: {'; '.join(said)}.")
    return Fitted(probes, tuple(notes))


def _suppressed(held: Mapping[str, SiteCases], minimum: int) -> list[str]:
    """Which hospitals a probe does without because they may not count their cases, in words; empty = none."""
    names = [site for site, cases in held.items() if has_small_group(np.bincount(cases.group), minimum)]
    if not names:
        return []
    few = f"fewer than {minimum}"
    classes = all(cases.months is None for cases in held.values())
    why = f"a class of {few} cases" if classes else f"{few} deaths or survivors"
    return [f"without {_listed(names)} ({why})"]


def _listed(names: Sequence[str]) -> str:
    """``H1``, ``H1 and H4``, ``H1, H4 and H5``."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def probe_tables(
    data: Hospitals, embed: Embed, hospitals: Sequence[str], *, together: bool, needs: Sequence[str] = ()
) -> Probed:
    """Predictions for everybody's test cases by probes, see :func:`fit_probes`."""
    (probes, notes), tables = fit_probes(data, embed, hospitals, together=together, needs=needs), []
    for site in sorted(data.truth):
        inside = (data.truth[site].cases["split"] == "test").to_numpy()
        frame = data.truth[site].cases[inside]
        embeddings = embed([c for c, keep in zip(data.truth_cases[site], inside, strict=True) if keep])
        tables += [
            probe_predictions(
                probes[task.name], frame, site, task, data.preprocessing.tasks[task.name], embeddings[task.name]
            )
            for task in data.study.tasks
            if task.name in probes and task.name in data.truth[site].tasks
        ]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))
    return Probed(table, notes)
