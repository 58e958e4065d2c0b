"""Tables of a run for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from server.report_data import (
    Key,
    Score,
    collect,
    headline,
    method_title,
    metric_title,
    order_methods,
    task_metrics,
    training_rounds,
)

UNDEFINED = "n/a"
_MOST_COLUMNS = 5


def comparison_table(rows: Sequence[Mapping[str, Any]], *, hospital: str = "all") -> Table:
    """Compare methods by task and headline metric: a column each, or a row each when they are too many for a terminal.

    Args:
        rows: rows as in ``metrics.json``; several seeds are averaged, undefined ones left out and counted.
        hospital: whose test cases; ``all`` = those of all hospitals together.

    Returns:
        A table whose cells are ``value [low, high]`` with the 95 % interval; ``n/a`` where undefined.
    """
    scores = {key: s for key, s in collect(rows).items() if key.hospital == hospital and headline(key.metric)}
    methods = order_methods({key.method for key in scores})
    seeds = {seed.seed for score in scores.values() for seed in score.seeds}
    where = "all test cases" if hospital == "all" else f"test cases of {hospital}"
    mean = f", mean of {len(seeds)} seeds" if len(seeds) > 1 else ""
    table = _table(f"Comparison on {where}, 95 % intervals{mean}")
    (_method_columns if len(methods) <= _MOST_COLUMNS else _method_rows)(table, scores, methods)
    return table


def participation_table(rounds: Iterable[Mapping[str, Any]], roster: Sequence[str] = ()) -> Table:
    """Who took part: training rounds (:func:`training_rounds`) with and without each hospital, and why.

    Args:
        rounds: lines of ``rounds.jsonl``.
        roster: all hospitals of the study; those that never answered are shown too.
    """
    rows = training_rounds(rounds)
    named = (name for row in rows for what in ("contributors", "missing", "refused") for name in row.get(what) or ())
    table = _table("Participation in training", "Hospital")
    table.add_column("Rounds", justify="right")
    table.add_column("Missing in")
    table.add_column("Refused")
    for name in dict.fromkeys([*roster, *named]):
        joined = sum(name in (row.get("contributors") or ()) for row in rows)
        missing = [row["round"] for row in rows if name in (row.get("missing") or ())]
        refused = [f"{row['round']}: {row['refused'][name]}" for row in rows if name in (row.get("refused") or {})]
        style = "" if joined == len(rows) else "yellow"
        share = Text(f"{joined} of {len(rows)}", style=style)
        table.add_row(Text(name), share, Text(ranges(missing)), Text("\n".join(refused)))
    return table


def traffic_table(rounds: Iterable[Mapping[str, Any]]) -> Table:
    """Megabytes (10^6 bytes) each way and round; equal neighbouring rounds share a line; the total comes last.

    Args:
        rounds: lines of ``rounds.jsonl``.
    """
    rows = list(rounds)
    table = _table("Traffic of all hospitals, MB", "Phase", "Round")
    for title in ("To hospitals", "From hospitals", "Both", "So far"):
        table.add_column(title, justify="right")
    so_far = 0.0
    for (phase, down, up), group in groupby(rows, key=lambda row: (str(row.get("phase", "")), *_sizes(row))):
        numbers = [int(row.get("round", 0)) for row in group]
        so_far += len(numbers) * (down + up)
        each = " each" if len(numbers) > 1 else ""
        table.add_row(Text(phase), ranges(numbers) + each, *map(_megabytes, (down, up, down + up, so_far)))
    down, up = (sum(_sizes(row)[way] for row in rows) for way in (0, 1))
    table.add_section()
    table.add_row("total", "", *map(_megabytes, (down, up, down + up, so_far)), style="bold")
    return table


def ranges(numbers: Sequence[int]) -> str:
    """Round numbers as short text: ``1-3, 7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _method_columns(table: Table, scores: Mapping[Key, Score], methods: Sequence[str]) -> None:
    table.box, table.padding, table.pad_edge = None, (0, 1), False  # five methods fit into 80 columns
    table.add_column("Task", min_width=9)
    for name in methods:
        table.add_column(Text(method_title(name)), width=12, style=_weight(name))
    for task, metric in task_metrics(scores):
        table.add_row()
        found = {key.method: score for key, score in scores.items() if key[:2] == (task, metric)}
        cases = " / ".join(dict.fromkeys(score.cases for score in found.values()))
        head = Text(task).append(f"\n{metric_title(metric)}\nn = {cases}", style="dim")
        table.add_row(head, *(_score(found.get(name), "\n") for name in methods))


def _method_rows(table: Table, scores: Mapping[Key, Score], methods: Sequence[str]) -> None:
    for title in ("Task", "Method", "Value", "Cases"):
        table.add_column(title, justify="right" if title == "Cases" else "left", no_wrap=True)
    for task, metric in task_metrics(scores):
        found = {key.method: score for key, score in scores.items() if key[:2] == (task, metric)}
        heads = [Text(task, style="not bold"), Text(metric_title(metric), style="not bold dim")]
        for name in filter(found.__contains__, methods):
            head = heads.pop(0) if heads else Text()
            value = _score(found[name], " ")
            table.add_row(head, Text(method_title(name)), value, found[name].cases, style=_weight(name))
        if heads:
            table.add_row(heads[-1], "", "", "")
        table.add_section()


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=SIMPLE_HEAD, header_style="dim")
    for name in columns:
        table.add_column(name)
    return table


def _weight(method: str) -> str:
    return "bold" if method == "federated" else ""


def _score(score: Score | None, between: str) -> Text:
    if score is None:
        return Text("")
    if score.value is None:
        return Text(UNDEFINED, style="dim")
    text = Text(f"{score.value:.3f}")
    if score.low is not None and score.high is not None:
        text.append(f"{between}[{score.low:.2f}, {score.high:.2f}]", style="not bold dim")
    undefined = sum(seed.value is None for seed in score.seeds)
    if undefined:
        text.append(f"{between}{undefined} of {len(score.seeds)} {UNDEFINED}", style="not bold dim")
    return text


def _sizes(row: Mapping[str, Any]) -> tuple[float, float]:
    return float(row.get("bytes_down") or 0), float(row.get("bytes_up") or 0)


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.3f}" if count < 1e6 else f"{count / 1e6:,.1f}"
