"""Results of a study as one tidy table, and what is shown of it: means over seeds, bounds of intervals averaged."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from modaltune.storage import read_json_lines, write_bytes
from server.report_data import method_title, metric_title, order_methods
from server.tables import UNDEFINED
from simulation.probes import CANCER
from simulation.studies.cells import Cell
from simulation.studies.runner import cell_folder
from simulation.studies.spec import ShowSpec
from simulation.studies.trackers import Record

SETTING = "setting"
_SCORES = ("value", "low", "high")


def read_json(path: Path) -> Any:
    """A JSON file of a run folder."""
    return json.loads(path.read_text(encoding="utf-8"))


def tidy(cells: Sequence[Cell], out: Path) -> pd.DataFrame:
    """One row per metric row of every finished cell.

    Args:
        cells: finished ones.
        out: folder of the study.
    Returns:
        ``cell``, a column for each axis, then ``method, task, metric, hospital, value, low, high, n, seed`` as in
        ``metrics.json``, then of the cell: ``status``, ``seconds``, ``steps`` (of the federation, over hospitals) and
        ``megabytes`` (both ways, all hospitals and rounds).
    """
    rows = []
    for cell in cells:
        folder = cell_folder(out, cell)
        summary = read_json(folder / "summary.json")
        about = {
            "status": summary["status"],
            "seconds": summary["seconds"],
            "steps": summary["budget"]["steps"],
            "megabytes": sum(_megabytes(row) for row in read_json_lines(folder / "rounds.jsonl")),
        }
        first = {"cell": cell.name, **cell.choices}
        rows += [first | row | about for row in read_json(folder / "metrics.json")]
    table = pd.DataFrame(rows)
    for axis in cells[0].choices if cells else ():
        if not pd.api.types.is_numeric_dtype(table[axis]):  # numbers and words on one axis
            table[axis] = table[axis].astype(str)
    for name in (*_SCORES, "seconds", "megabytes"):
        table[name] = table[name].astype(float)
    return table


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a parquet file atomically."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_bytes(path, buffer.getvalue())


def shown(table: pd.DataFrame, axes: Sequence[str], show: ShowSpec) -> pd.DataFrame:
    """What tables and figures show.

    Returns:
        One row per setting, hospital, task, metric and method, in the order of the cells: the axes, ``setting`` (their
        values in words), ``value, low, high`` (means over the seeds that define them), ``n`` (of the first seed),
        ``seeds`` and ``undefined`` (numbers of them).
    """
    kept = table[table["metric"].isin(show.metrics)]
    parts = []
    for name in show.hospitals:
        parts.append(_each(kept, axes) if name == "each" else kept[kept["hospital"] == name])
        if name == "all":
            parts.append(kept[_only_probed(kept)])
    if "all" not in show.hospitals:
        parts.append(kept[kept["task"] == CANCER])
    chosen = pd.concat(parts)
    chosen = chosen.assign(**{SETTING: _settings(chosen, axes)})
    keys = [SETTING, *axes, "hospital", "task", "metric", "method"]
    grouped = chosen.groupby(keys, sort=False, dropna=False)
    out = grouped[list(_SCORES)].mean()
    out["n"] = grouped["n"].first()
    out["seeds"] = grouped["seed"].nunique()
    out["undefined"] = grouped["value"].apply(lambda values: int(values.isna().sum()))
    return out.reset_index()


def _only_probed(table: pd.DataFrame) -> pd.Series:
    """Rows of cohorts that neither trained nor were tested: the model was only probed on them."""
    probes = table["metric"].str.endswith("_probe")
    return probes & ~table["hospital"].isin(table["hospital"][~probes])


def _each(table: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Mean over the hospitals of a cell of their own scores; cohorts and ``all`` are no hospitals."""
    own = table[table["hospital"].str.fullmatch(r"(?:[A-Z]+-)?[HS]\d+")]
    keys = ["cell", *axes, "method", "task", "metric", "seed"]
    grouped = own.groupby(keys, sort=False, dropna=False)
    return grouped[list(_SCORES)].mean().join(grouped["n"].sum()).reset_index().assign(hospital="each")


