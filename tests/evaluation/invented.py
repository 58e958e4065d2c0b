"""Prediction tables of cases that were never there."""

from __future__ import annotations

import numpy as np
import pandas as pd

from modaltune.data.preprocessing import Preprocessing
from modaltune.evaluation.predictions import COLUMNS
from modaltune.federation.study import Study


def predictions(study: Study, preprocessing: Preprocessing, cases: int, seed: int) -> pd.DataFrame:
    """Cases of three hospitals, some empty handed, with a model that is right more often than not."""
    draw = np.random.default_rng(seed)
    parts = []
    for spec in study.tasks:
        names = np.array(preprocessing.tasks[spec.name].candidates)
        index = draw.integers(len(names), size=cases)
        chances = draw.dirichlet(np.ones(len(names)), size=cases) + 0.4 * np.eye(len(names))[index]
        chances /= chances.sum(axis=1, keepdims=True)
        survival = spec.kind == "survival"
        months = draw.exponential(30, cases) + 1
        part = pd.DataFrame({"hospital": draw.choice(["H1", "H2", "H3"], cases), "task": spec.name})
        part["row"] = np.arange(cases)
        part["label"] = None if survival else names[index]
        part["probabilities"] = list(chances)
        part["time_months"] = months if survival else np.nan
        part["event"] = (draw.random(cases) < 0.6).astype(float) if survival else np.nan
        part["risk"] = draw.normal(size=cases).round(1) - 0.05 * months if survival else np.nan
        parts.append(part)
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)]
