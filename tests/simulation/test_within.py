"""Scores among cases of one class: what is left when another task's classes are told apart and nothing else."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import ConfigError
from modaltune.federation.study import Study
from modaltune.seeds import numpy_generator
from modaltune.storage import write_json, write_text
from simulation.within import within_rows, within_table

CASES = 60


def cases(seed: int) -> pd.DataFrame:
    """Two classes, the second with a worse outlook; the risk and the chance of a late stage know the class only."""
    draw = numpy_generator(seed, "within")
    worse = np.arange(CASES) % 2
    return pd.DataFrame(
        {
            "hospital": np.where(np.arange(CASES) < 20, "H1", "H2"),
            "row": np.arange(CASES),
            "class": np.where(worse == 1, "beta", "alpha"),
            "stage": draw.permutation(["I", "II", "III", "IV"] * (CASES // 4)),
            "time_months": draw.exponential(np.where(worse == 1, 5.0, 50.0)),
            "event": draw.random(CASES) < 0.7,
            "risk": worse + 0.1 * draw.normal(size=CASES),
        }
    )


def predictions(seed: int) -> pd.DataFrame:
    found = cases(seed)
    sure = np.eye(3)[(found["class"] == "beta").astype(int)]
    late = np.stack([[1 - risk, 0, 0, risk] for risk in np.clip(0.3 + 0.4 * found["risk"], 0, 1)])
    place = found[["hospital", "row"]]
    diagnosis = place.assign(task="diagnosis", label=found["class"], probabilities=list(sure))
    stage = place.assign(task="stage", label=found["stage"], probabilities=list(late))
    survival = place.assign(task="survival", **{name: found[name] for name in ("time_months", "event", "risk")})
    return pd.concat([diagnosis, stage, survival], ignore_index=True).assign(method="federated", seed=seed, model="")


@pytest.fixture
def a_run(tmp_path: Path, tiny_study: Study, tiny_preprocessing: Preprocessing) -> Path:
    for folder in (tmp_path, tmp_path / "seeds" / "4"):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "study.json", tiny_study.to_json())
        write_text(folder / "preprocessing.json", tiny_preprocessing.to_json())
    pd.concat([predictions(3), predictions(4)], ignore_index=True).to_parquet(tmp_path / "predictions.parquet")
    write_json(tmp_path / "summary.json", {"seeds": [3, 4], "sites": {}})
    return tmp_path


def concordance_by_hand(found: pd.DataFrame) -> float:
    """Pairs of one class whose first died before the second's time."""
    outcomes = [
        1.0 if one.risk > other.risk else 0.5 if one.risk == other.risk else 0.0
        for one, other in permutations(found.to_records(), 2)
        if one["class"] == other["class"] and one.event and one.time_months < other.time_months
    ]
    return float(np.mean(outcomes))


def area_by_hand(found: pd.DataFrame) -> float:
    """Areas of the classes, weighed by their pairs of a late and an early stage."""
    areas, pairs = [], []
    for _, inside in found.groupby("class"):
        late = inside["stage"].isin(["III", "IV"])
        areas.append(roc_auc_score(late, inside["risk"]))
        pairs.append(late.sum() * (~late).sum())
    return float(np.average(areas, weights=pairs))


def test_only_pairs_of_the_same_class_count(a_run: Path) -> None:
    rows = {row.task: row for row in within_rows(a_run, "diagnosis")}
    assert rows.keys() == {"stage", "survival"}
    by_hand = {"stage": area_by_hand, "survival": concordance_by_hand}
    for task, row in rows.items():
        assert row.within.value == pytest.approx(np.mean([by_hand[task](cases(seed)) for seed in (3, 4)]))
        assert (row.seeds, row.within.n, row.everyone.n) == (2, CASES, CASES)
        low, value, high = (getattr(row.within, name) for name in ("low", "value", "high"))
        assert low < value < high


def test_a_risk_that_knows_the_class_only_is_at_chance_within_it(a_run: Path) -> None:
    (row,) = (row for row in within_rows(a_run, "diagnosis") if row.task == "survival")
    assert row.everyone.value is not None
    assert row.within.value is not None
    assert row.everyone.value > 0.65
    assert 0.4 < row.within.value < 0.6


def test_any_task_with_classes_may_be_held_fixed(a_run: Path) -> None:
    assert {row.task for row in within_rows(a_run, "stage")} == {"survival"}  # the diagnosis has three classes


@pytest.mark.parametrize("task", ["survival", "grade"])
def test_a_task_without_classes_is_refused_with_the_ones_that_have_some(a_run: Path, task: str) -> None:
    with pytest.raises(ConfigError, match=f"--task {task}.*choose from diagnosis, stage"):
        within_rows(a_run, task)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a run of modaltune-simulate"):
        within_rows(tmp_path, "diagnosis")


def test_the_table_names_what_is_held_fixed(a_run: Path) -> None:
    console = Console(record=True, width=140)
    console.print(within_table(within_rows(a_run, "diagnosis"), "diagnosis"))
    text = console.export_text()
    assert all(word in text for word in ("Within each diagnosis", "survival, c_index", "stage, auc", "federated"))
