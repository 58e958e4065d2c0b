"""A small run folder of invented data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

HOSPITALS = ("H1", "H2", "H3")
METHODS = ("local", "federated", "pooled", "linear_local", "linear", "separate_heads", "abmil/federated")
METRICS = {"diagnosis": ("auc", "balanced_accuracy"), "stage": ("auc",), "survival": ("c_index",)}
CANDIDATES = {"diagnosis": ["ductal", "lobular"], "stage": ["I", "II", "III"], "survival": ["early", "late"]}
KINDS = {"diagnosis": "nominal", "stage": "ordinal", "survival": "survival"}
VALUES = {"local": 0.70, "federated": 0.85, "pooled": 0.90}


def metrics_rows(seeds: Sequence[int] = (0,), hospitals: Sequence[str] = HOSPITALS) -> list[dict[str, Any]]:
    """A row for every method, task, metric, hospital and seed; H3 has no defined survival score."""
    rows = []
    for seed in seeds:
        for method in METHODS:
            for task, metrics in METRICS.items():
                for metric in metrics:
                    for hospital in ("all", *hospitals):
                        value = VALUES.get(method, 0.65) + 0.01 * seed
                        defined = (task, hospital) != ("survival", hospitals[-1])
                        rows.append(
                            {
                                "method": method,
                                "task": task,
                                "metric": metric,
                                "hospital": hospital,
                                "value": value if defined else None,
                                "low": value - 0.06 if defined else None,
                                "high": value + 0.04 if defined else None,
                                "n": 60 if hospital == "all" else 20,
                                "seed": seed,
                            }
                        )
    return rows


def comparison_rows(seeds: Sequence[int] = (0,), hospitals: Sequence[str] = HOSPITALS) -> list[dict[str, Any]]:
    """Federated against every other method on everybody's cases, and against local at each hospital but the last."""
    rows = []
    for method in METHODS:
        for task, metrics in METRICS.items():
            for hospital in ("all", *(hospitals[:-1] if method == "local" else ())):
                gain = VALUES["federated"] - VALUES.get(method, 0.65)
                row = {"a": "federated", "b": method, "task": task, "metric": metrics[0], "hospital": hospital}
                found = {
                    "difference": gain,
                    "low": gain - 0.1,
                    "high": gain + 0.1,
                    "p": 0.004 if gain > 0.1 else 0.3,
                }
                rows.append(row | found | {"n": 60 if hospital == "all" else 20, "seeds": list(seeds)})
    return [row for row in rows if row["b"] != "federated"]


def round_rows(hospitals: Sequence[str] = HOSPITALS) -> list[dict[str, Any]]:
    """A preprocessing round and four training rounds; the last hospital misses one and is refused in another."""
    last = hospitals[-1]
    rows: list[dict[str, Any]] = [
        {"round": 0, "phase": "preprocess", "status": "OK", "contributors": list(hospitals), "bytes_down": 2000}
    ]
    for number in range(1, 5):
        missing = [last] if number == 2 else []
        refused = {last: "norm above bound"} if number == 3 else {}
        present = [name for name in hospitals if name not in missing and name not in refused]
        rows.append(
            {
                "round": number,
                "phase": "train",
                "status": "DEGRADED" if missing or refused else "OK",
                "seconds": 1.0,
                "contributors": present,
                "missing": missing,
                "refused": refused,
                "loss": 1 / number,
                "losses": dict.fromkeys(present, 1 / number),
                "val_loss": None if number == 1 else 1.1 / number,
                "bytes_down": 3_000_000,
                "bytes_up": 1_000_000 * len(present),
                "keys": {"gene_encoder": {name: 40 if name in present else 0 for name in hospitals}},
            }
        )
    return rows


