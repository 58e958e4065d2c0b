"""Figures of single test cases: ROC curves (of counts, too), survival by predicted risk, embedding map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from lifelines import KaplanMeierFitter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.survival import logrank_p, risk_groups
from server.report_counts import binned_curves, sides_of
from server.report_data import CORE_METHODS, RunData, Task, method_title
from server.report_plots import (
    INK,
    MUTED,
    WIDTH,
    Plot,
    hospital_colours,
    method_colours,
    panels_of,
    short,
    to_plot,
)

_NO_CASES = "This figure needs single test cases, and the run folder has none."
_CASES_STAY = (
    "This figure needs single test cases. They never leave a hospital in a real federation, so the coordinator has "
    "none to draw; a simulation has them."
)
_GRID_POINTS = np.linspace(0.0, 1.0, 401)
_RISK_COLOURS = {2: ("#1F8A78", "#AA3377"), 3: ("#1F8A78", "#B07D00", "#AA3377")}
_RISK_NAMES = {2: ("Lower risk", "Higher risk"), 3: ("Low risk", "Middle", "High risk")}
_LABEL_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#777777")
_ORDERED_COLOURS = ("#A6CEE3", "#5AA5D0", "#22699E", "#08264A")
_UNLABELLED = "#D3DAE0"
_MANY_POINTS = 2000  # more are drawn as an image inside the SVG


def no_cases(run: RunData) -> Plot:
    """Why a figure of single cases is absent."""
    return Plot(missing=_NO_CASES if run.simulated else _CASES_STAY)


def roc(run: RunData) -> Plot:
    """ROC curves of the local, federated and pooled models, a panel a nominal or ordinal task."""
    if run.predictions is None and not run.counts:
        return no_cases(run)
    curves = {task.name: _curves_of(run, task) for task in run.tasks if task.kind != "survival"}
    curves = {name: methods for name, methods in curves.items() if methods}
    if not curves:
        return Plot(missing="No task has test cases of two classes, so no ROC curve is defined.")
    columns = min(3, len(curves))
    figure, axes = panels_of(len(curves), columns, 3.3 * columns, 3.4, wspace=0.22, hspace=0.35)
    colours = method_colours(run.methods or CORE_METHODS)
    for ax, (name, methods) in zip(axes, curves.items(), strict=True):
        _roc_panel(ax, name, methods, colours)
    drawn = list(dict.fromkeys(method for methods in curves.values() for method in methods))
    said = f"ROC curves, by method ({', '.join(drawn)}) and task: {', '.join(curves)}."
    return to_plot(figure, "roc", said)


def kaplan_meier(run: RunData, task: str) -> Plot:
    """Observed survival of test cases grouped by the risk that the federated model gave them."""
    if run.predictions is None:
        return no_cases(run)
    cuts = (run.summary.get("risk_cuts") or {}).get(task)
    if not cuts:
        return Plot(missing="The run folder does not say where the risks of training cases part into groups.")
    cases = _risk_table(run, run.predictions, task)
    if len(cases) < 10 or cases["event"].sum() < 2:
        return Plot(missing="Too few test cases with follow-up and deaths to compare risk groups.")
    groups = len(cuts) + 1
    cases["group"] = risk_groups(cases["risk"].to_numpy(), cuts)
    p = logrank_p(cases["time_months"].to_numpy(), cases["event"].to_numpy() > 0, cases["group"].to_numpy())
    if p is None:
        return Plot(missing="All test cases fall into one group of predicted risk.")
    figure = Figure(figsize=(WIDTH * 0.68, 4.0))
    ax, counts = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (10, 0.85 * groups), "hspace": 0.32})
    _survival_curves(ax, cases, groups)
    _numbers_at_risk(counts, cases, groups, [float(tick) for tick in ax.get_xticks()])
    said = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    ax.text(0.015, 0.04, f"log-rank {said}", transform=ax.transAxes, color=INK, fontweight="bold")
    return to_plot(figure, f"km-{task}", f"Kaplan-Meier curves of {groups} groups of predicted risk, log-rank {said}.")


def embedding_map(run: RunData) -> Plot:
    """Two-dimensional map of the test cases, coloured by hospital and by the label of each task."""
    points = run.embeddings
    if points is None or points.empty:
        return no_cases(run)
    points = run.of_first_seed(points)
    tasks = [task for task in run.tasks if task.name in points and points[task.name].notna().any()]
    figure, axes = panels_of(1 + len(tasks), 2, WIDTH * 0.84, 3.2, wspace=0.5, hspace=0.16)
    present = [name for name in run.hospitals if (points["hospital"] == name).any()]
    _scatter(axes[0], points, "hospital", hospital_colours(run.hospitals), present, "By hospital")
    for ax, task in zip(axes[1:], tasks, strict=True):
        colours = _label_colours(task, points)
        _scatter(ax, points, task.name, colours, list(colours), f"By {task.name}")
    by = ", ".join(["hospital", *(task.name for task in tasks)])
    return to_plot(figure, "map", f"Map of {len(points)} test cases, coloured by {by}.")


def roc_curve(positive: NDArray[np.bool_], score: Floats) -> tuple[Floats, Floats]:
    """False and true positive rates of all thresholds, from (0, 0) to (1, 1); tied scores share one point."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)
    true = np.append(0, np.cumsum(positive[order])[last])
    false = np.append(0, np.cumsum(~positive[order])[last])
    return false / false[-1], true / true[-1]


