"""Metric rows as a terminal table, for commands that score one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def metric_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line per task, metric and hospital: value, 95 % interval, cases."""
    table = Table(title="Scores with 95 % intervals over patients")
    for column in ("Task", "Metric", "Hospital"):
        table.add_column(column)
    for column in ("Value", "Interval", "n"):
        table.add_column(column, justify="right")
    for row in rows:
        undefined = row["value"] is None
        interval = "" if undefined or row["low"] is None else f"[{row['low']:.3f}, {row['high']:.3f}]"
        value = "n/a" if undefined else f"{row['value']:.3f}"
        table.add_row(row["task"], row["metric"], row["hospital"], value, interval.replace("[", r"\["), str(row["n"]))
    return table
