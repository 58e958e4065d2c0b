"""Benchmark results for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def bench_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Results as a table: one line a measurement, ratios first."""
    table = Table("Benchmark", "Case", "Measured")
    for name, cases in results.items():
        for case, value in cases.items():
            values = value if isinstance(value, Mapping) else {"": value}
            table.add_row(name, case, ", ".join(f"{key} {number:.4g}".strip() for key, number in values.items()))
    return table
