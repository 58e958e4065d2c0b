"""How hard the synthetic cohort is, measured without any model of this project.

``python -m simulation.difficulty`` prints the table of docs/synthetic.md: an oracle that knows the latent factors, a
linear model on mean patches, genes and age over all hospitals, and the mean of one linear model a hospital.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from lifelines import CoxPHFitter
from lifelines.utils import concordance_index
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from simulation.synthetic import DEFAULT_CASES, DIAGNOSES, SyntheticHospital, draw_hospitals

COX_COMPONENTS = 12
MODALITIES = ("slides", "expression")

Floats = NDArray[np.float64]


def difficulty(seed: int = 0, cases: int = DEFAULT_CASES) -> dict[str, dict[str, float]]:
    """Score oracle and linear models on the test cases of all hospitals together.

    Args:
        seed: seed of the cohort.
        cases: its size.
    Returns:
        ``{"oracle", "linear", "linear slides", "linear expression", "linear local"}`` -> ``{"diagnosis", "stage"}``
        area under the ROC curve (stage: III-IV against I-II) and ``"survival"`` concordance; higher is better.
    """
    hospitals = draw_hospitals(seed, cases)
    everyone = list(hospitals.values())
    local = [_linear([hospital], everyone, MODALITIES) for hospital in everyone]
    return {
        "oracle": _oracle(everyone),
        "linear": _linear(everyone, everyone, MODALITIES),
        "linear slides": _linear(everyone, everyone, ("slides",)),
        "linear expression": _linear(everyone, everyone, ("expression",)),
        "linear local": {task: float(np.mean([scores[task] for scores in local])) for task in local[0]},
    }


def main(seeds: Sequence[int] = (0, 1, 2)) -> None:
    """Print mean and range over seeds."""
    runs = [difficulty(seed) for seed in seeds]
    table = Table(
        "model", "diagnosis AUC", "stage AUC", "survival C-index", title=f"synthetic cohort, seeds {list(seeds)}"
    )
    for model in runs[0]:
        scores = {task: [run[model][task] for run in runs] for task in runs[0][model]}
        table.add_row(model, *(f"{np.mean(v):.3f} ({min(v):.3f}-{max(v):.3f})" for v in scores.values()))
    Console().print(table)


def _oracle(hospitals: Sequence[SyntheticHospital]) -> dict[str, float]:
    tests = [hospital.cases["split"] == "test" for hospital in hospitals]
    cases = pd.concat([h.cases[test] for h, test in zip(hospitals, tests, strict=True)])
    truth = pd.concat([h.truth[test] for h, test in zip(hospitals, tests, strict=True)])
    return _scores(cases, {str(task): truth[task].to_numpy() for task in truth})


def _linear(
    fitted: Sequence[SyntheticHospital], tested: Sequence[SyntheticHospital], modalities: Sequence[str]
) -> dict[str, float]:
    cases, features = _stacked(fitted, ("train", "val"), modalities)
    test_cases, test_features = _stacked(tested, ("test",), modalities)
    risks = {}
    for task in ("diagnosis", "stage"):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        risks[task] = model.fit(features, _binary(cases, task)).decision_function(test_features)
    reduce = make_pipeline(StandardScaler(), PCA(COX_COMPONENTS, random_state=0))
    table = pd.DataFrame(reduce.fit_transform(features)).assign(
        time=cases["time_months"].to_numpy(), event=cases["event"].to_numpy()
    )
    cox = CoxPHFitter(penalizer=0.1).fit(table, "time", "event")
    risks["survival"] = cox.predict_log_partial_hazard(pd.DataFrame(reduce.transform(test_features))).to_numpy()
    return _scores(test_cases, risks)


def _stacked(
    hospitals: Sequence[SyntheticHospital], splits: Sequence[str], modalities: Sequence[str]
) -> tuple[pd.DataFrame, Floats]:
    cases = pd.concat([hospital.cases for hospital in hospitals])
    parts = [cases[["age"]].to_numpy(dtype=float)]
    if "expression" in modalities:
        parts.append(pd.concat([hospital.expression for hospital in hospitals]).to_numpy(dtype=float))
    if "slides" in modalities:
        slides = [pairs for hospital in hospitals for pairs in hospital.bags.values()]
        parts.append(np.stack([np.concatenate([bag.features for _, bag in pairs]).mean(axis=0) for pairs in slides]))
    chosen = cases["split"].isin(splits).to_numpy()
    return cases[chosen], np.concatenate(parts, axis=1)[chosen]


def _binary(cases: pd.DataFrame, task: str) -> NDArray[np.bool_]:
    positive = DIAGNOSES[1:] if task == "diagnosis" else ("III", "IV")
    return cases[task].isin(positive).to_numpy()


def _scores(cases: pd.DataFrame, risks: dict[str, Floats]) -> dict[str, float]:
    scores = {task: float(roc_auc_score(_binary(cases, task), risks[task])) for task in ("diagnosis", "stage")}
    concordance = concordance_index(cases["time_months"], -risks["survival"], cases["event"])
    return {**scores, "survival": float(concordance)}


if __name__ == "__main__":
    main()