def _settings(table: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    words = [[f"{axis.rpartition('.')[2]} {_text(value)}" for value in table[axis]] for axis in axes]
    return [", ".join(parts) for parts in zip(*words, strict=True)] if words else ["as in the file"] * len(table)


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def result_table(rows: pd.DataFrame) -> Table:
    """The terminal table: a line per setting, a column per method, a block per task, metric and hospital."""
    methods = order_methods(rows["method"].unique())
    seeds = int(rows["seeds"].max()) if len(rows) else 0
    mean = f", mean of {seeds} seeds" if seeds > 1 else ""
    table = Table(title=Text(f"95 % intervals{mean}", style="bold"), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("Setting")
    for method in methods:
        table.add_column(Text(method_title(method)), style="bold" if method == "federated" else "")
    for key, block in rows.groupby(["task", "metric", "hospital"], sort=False):
        task, metric, hospital = map(str, key)
        cases = "-".join(str(count) for count in sorted({int(block["n"].min()), int(block["n"].max())}))
        where = "" if hospital == "all" else f", {hospital}"
        table.add_row(Text(f"{task}, {metric_title(metric)}{where}, n = {cases}", style="dim"))
        for setting, line in block.groupby(SETTING, sort=False):
            found = line.set_index("method")
            table.add_row(Text(f"  {setting}"), *(Text(score_text(found, method)) for method in methods))
        table.add_section()
    return table


def score_text(found: pd.DataFrame, method: str) -> str:
    """``0.812 (0.76-0.86)``, ``n/a`` where undefined, nothing where the method was not scored."""
    if method not in found.index:
        return ""
    row = found.loc[method]
    if pd.isna(row["value"]):
        return UNDEFINED
    interval = "" if pd.isna(row["low"]) else f" ({row['low']:.2f}-{row['high']:.2f})"
    missing = f", {row['undefined']} of {row['seeds']} {UNDEFINED}" if row["undefined"] else ""
    return f"{row['value']:.3f}{interval}{missing}"


def record(cell: Cell, out: Path) -> Record:
    """What trackers are told about a finished cell."""
    folder = cell_folder(out, cell)
    rounds = [row for row in read_json_lines(folder / "rounds.jsonl") if row["phase"] == "train"]
    values = [
        {name: float(row[name]) for name in ("loss", "val_loss") if row.get(name) is not None}
        | {"megabytes": _megabytes(row), "seconds": float(row["seconds"])}
        for row in rounds
    ]
    rows = pd.DataFrame(read_json(folder / "metrics.json"))
    told = rows[rows["value"].notna() & ((rows["hospital"] == "all") | _only_probed(rows))]
    scores = {_score_name(row): float(row["value"]) for row in told.to_dict("records")}
    settings = {**cell.choices, "seed": cell.seed, "digest": cell.digest}
    for table, content in {"data": cell.data, **cell.settings}.items():
        settings |= {f"{table}.{key}": _plain(value) for key, value in content.items() if value not in (None, [], {})}
    numbers = [int(row["round"]) for row in rounds]
    return Record(
        study=cell.study,
        cell=cell.name,
        settings=settings,
        rounds=list(zip(numbers, values, strict=True)),
        scores=scores,
    )


def _score_name(row: Mapping[Any, Any]) -> str:
    where = "" if row["hospital"] == "all" else f"/{row['hospital']}"
    return f"{row['method']}/{row['task']}/{row['metric']}{where}"


def _plain(value: Any) -> str | float | bool:
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)


def _megabytes(row: Mapping[str, Any]) -> float:
    return float(row["bytes_down"] + row["bytes_up"]) / 1e6
