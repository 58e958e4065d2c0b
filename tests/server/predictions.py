"""Predictions of invented survival cases at two hospitals, by a federated model and by each hospital's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from modaltune.data.preprocessing import Preprocessing
from modaltune.evaluation.predictions import metric_rows
from modaltune.federation.study import Study

CASES = 120


def two_sites(federated: float, local: float, sites: Sequence[str] = ("H1", "H2")) -> pd.DataFrame:
    """Skill 0 = risks are noise, 1 = risks follow the time of death."""
    parts = []
    for number, site in enumerate(sites):
        draw = np.random.default_rng(number)
        months = draw.exponential(20, CASES)
        event = (draw.random(CASES) < 0.6).astype(float)
        for method, skill, model in (("federated", federated, ""), ("local", local, site)):
            risk = -skill * np.log(months) + (1 - skill) * draw.normal(size=CASES)
            columns = {"row": range(CASES), "time_months": months, "event": event, "risk": risk}
            about = {"method": method, "model": model, "hospital": site, "task": "survival"}
            parts.append(
                pd.DataFrame(
                    {**about, "hospital": site, "task": "survival", "label": None, "probabilities": None, **columns}
                )
            )
    return pd.concat(parts, ignore_index=True).assign(seed=0)


def rows_of(study: Study, preprocessing: Preprocessing, predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Metric rows of the federated model, at each hospital and at all."""
    table, rows = predictions[predictions["method"] == "federated"], []
    for hospital in ("all", *sorted(set(table["hospital"]))):
        part = table if hospital == "all" else table[table["hospital"] == hospital]
        about = {"method": "federated", "hospital": hospital, "seed": 0}
        rows += metric_rows({"survival": [part]}, study, preprocessing, **about)
    return rows
