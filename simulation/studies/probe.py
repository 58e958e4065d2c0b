"""Out of distribution: linear probes of the frozen federated model on a cohort that it never saw.

Probes are fitted on the cohort's own training cases and scored on its test cases, in one place: what is measured is the
representation. ``linear`` is the same probe on the inputs themselves, ``untrained`` on the model before training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modaltune.data.batch import CaseTensors
from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import FeatureFileError
from modaltune.evaluation.linear import fit_linear, linear_features
from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.predictions import embed_cases, metric_rows
from modaltune.federation.statistics import pooled_preprocessing, site_statistics
from modaltune.federation.study import Study
from modaltune.models.learner import Learner, build_learner, load_model
from simulation.compare import Hospitals, Scene, linear_predictions
from simulation.studies.data import tcga_shares, vocabulary, write_share
from simulation.studies.spec import DataSpec
from simulation.study import read_sites

Features = Callable[[Sequence[CaseTensors], Study], Floats]


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
    seen: dict[str, Features] = {
        "federated": _embeddings(learner),
        "untrained": _embeddings(untrained),
        "linear": linear_features,
    }
    rows = []
    for cohort in spec.probe:
        hospitals = _hospitals(spec, cohort, seed, data, folder / "probe" / cohort, study, preprocessing)
        for method, features in seen.items():
            table = linear_predictions(hospitals, sorted(hospitals.cohorts), partial(fit_linear, features=features))
            by_task = {task.name: [table] for task in hospitals.study.tasks}
            found = metric_rows(
                by_task, hospitals.study, hospitals.preprocessing, method=method, hospital=cohort, seed=seed
            )
            rows += [row | {"metric": f"{row['metric']}_probe"} for row in found]
    return rows


def _embeddings(learner: Learner) -> Features:
    """The embeddings of all tasks of a model side by side, ``[n, K O]``."""

    def features(cases: Sequence[CaseTensors], _: Study) -> Floats:
        out: Floats = np.concatenate(
            [part.double().cpu().numpy() for part in embed_cases(learner, cases).values()], axis=1
        )
        return out

    return features


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