def prediction_rows(seeds: Sequence[int] = (0,), hospitals: Sequence[str] = HOSPITALS) -> pd.DataFrame:
    """Predictions of three methods on twenty cases a hospital; probabilities point to the right label more or less."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in seeds:
        for method in ("local", "federated", "pooled"):
            for task, candidates in CANDIDATES.items():
                for hospital in np.repeat(hospitals, 20):
                    index = int(rng.integers(len(candidates)))
                    weights = rng.random(len(candidates)) + np.eye(len(candidates))[index]
                    time = float(rng.exponential(30)) + 1
                    rows.append(
                        {
                            "method": method,
                            "seed": seed,
                            "model": hospitals[0] if method == "local" else "",
                            "hospital": str(hospital),
                            "task": task,
                            "label": None if task == "survival" else candidates[index],
                            "probabilities": (weights / weights.sum()).tolist(),
                            "time_months": time if task == "survival" else None,
                            "event": float(rng.random() < 0.6) if task == "survival" else None,
                            "risk": float(rng.normal() - 0.03 * time) if task == "survival" else None,
                        }
                    )
    return pd.DataFrame(rows)


def embedding_rows(hospitals: Sequence[str] = HOSPITALS) -> pd.DataFrame:
    """Twenty points a hospital; some have no stage."""
    rng = np.random.default_rng(1)
    count = 20 * len(hospitals)
    return pd.DataFrame(
        {
            "seed": 0,
            "hospital": np.repeat(hospitals, 20),
            "x": rng.normal(size=count),
            "y": rng.normal(size=count),
            "diagnosis": rng.choice(CANDIDATES["diagnosis"], count),
            "stage": [None if i % 3 == 0 else CANDIDATES["stage"][i % 3] for i in range(count)],
            "survival": rng.choice(["died", "censored"], count),
        }
    )


def write_run(
    folder: Path,
    *,
    seeds: Sequence[int] = (0,),
    hospitals: Sequence[str] = HOSPITALS,
    cases: bool = True,
    summary: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run folder.

    Args:
        folder: where; it is created.
        seeds: seeds of the metrics.
        hospitals: names of the hospitals.
        cases: whether single cases are there, as in a simulation.
        summary: changes to ``summary.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [
        {"name": name, "kind": kind, "positive": ["III"] if name == "stage" else []} for name, kind in KINDS.items()
    ]
    study = {
        "name": "invented",
        "seed": 0,
        "tasks": tasks,
        "roster": list(hospitals),
        "training": {"rounds": 4},
        "privacy": {"min_cell": 5, "min_contributors": 2},
    }
    site = {
        "cases": 100,
        "train": 60,
        "val": 20,
        "test": 20,
        "tasks": list(KINDS),
        "modalities": ["slides", "genomics"],
    }
    said = {
        "title": "Invented run",
        "status": "OK",
        "seeds": list(seeds),
        "sites": dict.fromkeys(hospitals[:-1], site) | {hospitals[-1]: site | {"modalities": ["slides"]}},
        "seconds": 75.0,
        "versions": {"torch": "2.13.0"},
        "digest": "ab" * 32,
        "budget": {"steps": 1234},
        "notes": ["A note of this run."],
        "risk_cuts": {"survival": [-1.2, -0.4]},
    }
    _dump(folder / "study.json", study)
    spaces = {
        name: {"candidates": c, "bin_edges": [40.0] if name == "survival" else []} for name, c in CANDIDATES.items()
    }
    _dump(folder / "preprocessing.json", {"tasks": spaces, "suppressed": {"expression": [hospitals[-1]]}})
    _dump(folder / "metrics.json", metrics_rows(seeds, hospitals))
    _dump(folder / "summary.json", said | dict(summary or {}))
    lines = "".join(json.dumps(row) + "\n" for row in round_rows(hospitals))
    (folder / "rounds.jsonl").write_text(lines, encoding="utf-8")
    if cases:
        _dump(folder / "comparisons.json", comparison_rows(seeds, hospitals))
        prediction_rows(seeds, hospitals).to_parquet(folder / "predictions.parquet")
        embedding_rows(hospitals).to_parquet(folder / "embeddings.parquet")
    return folder


def _dump(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
