"""The linear sanity row: logistic and Cox regression with ridge on the same inputs as the model.

n cases, F features: standardised genes, patches (mean over the bag, or row by row when rows mean the same thing in
every case) and clinical columns; a missing modality is its mean, zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from lifelines import CoxPHFitter
from lifelines.exceptions import ConvergenceError
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from modaltune.data.batch import CaseTensors
from modaltune.evaluation.metrics import Floats
from modaltune.federation.study import Study
from modaltune.federation.task import TaskSpec

RIDGE = 0.01  # inverse strength of the logistic penalty, on standardised features
COX_PENALTY = 0.1
COX_COMPONENTS = 32
_FEWEST_DEATHS = 5


def linear_features(cases: Sequence[CaseTensors], study: Study) -> Floats:
    """``[n, F]`` float64."""
    by_row = study.slides.standardise == "position"
    width = study.slides.in_width * (study.slides.rows if by_row else 1)
    rows = []
    for case in (case.loaded() for case in cases):
        patches = np.zeros(width)
        if len(case.patches):
            patches = case.patches.numpy().reshape(-1) if by_row else case.patches.numpy().mean(axis=0)
        rows.append(np.concatenate([case.expression.numpy(), patches, case.clinical.numpy()]))
    return np.asarray(rows, dtype=np.float64)


def fit_linear(
    train: Sequence[CaseTensors],
    survival: Mapping[str, Sequence[tuple[float, bool] | None]],
    test: Sequence[CaseTensors],
    study: Study,
    candidates: Mapping[str, Sequence[str]],
) -> dict[str, Floats]:
    """Fit one linear model per task on training cases and score test cases.

    Args:
        train, test: prepared cases.
        survival: task -> (months, event) of each training case, None when unlabelled.
        candidates: candidate labels per task.
    Returns:
        task -> ``[n, C]`` probabilities over the candidates, or for survival ``[n, 1]`` risk (higher = worse). A task
        that cannot be fitted (one class, too few deaths) is absent.
    """
    scaler = StandardScaler()
    known = scaler.fit_transform(linear_features(train, study))
    asked = scaler.transform(linear_features(test, study))
    out: dict[str, Floats] = {}
    for task in study.tasks:
        if task.kind == "survival":
            scores = _cox(known, survival[task.name], asked)
        else:
            scores = _logistic(known, train, task, len(candidates[task.name]), asked)
        if scores is not None:
            out[task.name] = scores
    return out


def _logistic(
    known: Floats, train: Sequence[CaseTensors], task: TaskSpec, candidates: int, asked: Floats
) -> Floats | None:
    inside = np.array([task.name in case.targets for case in train])
    labels = np.array([case.targets[task.name][0] for case in train if task.name in case.targets])
    if len(np.unique(labels)) < 2:
        return None
    model = LogisticRegression(C=RIDGE, max_iter=2000).fit(known[inside], labels)
    out = np.zeros((len(asked), candidates))
    out[:, model.classes_] = model.predict_proba(asked)
    return out


def _cox(known: Floats, survival: Sequence[tuple[float, bool] | None], asked: Floats) -> Floats | None:
    inside = np.array([outcome is not None for outcome in survival])
    outcomes = [outcome for outcome in survival if outcome is not None]
    if sum(event for _, event in outcomes) < _FEWEST_DEATHS:
        return None
    count = min(COX_COMPONENTS, int(inside.sum()) - 1, known.shape[1])
    components = PCA(count, random_state=0).fit(known[inside])
    variance = components.explained_variance_
    kept = variance > 1e-9 * variance[0]  # columns that depend on others leave components without variance
    frame = pd.DataFrame(components.transform(known[inside])[:, kept] / variance[0] ** 0.5)
    frame["months"], frame["event"] = zip(*outcomes, strict=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = CoxPHFitter(penalizer=COX_PENALTY).fit(frame, "months", "event")
    except (ConvergenceError, np.linalg.LinAlgError):
        return None
    rows = pd.DataFrame(components.transform(asked)[:, kept] / variance[0] ** 0.5)
    risk: Floats = model.predict_log_partial_hazard(rows).to_numpy()
    return risk[:, None]
