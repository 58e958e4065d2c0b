"""A site folder in which all is well, and ways of breaking it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from tests.data import small_site

CASES, WIDTH = 48, 4
IDS = [f"TCGA-AA-{number:04d}" for number in range(CASES)]
GENES = ["TP53", "ESR1", "CDH1", "GATA3", "PIK3CA", "ERBB2", "MYC", "RB1"]
TOML = f"""{small_site.TOML}modalities = {{lab = "lab.csv"}}
[policy]
min_cell = 2
"""
Break = Callable[[Path], None]


def table(file: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Break:
    """Change a table."""

    def apply(site: Path) -> None:
        path = site / file
        if path.suffix == ".csv":
            change(pd.read_csv(path)).to_csv(path, index=False)
        else:
            change(pd.read_parquet(path)).to_parquet(path)

    return apply


def put(file: str, column: str, row: int, value: object) -> Break:
    """Set one cell; rows count from 1."""

    def change(found: pd.DataFrame) -> pd.DataFrame:
        values = found[column].astype(object)
        values.iloc[row - 1] = value
        return found.assign(**{column: values.astype("string") if isinstance(value, str) else values.infer_objects()})

    return table(file, change)


def column(file: str, name: str, make: Callable[[pd.DataFrame], Any]) -> Break:
    """Replace a column."""
    return table(file, lambda found: found.assign(**{name: make(found)}))


def drop(file: str, name: str) -> Break:
    return table(file, lambda found: found.drop(columns=name))


def toml(old: str, new: str) -> Break:
    def apply(site: Path) -> None:
        text = (site / "site.toml").read_text()
        assert old in text
        (site / "site.toml").write_text(text.replace(old, new))

    return apply


def write(file: str, content: str) -> Break:
    return lambda site: [None, (site / file).write_text(content)][0]


def remove(file: str) -> Break:
    return lambda site: (site / file).unlink()


def bag(row: int, change: Callable[[h5py.File], None]) -> Break:
    """Change the feature file of a row of the slides table."""

    def apply(site: Path) -> None:
        with h5py.File(site / "features" / f"{IDS[row - 1]}-01Z-00-DX1.h5", "r+") as file:
            change(file)

    return apply


def features(make: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[[h5py.File], None]:
    """Replace the features, keeping their attributes."""

    def change(file: h5py.File) -> None:
        old = dict(file["features"].attrs)
        values = make(file["features"][:])
        del file["features"]
        file.create_dataset("features", data=values).attrs.update(old)

    return change


def attribute(dataset: str, name: str, value: object) -> Callable[[h5py.File], None]:
    """Set an attribute, or take it away with None."""

    def change(file: h5py.File) -> None:
        if value is None:
            del file[dataset].attrs[name]
        else:
            file[dataset].attrs[name] = value

    return change


def every_bag(change: Callable[[h5py.File], None]) -> Break:
    return lambda site: [None, *(bag(row, change)(site) for row in range(1, 13))][0]


def genes(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Break:
    """Change the numbers of the expression table."""

    def apply(found: pd.DataFrame) -> pd.DataFrame:
        changed = change(found.drop(columns="case_id"))
        return changed.assign(case_id=found["case_id"])

    return table("expression.parquet", apply)


def both(*breaks: Break) -> Break:
    return lambda site: [None, *(each(site) for each in breaks)][0]


def nan_at(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    values[3, 1] = np.nan
    return values


def transposed(found: pd.DataFrame) -> pd.DataFrame:
    return found.set_index("case_id").T.rename_axis("gene").reset_index()


def sample_ids(found: pd.DataFrame) -> pd.Series:
    """Two samples of each patient as if they were two patients."""
    return pd.Series([f"{IDS[row // 2]}-0{1 + 2 * (row % 2)}" for row in range(len(found))])


CASES_FILE, EXPRESSION, SLIDES, LAB = "cases.parquet", "expression.parquet", "slides.csv", "lab.csv"
BROKEN: dict[str, tuple[Break, str, str, str]] = {
    # what is wrong: (how, the check that says so, its status, part of the finding)
    "site.toml is absent": (remove("site.toml"), "site.toml", "error", "site.toml is missing"),
    "site.toml is not TOML": (write("site.toml", "name = "), "site.toml", "error", "not valid TOML"),
    "unknown key": (toml("[policy]", "[polcy]"), "site.toml", "error", "unknown key 'polcy'"),
    "a GPU that is not there": (
        toml("[policy]", '[compute]\ndevice = "cuda:99"\n\n[policy]'),
        "gpu",
        "error",
        "device 'cuda:99': this machine has",
    ),
    "no task": (toml('["diagnosis", "stage", "survival"]', "[]"), "site.toml", "error", "tasks"),
    "not in the roster": (toml('name = "H1"', 'name = "H7"'), "site.toml", "error", "not in the roster"),
    "a task of no study": (toml('"stage"', '"histology"'), "site.toml", "warning", "does not use histology"),
    "cases absent": (remove(CASES_FILE), "cases", "error", "no such file"),
    "cases not a table": (write(CASES_FILE, "x"), "cases", "error", "not a readable parquet table"),
    "case_id absent": (drop(CASES_FILE, "case_id"), "cases", "error", "column 'case_id' is missing"),
    "case_id blank": (put(CASES_FILE, "case_id", 7, ""), "cases", "error", "blank in 1 row (first: row 7)"),
    "case_id twice": (put(CASES_FILE, "case_id", 7, IDS[0]), "cases", "error", "1 row (first: row 7)"),
    "case_id in other letters": (put(CASES_FILE, "case_id", 7, IDS[0].lower()), "cases", "error", "first: row 1"),
    "mapped column absent": (toml("[policy]", '[columns]\nage = "alter"\n[policy]'), "cases", "error", "'alter'"),
    "unknown split": (put(CASES_FILE, "split", 3, "holdout"), "split", "error", "1 row (first: row 3)"),
    "no training case": (column(CASES_FILE, "split", lambda _: "test"), "split", "error", "no training case"),
    "no test case": (column(CASES_FILE, "split", lambda _: "train"), "split", "warning", "no case in val and test"),
    "a patient in two splits": (column(CASES_FILE, "case_id", sample_ids), "split", "error", "one patient in several"),
    "an unknown diagnosis": (put(CASES_FILE, "diagnosis", 9, "8500/3"), "labels", "error", "1 local code in 1 row"),
    "an identifier as label": (put(CASES_FILE, "diagnosis", 9, IDS[8]), "labels", "error", "(first: row 9)"),
    "no label": (column(CASES_FILE, "diagnosis", lambda _: None), "labels", "error", "no case has a label"),
    "label column absent": (drop(CASES_FILE, "stage"), "labels", "error", "needs column 'stage'"),
    "mapped to nothing known": (
        toml("[policy]", '[labels.diagnosis]\n"1" = "carcinoma"\n[policy]'),
        "labels",
        "error",
        "maps to 1 values",
    ),
    "event is 2": (put(CASES_FILE, "event", 5, 2.0), "survival", "error", "neither 0 nor 1 in 1 row (first: row 5)"),
    "time is 0": (put(CASES_FILE, "time_months", 5, 0.0), "survival", "error", "not above 0 in 1 row (first: row 5)"),
    "time is text": (put(CASES_FILE, "time_months", 5, "long"), "survival", "error", "not a number in 1 row"),
    "time without event": (put(CASES_FILE, "event", 5, None), "survival", "error", "'event' is blank in 1 row"),
    "event turned round": (column(CASES_FILE, "event", lambda t: 1 - t["event"]), "survival", "warning", "longer"),
    "nobody died": (column(CASES_FILE, "event", lambda _: 0.0), "survival", "warning", "no case has event = 1"),
    "everybody died": (column(CASES_FILE, "event", lambda _: 1.0), "survival", "warning", "every case has event = 1"),
    "time in days": (
        column(CASES_FILE, "time_months", lambda t: 30 * t["time_months"]),
        "survival",
        "error",
        "above 720",
    ),
    "time in years": (column(CASES_FILE, "time_months", lambda t: t["time_months"] / 12), "survival", "warning", "12"),
    "age in days": (
        put(CASES_FILE, "age", 4, 20000.0),
        "clinical",
        "error",
        "outside 0 to 120 in 1 row (first: row 4)",
    ),
    "age scaled": (column(CASES_FILE, "age", lambda t: t["age"] / 100), "clinical", "warning", "between 0 and 1"),
    "age absent": (drop(CASES_FILE, "age"), "clinical", "warning", "no column 'age'"),
    "sex coded": (
        put(CASES_FILE, "sex", 4, "2"),
        "clinical",
        "warning",
        "neither female nor male in 1 row (first: row 4)",
    ),
    "a small class": (toml("min_cell = 2", "min_cell = 10"), "counts", "warning", "<10"),
    "expression absent": (remove(EXPRESSION), "expression", "error", "no such file"),
    "expression has text": (put(EXPRESSION, "TP53", 2, "NA"), "expression", "error", "not numeric (first: column 2)"),
    "expression has NaN": (put(EXPRESSION, "TP53", 2, np.nan), "expression", "error", "(first: row 2, column 2)"),
    "genes x cases": (table(EXPRESSION, transposed), "expression", "error", "does not say its unit"),
    "expression without cases": (drop(EXPRESSION, "case_id"), "expression", "error", "column 'case_id' is missing"),
    "one sample twice": (
        table(EXPRESSION, lambda t: t.assign(**{g: t[g].where(t.index != 5, t[g][4]) for g in GENES})),
        "expression",
        "warning",
        "same measurements in 2 rows (first: row 5)",
    ),
    "a flat gene": (column(EXPRESSION, "MYC", lambda _: 3.0), "expression", "warning", "1 of 8 genes"),
    "counts": (genes(lambda t: (2**t).round()), "units", "warning", "raw counts"),
    "no logarithm": (genes(lambda t: 2**t), "units", "warning", "without a logarithm"),
    "z-scores": (genes(lambda t: (t - t.mean()) / t.std()), "units", "warning", "z-scores"),
    "ranks": (genes(lambda t: t.rank(pct=True)), "units", "warning", "between 0 and 1"),
    "Ensembl names": (
        table(EXPRESSION, lambda t: t.rename(columns={"TP53": "ENSG00000141510.18"})),
        "genes",
        "warning",
        "1 of 8 genes are Ensembl",
    ),
    "dates for genes": (table(EXPRESSION, lambda t: t.rename(columns={"TP53": "1-Mar"})), "genes", "warning", "dates"),
    "a thin gene set": (table(EXPRESSION, lambda t: t.drop(columns=GENES[:3])), "genes", "warning", "first FIRST"),
    "other genes": (table(EXPRESSION, lambda t: t.rename(columns=str.lower)), "genes", "error", "no set has 2 genes"),
    "a modality absent": (remove(LAB), "modalities", "error", "no such file"),
    "a modality with a gap": (put(LAB, "ldh", 3, None), "modalities", "error", "NaN"),
    "a modality in a large unit": (
        column(LAB, "ldh", lambda found: found["ldh"] * 1e-12),
        "modalities",
        "warning",
        "1 measurements spread by less than 1e-06 and count as constant, first ldh",
    ),
    "a modality of no study": (lambda _: None, "modalities", "warning", "does not use it"),
    "slides absent": (remove(SLIDES), "slides", "error", "no such file"),
    "slides without owner": (drop(SLIDES, "case_id"), "slides", "error", "column 'case_id' is missing"),
    "a slide twice": (put(SLIDES, "slide_id", 2, f"{IDS[0]}-01Z-00-DX1"), "slides", "error", "(first: row 2)"),
    "features folder absent": (toml('"features"', '"bags"'), "slides", "error", "is not a folder"),
    "a feature file absent": (remove(f"features/{IDS[3]}-01Z-00-DX1.h5"), "slides", "error", "1 row (first: row 4)"),
    "a file for two slides": (
        put(SLIDES, "file", 2, f"{IDS[0]}-01Z-00-DX1.h5"),
        "slides",
        "error",
        "2 rows (first: row 1)",
    ),
    "a file of no slide": (
        table(SLIDES, lambda t: t.iloc[1:]),
        "slides",
        "warning",
        "1 feature files in features/ belong to no slide",
    ),
    "a truncated file": (
        lambda site: (site / f"features/{IDS[2]}-01Z-00-DX1.h5").write_bytes(b"\x89HDF"),
        "bags",
        "error",
        "file of row 3",
    ),
    "NaN in features": (bag(3, features(nan_at)), "bags", "error", "file of row 3: 1 of 5 rows"),
    "another width": (bag(3, features(lambda v: v[:, :3])), "bags", "error", "features per patch differs: 4"),
    "another encoder": (bag(3, attribute("features", "encoder", "uni")), "bags", "error", "patch encoder differs"),
    "another magnification": (
        both(bag(3, attribute("coords", "target_magnification", 10)), bag(3, attribute("coords", "patch_size", 128))),
        "bags",
        "error",
        "micrometres per pixel differs: 0.5 in most files, another in 1 row (first: row 3)",
    ),
    "wrong patch size at level 0": (
        bag(3, attribute("coords", "level0_magnification", 40)),
        "bags",
        "error",
        "file of row 3: patch_size_level0 is 256 but patch_size and the magnifications make it 512",
    ),
    "no patch size": (bag(3, attribute("coords", "patch_size_level0", None)), "bags", "error", "patch_size_level0"),
    "encoder not stated": (bag(3, attribute("features", "encoder", None)), "bags", "warning", "not stated in 1 row"),
    "double precision": (every_bag(features(lambda v: v.astype(float))), "bags", "warning", "float64"),
    "positions lost": (
        bag(3, lambda f: f["coords"].write_direct(np.zeros((5, 2), int))),
        "bags",
        "warning",
        "share a position",
    ),
    "a width of no study": (every_bag(features(lambda v: v[:, :3])), "bags", "error", "needs 4 features per patch"),
    "normal tissue in slides": (
        put(SLIDES, "slide_id", 2, f"{IDS[1]}-11A-01-TS1"),
        "samples",
        "error",
        "slides.csv, slide_id",
    ),
    "normal tissue in expression": (
        put(EXPRESSION, "case_id", 2, f"{IDS[1]}-11A"),
        "expression",
        "warning",
        "1 of 48 samples are of another type",
    ),
    "a slide of nobody": (put(SLIDES, "case_id", 2, "TCGA-ZZ-0001"), "joins", "error", "slides: no case for 1 row"),
    "expression of nobody": (
        put(EXPRESSION, "case_id", 2, "TCGA-ZZ-0001"),
        "expression",
        "warning",
        "1 of 48 rows belong to no case",
    ),
    "expression in other letters": (
        column(EXPRESSION, "case_id", lambda t: t["case_id"].str.lower()),
        "expression",
        "error",
        "none of 48 rows belongs to a case",
    ),
    "a modality of nobody": (put(LAB, "case_id", 2, "TCGA-ZZ-0001"), "joins", "warning", "lab: no case for 1 row"),
    "a modality of samples": (
        column(LAB, "case_id", lambda t: t["case_id"] + "-01A"),
        "joins",
        "error",
        "48 match when letter case",
    ),
    "identifiers with a space in one table": (
        column(LAB, "case_id", lambda t: t["case_id"].str.replace("-", " ")),
        "joins",
        "error",
        "48 match when punctuation",
    ),
    "files named with their folder": (
        column(SLIDES, "file", lambda t: "features/" + t["file"]),
        "slides",
        "error",
        "the feature file is absent",
    ),
    "no modality at all": (
        write("site.toml", 'name = "H1"\ntasks = ["diagnosis"]\n'),
        "joins",
        "error",
        "the site has no modality",
    ),
    "missing is the label": (
        table(EXPRESSION, lambda t: t.iloc[::2]),
        "missingness",
        "warning",
        "diagnosis: whether a case has expression",
    ),
    "text encoder differs": (lambda _: None, "encoders", "error", "text encoder 'minilm'"),
}