def spread(heights: Sequence[float], distance: float) -> list[float]:
    """Move label heights upwards, as little as needed, until neighbours are at least ``distance`` apart."""
    placed = list(heights)
    order = sorted(range(len(placed)), key=lambda i: placed[i])
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + distance)
    return placed


def task_curves(predictions: pd.DataFrame, task: Task) -> dict[str, tuple[list[Floats], float]]:
    """Method -> true positive rates on the grid, one array a model and seed, and the mean area under them."""
    rows = predictions[(predictions["task"] == task.name) & predictions["label"].notna()]
    curves: dict[str, tuple[list[Floats], float]] = {}
    for method in CORE_METHODS[:3]:
        chosen = rows[rows["method"] == method]
        fits = [_macro_curve(part, task) for _, part in chosen.groupby(["seed", "model"], dropna=False)]
        defined = [fit for fit in fits if fit is not None]
        if defined:
            curves[method] = ([rates for rates, _ in defined], float(np.mean([area for _, area in defined])))
    return curves


def _curves_of(run: RunData, task: Task) -> dict[str, tuple[list[Floats], float]]:
    """Of single cases where there are any, else of the federated model from counts."""
    if run.predictions is not None:
        return task_curves(run.predictions, task)
    sides = sides_of(run, task)
    found = None if sides is None else _mean_curve(binned_curves(sides))
    return {} if found is None else {"federated": ([found[0]], found[1])}


def _mean_curve(curves: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, float] | None:
    """Mean true positive rates on the grid, and mean area; None without a curve."""
    if not curves:
        return None
    rates = np.mean([np.interp(_GRID_POINTS, false, true) for false, true in curves], axis=0)
    return rates, float(np.mean([np.trapezoid(true, false) for false, true in curves]))


def _macro_curve(cases: pd.DataFrame, task: Task) -> tuple[Floats, float] | None:
    """Mean over classes of the one-vs-rest curve; an ordinal task is its positive levels against the others."""
    probabilities = np.array([np.asarray(row, dtype=float) for row in cases["probabilities"]])
    if probabilities.shape != (len(cases), len(task.candidates)) or not np.isfinite(probabilities).all():
        return None
    labels = cases["label"].astype(str).to_numpy()
    if task.kind == "ordinal":
        high = task.positive or task.candidates[len(task.candidates) // 2 :]
        columns = [name in high for name in task.candidates]
        parts = [(np.isin(labels, high), probabilities[:, columns].sum(axis=1))]
    else:
        known = np.isin(labels, task.candidates)
        parts = [(labels[known] == name, probabilities[known, k]) for k, name in enumerate(task.candidates)]
    return _mean_curve([roc_curve(positive, score) for positive, score in parts if 0 < positive.sum() < len(positive)])


def _roc_panel(
    ax: Axes, name: str, methods: Mapping[str, tuple[list[Floats], float]], colours: Mapping[str, str]
) -> None:
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1.0, linestyle=(0, (2, 2)))
    for method, (curves, area) in methods.items():
        colour = colours.get(method, INK)
        if len(curves) > 1:
            ax.fill_between(_GRID_POINTS, np.min(curves, axis=0), np.max(curves, axis=0), color=colour, alpha=0.1, lw=0)
        wide = 2.6 if method == "federated" else 1.8
        rates = np.concatenate([[0.0], np.mean(curves, axis=0)])
        ax.plot(np.append(0.0, _GRID_POINTS), rates, color=colour, lw=wide, label=f"{method_title(method)}  {area:.2f}")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.set_title(short(name, 32))
    ax.set_xlabel("False positive rate")
    ax.set_ylabel("True positive rate")
    ax.legend(title="AUC", loc="lower right", alignment="left", handlelength=1.4)


def federated_cases(run: RunData, predictions: pd.DataFrame, task: str) -> pd.DataFrame:
    """Predictions of the federated model for the test cases of a task, first seed."""
    rows = predictions[(predictions["task"] == task) & (predictions["method"] == "federated")]
    return run.of_first_seed(rows)


