"""Probes on the embeddings of a trained model: fitted over hospitals as a federation would, scored on test cases."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from modaltune.errors import ProbeError
from modaltune.evaluation.predictions import COLUMNS
from modaltune.evaluation.probes.embeddings import embedded, labelled_cases, probe_predictions, probe_spec
from modaltune.evaluation.probes.fit import Probe, fit_sites
from modaltune.evaluation.probes.sums import SiteCases
from modaltune.models.learner import Learner

if TYPE_CHECKING:
    from simulation.compare import Hospitals

logger = logging.getLogger(__name__)


def fit_probes(data: Hospitals, learner: Learner, hospitals: Sequence[str], *, together: bool) -> dict[str, Probe]:
    """One probe a task on training cases; a task that cannot be fitted is absent.

    Args:
        together: the cases lie in one place. Otherwise each hospital answers with sums, is a stratum of survival, and
            is left out where one of its groups is too small to be counted.
    """
    train = {site: data.split(site, "train") for site in sorted(hospitals)}
    frames = {site: data.cohorts[site].cases[data.cohorts[site].cases["split"] == "train"] for site in train}
    embeddings = {site: embedded(learner, cases) for site, cases in train.items()}
    out = {}
    for task in data.study.tasks:
        held = {
            site: labelled_cases(task, cases, frames[site], embeddings[site][task.name])
            for site, cases in train.items()
        }
        minimum = data.study.privacy.min_cell
        if together:
            held, minimum = {"everybody": SiteCases.together(list(held.values()))}, 1
        try:
            out[task.name] = fit_sites(probe_spec(task, data.preprocessing.tasks[task.name]), held, minimum)
            logger.info("probe of %s: without %s", task.name, ", ".join(out[task.name].left_out) or "nobody")
        except ProbeError as error:
            logger.info("probe of %s: %s", task.name, error)
    return out


def probe_tables(data: Hospitals, learner: Learner, hospitals: Sequence[str], *, together: bool) -> pd.DataFrame:
    """Predictions for everybody's test cases by probes, see :func:`fit_probes`."""
    probes, tables = fit_probes(data, learner, hospitals, together=together), []
    for site in sorted(data.truth):
        inside = (data.truth[site].cases["split"] == "test").to_numpy()
        frame = data.truth[site].cases[inside]
        embeddings = embedded(learner, [c for c, keep in zip(data.truth_cases[site], inside, strict=True) if keep])
        tables += [
            probe_predictions(
                probes[task.name], frame, site, task, data.preprocessing.tasks[task.name], embeddings[task.name]
            )
            for task in data.study.tasks
            if task.name in probes and task.name in data.truth[site].tasks
        ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))
