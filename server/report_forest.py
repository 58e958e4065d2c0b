"""Paired comparisons of the report: forest plot by hospital and table of methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from server.report_context import signed
from server.report_data import RunData, main_metrics, metric_title, number, order_methods
from server.report_plots import INK, MUTED, WIDTH, Plot, method_colours, short, to_plot

_TOGETHER = "all"


def forest(run: RunData) -> Plot:
    """Federated minus local with its interval: a row a hospital, a panel a task, everybody's test cases last."""
    found = {
        (row["task"], row["metric"], row["hospital"]): row
        for row in run.comparisons
        if row["b"] == "local" and number(row["difference"]) is not None
    }
    pairs = [pair for pair in main_metrics(run.scores) if any(key[:2] == pair for key in found)]
    if not pairs:
        return Plot(missing="There are no local models on the same patients to compare the federated one with.")
    names = [*run.hospitals, _TOGETHER]
    height = 0.36 * len(names)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots(1, len(pairs), squeeze=False, gridspec_kw={"wspace": 0.55})[0]
    reach = max(abs(row[end]) for key, row in found.items() if key[:2] in pairs for end in _ends(row))
    for ax, (task, metric) in zip(axes, pairs, strict=True):
        for place, hospital in enumerate(names):
            _forest_row(ax, place, found.get((task, metric, hospital)), hospital == _TOGETHER)
        _forest_axis(ax, task, metric, reach, len(names))
        labels = [*map(short, run.hospitals), "All together"]
        ax.set_yticks(range(len(names)), labels if ax is axes[0] else [])
    said = ", ".join(f"{task} {metric_title(metric)}" for task, metric in pairs)
    return to_plot(figure, "forest", f"Forest plot of federated minus local scores by hospital: {said}.")


def comparison_table(run: RunData) -> list[dict[str, Any]]:
    """Federated against each other method on everybody's test cases: the main metric of each task."""
    main = main_metrics(run.scores)
    rows = [row for row in run.comparisons if row["hospital"] == _TOGETHER and (row["task"], row["metric"]) in main]
    methods = order_methods({row["b"] for row in rows})
    tasks = [task.name for task in run.tasks]
    rows.sort(key=lambda row: (tasks.index(row["task"]), methods.index(row["b"])))
    return [
        {
            "task": row["task"],
            "metric": metric_title(row["metric"]),
            "method": row["b"],
            "difference": signed(row["difference"]),
            "interval": "" if row["low"] is None else f"{signed(row['low'])} to {signed(row['high'])}",
            "p": p_text(row["p"]),
            "apart": row["low"] is not None and (row["low"] > 0 or row["high"] < 0),
            "n": row["n"],
        }
        for row in rows
    ]


def p_text(p: float | None) -> str:
    """A p-value for people."""
    return "n/a" if p is None else "< 0.01" if p < 0.01 else f"{p:.2f}"


def _forest_row(ax: Axes, place: int, row: Mapping[str, Any] | None, together: bool) -> None:
    if together:
        ax.axhspan(place - 0.5, place + 0.5, color="#eaf3f9", zorder=0, linewidth=0)
    beside: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "va": "center"}
    if row is None:
        ax.text(1.03, place, "n/a", color=MUTED, **beside)
        return
    colour = method_colours(["federated"])["federated"]
    if row["low"] is not None:
        ax.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.8, solid_capstyle="butt")
    size = 90.0 if together else float(np.clip(row["n"], 15, 120))
    shape = "D" if together else "s"
    ax.scatter([row["difference"]], [place], s=size, marker=shape, color=colour, edgecolor="white", zorder=5)
    text = f"{signed(row['difference'])}  n {row['n']}"
    ax.text(1.03, place, text, color=INK, fontweight="bold" if together else "normal", **beside)


def _forest_axis(ax: Axes, task: str, metric: str, reach: float, rows: int) -> None:
    ax.set_title(short(task, 32), pad=20)
    ax.annotate(metric_title(metric), (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", color=MUTED)
    ax.axvline(0, color=MUTED, linewidth=1.2, zorder=1)
    ax.set_xlim(-1.05 * reach, 1.05 * reach)
    ax.set_ylim(rows - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(4, symmetric=True))
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("local better   |   federated better")


def _ends(row: Mapping[str, Any]) -> list[str]:
    return ["difference"] if row["low"] is None else ["low", "high"]
