"""The cross-site matrix of a run folder: which model, where evaluated, and what leaving a hospital out changes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from server.report_data import LEFT_OUT, Key, Score, collect, leaves_out, main_metrics, metric_title

INFLUENCE = "influence.json"
_ABSENT = "–"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model at one hospital.

    Attributes:
        value, interval: as text.
        change: with the hospital that is left out minus without it; with its paired 95 % interval, as text.
        matters: the interval of the change excludes zero.
        unseen: the model never saw the hospital where it is evaluated.
    """

    value: str
    interval: str
    change: str = ""
    matters: bool = False
    unseen: bool = False


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One task and metric: a row for each model, a column for each place."""

    task: str
    metric: str
    places: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def matrices(rows: Sequence[Mapping[str, Any]], influence: Sequence[Mapping[str, Any]]) -> list[Matrix]:
    """The matrix of every task's main metric; empty without a federation that left a hospital out."""
    scores = {key: score for key, score in collect(rows).items() if key.method == "federated" or leaves_out(key.method)}
    left_out = sorted({key.method for key in scores if leaves_out(key.method)})
    if not left_out:
        return []
    changes = collect({**row, "method": f"{LEFT_OUT}{row['site']}"} for row in influence)
    places = (*sorted({key.hospital for key in scores} - {"all"}), "all")
    return [
        Matrix(
            task=task,
            metric=metric_title(metric),
            places=places,
            rows=tuple(
                (_title(method), tuple(_cell(scores, changes, Key(task, metric, place, method)) for place in places))
                for method in ("federated", *left_out)
            ),
        )
        for task, metric in main_metrics(scores)
    ]


def read_matrices(run: Path) -> list[Matrix]:
    """The matrices of a run folder."""
    return matrices(_rows(run / "metrics.json"), _rows(run / INFLUENCE))


def matrix_tables(found: Iterable[Matrix]) -> list[Table]:
    """For the terminal: a table a task. A star: the interval of the change excludes zero; italics: never seen."""
    tables = []
    for matrix in found:
        title = f"Cross-site {matrix.task}, {matrix.metric} (columns: test cases of)"
        table = Table(title=Text(title, style="bold"), title_justify="left", box=None, padding=(0, 1), pad_edge=False)
        table.add_column("Trained by")
        for place in matrix.places:
            table.add_column(Text(place), no_wrap=True)
        for title, cells in matrix.rows:
            table.add_row(Text(title), *map(_in_terminal, cells))
        tables.append(table)
    return tables


def _in_terminal(cell: Cell) -> Text:
    text = Text(cell.value + ("*" if cell.matters else ""), style="italic" if cell.unseen else "")
    return text.append(f"\n{cell.interval}", style="dim") if cell.interval else text


def _cell(scores: Mapping[Key, Score], changes: Mapping[Key, Score], key: Key) -> Cell:
    score, change = scores.get(key), changes.get(key)
    if score is None:
        return Cell(value=_ABSENT, interval="")
    text, matters = "", False
    if change is not None and change.value is not None and change.low is not None and change.high is not None:
        text = f"{change.value:+.2f} ({change.low:+.2f} to {change.high:+.2f})"
        matters = change.low > 0 or change.high < 0
    return Cell(
        value="n/a" if score.value is None else f"{score.value:.2f}",
        interval="" if score.low is None or score.high is None else f"{score.low:.2f}-{score.high:.2f}",
        change=text,
        matters=matters,
        unseen=key.method == f"{LEFT_OUT}{key.hospital}",
    )


def _title(method: str) -> str:
    return f"without {method.removeprefix(LEFT_OUT)}" if leaves_out(method) else "all"


def _rows(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []
