"""Probes on the embeddings of a trained model: fitted over hospitals as a federation would, scored on test cases."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from modaltune.data.batch import CaseTensors, readable
from modaltune.errors import ProbeError
from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.predictions import COLUMNS
from modaltune.evaluation.probes.embeddings import embedded, labelled_cases, probe_predictions, probe_spec
from modaltune.evaluation.probes.fit import Probe, fit_sites
from modaltune.evaluation.probes.sums import SiteCases
from modaltune.models.learner import Learner

if TYPE_CHECKING:
    from simulation.compare import Hospitals

logger = logging.getLogger(__name__)


Embed = Callable[[Sequence[CaseTensors]], Mapping[str, Floats]]
"""Cases -> task -> features ``[n, F]``."""


def embeddings_of(learner: Learner) -> Embed:
    """The embeddings of a model."""
    return partial(embedded, learner)


def fit_probes(
    data: Hospitals, embed: Embed, hospitals: Sequence[str], *, together: bool, needs: Sequence[str] = ()
) -> dict[str, Probe]:
    """One probe a task on training cases; a task that cannot be fitted is absent.

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
    out = {}
    for task in data.study.tasks:
        held = {
            site: labelled_cases(task, cases, frames[site], embeddings[site][task.name])
            for site, cases in train.items()
        }
        minimum, needed = data.study.privacy.min_cell, data.study.privacy.min_contributors
        if together:
            held, minimum, needed = {"everybody": SiteCases.together(list(held.values()))}, 1, 0
        try:
            out[task.name] = fit_sites(probe_spec(task, data.preprocessing.tasks[task.name]), held, minimum, needed)
            logger.info("probe of %s: without %s", task.name, ", ".join(out[task.name].left_out) or "nobody")
        except ProbeError as error:
            logger.info("probe of %s: %s", task.name, error)
    return out


def probe_tables(
    data: Hospitals, embed: Embed, hospitals: Sequence[str], *, together: bool, needs: Sequence[str] = ()
) -> pd.DataFrame:
    """Predictions for everybody's test cases by probes, see :func:`fit_probes`."""
    probes, tables = fit_probes(data, embed, hospitals, together=together, needs=needs), []
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
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))