def _risk_table(run: RunData, predictions: pd.DataFrame, task: str) -> pd.DataFrame:
    """Follow-up and predicted risk of the federated model's test cases."""
    rows = federated_cases(run, predictions, task)
    return rows[["time_months", "event", "risk"]].astype(float).dropna().reset_index(drop=True)


def _survival_curves(ax: Axes, cases: pd.DataFrame, groups: int) -> None:
    ends: list[tuple[float, str, str]] = []
    for group, (name, colour) in enumerate(zip(_RISK_NAMES[groups], _RISK_COLOURS[groups], strict=True)):
        part = cases[cases["group"] == group]
        if part.empty:
            continue
        fitted = KaplanMeierFitter().fit(part["time_months"], part["event"])
        time = fitted.survival_function_.index.to_numpy(dtype=float)
        survival = fitted.survival_function_.iloc[:, 0].to_numpy(dtype=float)
        band = fitted.confidence_interval_.to_numpy(dtype=float)
        ax.fill_between(time, band[:, 0], band[:, 1], step="post", color=colour, alpha=0.13, linewidth=0)
        ax.step(time, survival, where="post", color=colour, linewidth=2.2)
        censored = part.loc[part["event"] == 0, "time_months"].to_numpy()
        at = survival[np.searchsorted(time, censored, side="right") - 1]
        ax.scatter(censored, at, marker="|", s=28, color=colour, linewidth=1.0)
        ends.append((float(survival[-1]), name, colour))
    for height, (_, name, colour) in zip(spread([end for end, _, _ in ends], 0.065), ends, strict=True):
        label = ax.text(1.01, height, name, color=colour, va="center", fontweight="bold")
        label.set_transform(ax.get_yaxis_transform())
    ax.set_xlim(0, float(cases["time_months"].max()) * 1.02)
    ax.set_ylim(0, 1.02)
    ax.set_ylabel("Alive")
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    ax.tick_params(labelbottom=True)
    ax.set_xlabel("Months of follow-up")


def _numbers_at_risk(ax: Axes, cases: pd.DataFrame, groups: int, ticks: Sequence[float]) -> None:
    shown = [tick for tick in ticks if 0 <= tick <= ax.get_xlim()[1]]
    for group, (name, colour) in enumerate(zip(_RISK_NAMES[groups], _RISK_COLOURS[groups], strict=True)):
        times = cases.loc[cases["group"] == group, "time_months"].to_numpy()
        for tick in shown:
            ax.text(tick, group, str(int((times >= tick).sum())), ha="center", va="center", color=INK)
        ax.text(-0.055, group, name, ha="right", va="center", color=colour, transform=ax.get_yaxis_transform())
    ax.text(-0.055, -1.0, "At risk", ha="right", va="center", color=MUTED, transform=ax.get_yaxis_transform())
    ax.set_ylim(groups - 0.4, -1.0)
    ax.set_axis_off()


def _label_colours(task: Task, points: pd.DataFrame) -> dict[str, str]:
    found = [str(value) for value in points[task.name].dropna().unique()]
    if task.kind == "survival":
        return {name: colour for name, colour in (("censored", "#7fa8c9"), ("died", "#B0413E")) if name in found}
    order = [name for name in task.candidates if name in found] + sorted(set(found) - set(task.candidates))
    if task.kind == "ordinal" and 1 < len(order) <= len(_ORDERED_COLOURS):
        steps = np.linspace(0, len(_ORDERED_COLOURS) - 1, len(order)).round().astype(int)
        return {name: _ORDERED_COLOURS[step] for name, step in zip(order, steps, strict=True)}
    return {name: _LABEL_COLOURS[i % len(_LABEL_COLOURS)] for i, name in enumerate(order)}


def _scatter(
    ax: Axes, points: pd.DataFrame, column: str, colours: Mapping[str, str], names: Sequence[str], title: str
) -> None:
    options: dict[str, Any] = {"s": 20, "linewidth": 0.4, "rasterized": len(points) > _MANY_POINTS}
    unlabelled = points[~points[column].astype(str).isin(names)]
    ax.scatter(unlabelled["x"], unlabelled["y"], color=_UNLABELLED, **options)
    order = np.random.default_rng(0).permutation(len(points))  # so that no hospital lies on top of the others
    shown = points.iloc[order]
    shown = shown[shown[column].astype(str).isin(names)]
    face = [colours[str(value)] for value in shown[column]]
    ax.scatter(shown["x"], shown["y"], c=face, edgecolor="white", alpha=0.9, **options)
    for name in names:
        ax.scatter([], [], s=34, color=colours[name], label=short(name))
    if len(unlabelled):
        ax.scatter([], [], s=34, color=_UNLABELLED, label="no label")
    ax.set_title(short(title, 34))
    ax.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.2)
