"""Prov-GigaPath's linear probe: the frozen slide encoder's vector of a case, logistic and Cox regression on top.

n cases, D width of the vector. Only cases with slides are fitted on.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from lifelines import CoxPHFitter
from lifelines.exceptions import ConvergenceError
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

from modaltune.data.batch import CaseTensors, collate
from modaltune.encoders.registry import slide_encoder
from modaltune.encoders.slide import Places, SlideEncoder
from modaltune.evaluation.metrics import Floats
from modaltune.federation.study import Study

COX_PENALTY = 0.1
_FEWEST_DEATHS = 5


def frozen_encoder(study: Study) -> SlideEncoder:
    """The slide encoder of a study as it was published."""
    spec = study.slides
    return slide_encoder(spec.encoder, in_width=spec.in_width, width=spec.width, depth=spec.depth, sha256=spec.sha256)


@torch.no_grad()
def slide_vectors(cases: Sequence[CaseTensors], encoder: SlideEncoder) -> Floats:
    """``[n, D]`` image vector of each case's bag; zeros for a case without slides."""
    rows = []
    for case in cases:
        if not case.patch_count:
            rows.append(torch.zeros(encoder.width))
            continue
        batch = collate([case])
        places = Places(batch.cells)
        tokens = encoder.with_cls(encoder.embed(batch.patches, batch.cells))
        rows.append(encoder.image(encoder.run_layers(tokens, 0, encoder.depth - 1, places), places)[0, 0])
    return torch.stack(rows).double().numpy() if rows else np.zeros((0, encoder.width))


def fit_linear_probe(
    train: Sequence[CaseTensors],
    survival: Sequence[tuple[float, bool] | None],
    test: Sequence[CaseTensors],
    study: Study,
    candidates: Mapping[str, Sequence[str]],
) -> dict[str, Floats]:
    """Fit one probe per task on training cases with slides and score test cases; see ``linear.fit_linear``."""
    encoder = frozen_encoder(study)
    pairs = [(case, outcome) for case, outcome in zip(train, survival, strict=True) if case.patch_count]
    if not pairs:
        return {}
    vectors, asked = slide_vectors([case for case, _ in pairs], encoder), slide_vectors(test, encoder)
    out: dict[str, Floats] = {}
    for task in study.tasks:
        if task.kind == "survival":
            scores = _cox(vectors, [outcome for _, outcome in pairs], asked)
        else:
            labels = [case.targets[task.name][0] if task.name in case.targets else None for case, _ in pairs]
            scores = _logistic(vectors, labels, asked, len(candidates[task.name]))
        if scores is not None:
            out[task.name] = scores
    return out


def _logistic(vectors: Floats, labels: Sequence[int | None], asked: Floats, candidates: int) -> Floats | None:
    inside = np.array([label is not None for label in labels])
    known = np.array([label for label in labels if label is not None])
    if len(np.unique(known)) < 2:
        return None
    model = OneVsRestClassifier(LogisticRegression(solver="liblinear", max_iter=200, random_state=0))
    model.fit(vectors[inside], known)
    out = np.zeros((len(asked), candidates))
    out[:, model.classes_] = model.predict_proba(asked)
    return out


def _cox(vectors: Floats, survival: Sequence[tuple[float, bool] | None], asked: Floats) -> Floats | None:
    inside = np.array([outcome is not None for outcome in survival])
    outcomes = [outcome for outcome in survival if outcome is not None]
    if sum(event for _, event in outcomes) < _FEWEST_DEATHS:
        return None
    scaler = StandardScaler().fit(vectors[inside])
    kept = scaler.var_ > 0
    frame = pd.DataFrame(scaler.transform(vectors[inside])[:, kept])
    frame["months"], frame["event"] = zip(*outcomes, strict=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = CoxPHFitter(penalizer=COX_PENALTY).fit(frame, "months", "event")
    except (ConvergenceError, np.linalg.LinAlgError):
        return None
    risk: Floats = model.predict_log_partial_hazard(pd.DataFrame(scaler.transform(asked)[:, kept])).to_numpy()
    return risk[:, None]
