"""A small site folder, and ways to edit its tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from modaltune.data.bags import write_bag
from modaltune.data.cohort import Bag

IDS = [f"TCGA-AA-{number:04d}" for number in range(1, 9)]
LABELS = {"diagnosis": ("ductal", "lobular"), "stage": ("I", "II", "III", "IV")}
TOML = """name = "H1"
tasks = ["diagnosis", "stage", "survival"]
[paths]
cases = "cases.parquet"
expression = "expression.parquet"
slides = "slides.csv"
features = "features"
"""

Edit = Callable[[pd.DataFrame], pd.DataFrame | None]


def some_cases() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "case_id": IDS,
            "split": ["train"] * 5 + ["val"] + ["test"] * 2,
            "diagnosis": ["ductal", "lobular", None, "Ductal", "lobular", "ductal", "ductal", ""],
            "stage": ["I", "Stage IIA", "stage iiib", "IV", None, "II", "III", "I"],
            "time_months": [1.0, 2.5, np.nan, 4.0, 5.0, 6.0, 7.0, 8.0],
            "event": [0.0, 1.0, np.nan, 1.0, 0.0, 1.0, 0.0, 1.0],
            "age": [50.0, np.nan, 60.0, 70.0, 80.0, 90.0, 40.0, 30.0],
            "sex": ["F", "male", None, "m", "Female", "female", "male", "male"],
            "surname": "secret",
        }
    )


def some_expression() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    genes = pd.DataFrame(draw.normal(size=(6, 3)), columns=["TP53", "ESR1", "CDH1"])
    genes.insert(0, "case_id", IDS[5::-1])
    return genes


def write_small_site(folder: Path) -> Path:
    """Eight cases: six with expression, slides for the first four and the seventh, nothing for the eighth."""
    folder.mkdir()
    (folder / "site.toml").write_text(TOML)
    some_cases().to_parquet(folder / "cases.parquet")
    some_expression().to_parquet(folder / "expression.parquet")
    owners = [IDS[0], IDS[0], IDS[1], IDS[2], IDS[3], IDS[6]]
    slides = pd.DataFrame({"slide_id": [f"{case}-S{9 - row}" for row, case in enumerate(owners)], "case_id": owners})
    slides["file"] = slides["slide_id"] + ".h5"
    slides.to_csv(folder / "slides.csv", index=False)
    for row, file in enumerate(slides["file"]):
        features = np.full((2, 4), row, dtype=np.float32)
        bag = Bag(features=features, coords=np.zeros((2, 2), dtype=np.int64), patch_size_level0=256)
        write_bag(folder / "features" / file, bag, encoder="test")
    return folder


def edit(site: Path, table: str, change: Edit) -> None:
    path = site / table
    frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    changed = change(frame)
    frame = frame if changed is None else changed
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)


def put(column: str, row: int, value: object) -> Edit:
    """An edit that sets one cell (rows counted from 1)."""

    def change(frame: pd.DataFrame) -> None:
        frame[column] = frame[column].astype(object) if isinstance(value, str) else frame[column]
        frame.loc[row - 1, column] = value  # type: ignore[call-overload]
        if isinstance(value, str):
            frame[column] = frame[column].astype("string")

    return change
