"""Out of distribution: linear probes of the frozen federated model on a cohort that it never saw.

Probes are fitted on the cohort's own training cases and scored on its test cases, in one place: what is measured is the
representation. ``untrained`` is the same probe on the model before training, ``linear`` the linear row of every
simulation: regressions on the inputs themselves, with the ridge of that row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modaltune.data.batch import CaseTensors
from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import FeatureFileError
from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.predictions import metric_rows
from modaltune.evaluation.probes.embeddings import as_probe_row, embedded
from modaltune.evaluation.survival import Censoring
from modaltune.federation.statistics import pooled_preprocessing, site_statistics
from modaltune.federation.study import Study
from modaltune.models.learner import Learner, build_learner, load_model
from simulation.compare import Hospitals, Scene, linear_predictions
from simulation.probes import Embed, probe_tables
from simulation.studies.data import tcga_shares, vocabulary, write_share
from simulation.studies.spec import DataSpec
from simulation.study import read_sites


def probe_rows(spec: DataSpec, seed: int, data: Path | None, folder: Path, study: Study) -> list[dict[str, Any]]:
    """Rows of each probed cohort, which takes the place of the hospital; metrics are called ``auc_probe`` and so on.

    Args:
        spec: the cell's data; ``probe`` names the cohorts.
        folder: run folder with ``model/``.
        study: that the model was trained for.
    """
    learner, _, preprocessing = load_model(folder / "model")
    with torch.random.fork_rng():
        untrained = build_learner(study, preprocessing).eval()
    rows: list[dict[str, Any]] = []
    for cohort in spec.probe:
        hospitals = _hospitals(spec, cohort, seed, data, folder / "probe" / cohort, study, preprocessing)
        names = sorted(hospitals.cohorts)
        tables = {
            "federated": probe_tables(hospitals, _side_by_side(learner, hospitals.study), names, together=True).table,
            "untrained": probe_tables(hospitals, _side_by_side(untrained, hospitals.study), names, together=True).table,
            "linear": linear_predictions(hospitals, names),
        }
        cases = [found.cases for found in hospitals.cohorts.values()]
        censoring = Censoring.of_training(cases, hospitals.study.endpoints)
        for method, table in tables.items():
            by_task = {task.name: [table] for task in hospitals.study.tasks}
            scored = metric_rows(
                by_task,
                hospitals.study,
                hospitals.preprocessing,
                method=method,
                hospital=cohort,
                seed=seed,
                censoring=censoring,
            )
            rows += map(as_probe_row, scored)
    return rows


def _side_by_side(learner: Learner, study: Study) -> Embed:
    """The embeddings of all tasks of a model side by side ``[n, K O]``, the same for every task of the other cohort."""

    def embed(cases: Sequence[CaseTensors]) -> dict[str, Floats]:
        joined = np.concatenate(list(embedded(learner, cases).values()), axis=1)
        return dict.fromkeys((task.name for task in study.tasks), joined)

    return embed


def _hospitals(
    spec: DataSpec, cohort: str, seed: int, data: Path | None, out: Path, study: Study, preprocessing: Preprocessing
) -> Hospitals:
    """The cohort's hospitals, scaled as the model's inputs were, with the tasks and candidates of their own."""
    shares, _ = tcga_shares(spec, [cohort], seed, data)
    tasks = vocabulary([cohort], shares)
    folders = [write_share(share, tasks, None, out) for share in shares]
    cohorts = read_sites(folders, tasks, study.name)
    width = next((found.patch_width for found in cohorts.values() if found.patch_width is not None), None)
    if width not in (None, study.slides.in_width):
        raise FeatureFileError(
            f"{cohort}: {width} features per patch but the model was trained on {study.slides.in_width}; probe with"
            ' data.modalities = ["expression"], or train on cohorts with the same image features'
        )
    other = study.model_copy(update={"tasks": tasks, "roster": tuple(cohorts)})
    sums = {site: site_statistics(found, other, list(preprocessing.genes)) for site, found in cohorts.items()}
    own = pooled_preprocessing(sums, other, list(preprocessing.genes))
    scaled = preprocessing.model_copy(update={"tasks": own.tasks})
    sites = dict(zip(cohorts, folders, strict=True))
    return Hospitals(Scene(sites=sites, truth=sites, study=other.to_json(), preprocessing=scaled.to_json()))
