from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from modaltune.data.site import load_site
from modaltune.errors import CaseTableError, DataError, ExpressionError, FeatureFileError, LabelError, SiteFolderError
from tests.data.small_site import IDS, LABELS, Edit, edit, put, some_expression, write_small_site


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_small_site(tmp_path / "H1")


def overwrite(name: str) -> Callable[[Path], object]:
    return lambda site: (site / name).write_text(f"{IDS[0]} secret")


def remove(name: str) -> Callable[[Path], object]:
    return lambda site: (site / name).unlink()


def on(table: str, change: Edit) -> Callable[[Path], object]:
    return lambda site: edit(site, table, change)


def cases(change: Edit) -> Callable[[Path], object]:
    return on("cases.parquet", change)


def genes(change: Edit) -> Callable[[Path], object]:
    return on("expression.parquet", change)


def blank(*columns: str) -> Callable[[Path], object]:
    return cases(lambda frame: frame.assign(**dict.fromkeys(columns, None)))


def only(table: str, rows: slice) -> Callable[[Path], object]:
    return on(table, lambda frame: frame[rows])


def gene_twice(site: Path) -> None:
    table = pa.Table.from_pandas(some_expression())
    pyarrow.parquet.write_table(table.append_column("ESR1", table["ESR1"]), site / "expression.parquet")


def break_first_bag(change: Callable[[h5py.File], object]) -> Callable[[Path], object]:
    def damage(site: Path) -> None:
        with h5py.File(site / "features" / f"{IDS[0]}-S9.h5", "r+") as file:
            change(file)

    return damage


def resize(file: h5py.File, patches: int, width: int) -> None:
    for name, shape in (("features", (patches, width)), ("coords", (patches, 2))):
        attributes = dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, data=np.zeros(shape)).attrs.update(attributes)


def drop_features_folder(site: Path) -> None:
    (site / "features").rename(site / "elsewhere")


def strangers_only(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(case_id=[f"{case}X" for case in frame["case_id"]])


DAMAGES: dict[str, tuple[Callable[[Path], object], type[DataError], str]] = {
    "no cases table": (remove("cases.parquet"), CaseTableError, "no such file"),
    "unreadable cases": (overwrite("cases.parquet"), CaseTableError, "not a readable parquet table"),
    "no case_id": (cases(lambda frame: frame.drop(columns="case_id")), CaseTableError, "'case_id' is missing"),
    "duplicate case": (cases(put("case_id", 3, IDS[0])), CaseTableError, r"repeats .* 1 row \(first: row 3\)"),
    "blank case": (cases(put("case_id", 2, None)), CaseTableError, r"blank in 1 row \(first: row 2\)"),
    "empty cases": (only("cases.parquet", slice(0)), CaseTableError, "has no row"),
    "unknown split": (cases(put("split", 4, "dev")), CaseTableError, "one of train, val, test .* row 4"),
    "blank split": (cases(put("split", 4, None)), CaseTableError, "'split' is not one of"),
    "no stage column": (cases(lambda frame: frame.drop(columns="stage")), CaseTableError, "needs column 'stage'"),
    "no event column": (cases(lambda frame: frame.drop(columns="event")), CaseTableError, "needs column 'event'"),
    "nobody labelled": (blank("diagnosis"), LabelError, "'diagnosis' is listed but none of 7 usable cases"),
    "nobody followed": (blank("time_months", "event"), LabelError, "'survival' is listed but none"),
    "time zero": (cases(put("time_months", 2, 0.0)), CaseTableError, "not above 0 in 1 row .*row 2"),
    "time negative": (cases(put("time_months", 5, -3.0)), CaseTableError, "'time_months' is not above 0"),
    "time infinite": (cases(put("time_months", 5, np.inf)), CaseTableError, "'time_months' is not above 0"),
    "event without time": (cases(put("time_months", 2, np.nan)), CaseTableError, "'time_months' is blank .*row 2"),
    "time without event": (cases(put("event", 2, np.nan)), CaseTableError, "'event' is blank in 1 row"),
    "event 2": (cases(put("event", 1, 2.0)), CaseTableError, "'event' is neither 0 nor 1 in 1 row .*row 1"),
    "event text": (cases(put("event", 1, "Dead")), CaseTableError, "'event' is neither 0 nor 1 in 1 row"),
    "age negative": (cases(put("age", 1, -1.0)), CaseTableError, r"'age' is outside 0 to 120 .*row 1"),
    "age in days": (cases(put("age", 6, 21_000.0)), CaseTableError, "'age' is outside"),
    "unknown label": (cases(put("diagnosis", 2, "tubular")), LabelError, "'diagnosis' .* 'tubular' in 1 row"),
    "no expression": (remove("expression.parquet"), ExpressionError, "no such file"),
    "unreadable expression": (overwrite("expression.parquet"), ExpressionError, "not a readable"),
    "expression id": (genes(lambda frame: frame.drop(columns="case_id")), ExpressionError, "is missing"),
    "expression twice": (genes(put("case_id", 2, IDS[5])), ExpressionError, "repeats an earlier one"),
    "gene twice": (gene_twice, ExpressionError, r"1 column names occur twice \(first: column"),
    "no gene": (genes(lambda frame: frame[["case_id"]]), ExpressionError, "no gene column"),
    "text gene": (genes(put("ESR1", 2, "high")), ExpressionError, "not numeric .*column 3"),
    "NaN": (genes(put("ESR1", 2, np.nan)), ExpressionError, "1 rows and 1 gene .*row 2, column 3"),
    "infinite": (genes(put("TP53", 4, np.inf)), ExpressionError, "row 4, column 2"),
    "strangers": (genes(strangers_only), ExpressionError, "none of 6 rows belongs to a case"),
    "no slides table": (remove("slides.csv"), FeatureFileError, "no such file"),
    "no owner column": (on("slides.csv", lambda frame: frame.drop(columns="case_id")), FeatureFileError, "is missing"),
    "slide twice": (on("slides.csv", put("slide_id", 2, f"{IDS[0]}-S9")), FeatureFileError, "slide_id repeats"),
    "slide of a stranger": (on("slides.csv", put("case_id", 3, "TCGA-ZZ-9999")), FeatureFileError, "is not in .*row 3"),
    "no features folder": (drop_features_folder, SiteFolderError, "paths.features is not a folder"),
    "absent file": (remove(f"features/{IDS[1]}-S7.h5"), FeatureFileError, "absent in 1 row .*row 3"),
    "truncated bag": (overwrite(f"features/{IDS[0]}-S9.h5"), FeatureFileError, "slides.csv, file of row 1: truncated"),
    "empty bag": (break_first_bag(lambda file: resize(file, 0, 4)), FeatureFileError, "row 1: the bag is empty"),
    "wider bag": (break_first_bag(lambda file: resize(file, 2, 9)), FeatureFileError, "row 1: 'features' has 9"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_line_that_names_no_patient(name: str, site: Path) -> None:
    damage, kind, message = DAMAGES[name]
    damage(site)
    with pytest.raises(kind, match=message) as caught:
        load_site(site, split_salt="s", labels=LABELS)
    text = str(caught.value)
    assert "\n" not in text
    assert "H1" in text
    assert not any(secret in text for secret in ("TCGA", "secret", "21000"))
