from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import ConfigError
from modaltune.federation.study import Study
from modaltune.storage import write_json, write_text
from simulation.finished_runs import paired_rows

LABELS = ("alpha", "beta", "gamma")


def a_run(folder: Path, study: Study, preprocessing: Preprocessing, right: float, first: int = 0) -> Path:
    """Two seeds of ninety cases each, of which the share ``right`` is told; ``first`` turns to other patients."""
    tables = []
    for seed in (3, 4):
        labels = [LABELS[(number + first) % 3] for number in range(90)]
        guesses = [label if n < 90 * right else "alpha" for n, label in enumerate(labels)]
        chances = [np.array([0.8 if guess == name else 0.1 for name in LABELS]) for guess in guesses]
        about = {"hospital": "H1", "row": range(90), "task": "diagnosis", "label": labels, "probabilities": chances}
        nothing = {"time_months": np.nan, "event": np.nan, "risk": np.nan}
        tables.append(pd.DataFrame(about).assign(method="federated", model="", seed=seed, **nothing))
    for path in (folder, folder / "seeds" / "4"):
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / "study.json", study.to_json())
        write_text(path / "preprocessing.json", preprocessing.to_json())
    pd.concat(tables, ignore_index=True).to_parquet(folder / "predictions.parquet")
    write_json(folder / "summary.json", {"seeds": [3, 4]})
    return folder


def test_two_runs_are_compared_on_the_same_patients(
    tmp_path: Path, tiny_study: Study, tiny_preprocessing: Preprocessing
) -> None:
    better = a_run(tmp_path / "better", tiny_study, tiny_preprocessing, 0.9)
    worse = a_run(tmp_path / "worse", tiny_study, tiny_preprocessing, 0.6)
    rows = {row["metric"]: row for row in paired_rows(better, worse, "federated")}
    assert set(rows) == {"auc", "balanced_accuracy"}
    assert rows["auc"]["low"] > 0
    assert (rows["auc"]["n"], rows["auc"]["seeds"], rows["auc"]["a"]) == (90, [3, 4], str(better))
    other = {row["metric"]: row for row in paired_rows(worse, better, "federated")}
    assert other["auc"]["difference"] == pytest.approx(-rows["auc"]["difference"])


def test_runs_of_other_patients_or_without_the_method_are_refused(
    tmp_path: Path, tiny_study: Study, tiny_preprocessing: Preprocessing
) -> None:
    one = a_run(tmp_path / "one", tiny_study, tiny_preprocessing, 0.9)
    strangers = a_run(tmp_path / "strangers", tiny_study, tiny_preprocessing, 0.9, first=1)
    with pytest.raises(ConfigError, match="no seed with the same test cases in both"):
        paired_rows(one, strangers, "federated")
    with pytest.raises(ConfigError, match="no predictions of pooled; choose another --method"):
        paired_rows(one, one, "pooled")
    with pytest.raises(ConfigError, match=r"no summary.json with predictions.parquet"):
        paired_rows(one, tmp_path, "federated")
