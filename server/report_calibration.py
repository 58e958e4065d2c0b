"""Calibration of the federated model: predicted against observed, test cases of all hospitals together."""

from __future__ import annotations

import numpy as np
import pandas as pd
from lifelines import KaplanMeierFitter
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.stats import binomtest

from modaltune.evaluation.calibration import calibration_curve
from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.survival import risk_groups, survival_at
from modaltune.federation.task import HORIZONS
from server.report_counts import sides_of
from server.report_curves import federated_cases, no_cases
from server.report_data import RunData, Task
from server.report_plots import MUTED, Plot, method_colours, panels_of, short, to_plot

_FEWEST = 10  # cases behind a point with a whisker; fewer are left out
_SURVIVAL_GROUPS = 4

Points = list[tuple[float, float, float, float, int]]  # predicted, observed, low, high, cases


def calibration(run: RunData) -> Plot:
    """A panel a task: mean prediction against observed share, with 95 % intervals; the diagonal is perfect."""
    if run.predictions is not None:
        panels = [(*_points(federated_cases(run, run.predictions, task.name), task), task) for task in run.tasks]
    elif run.counts:
        panels = [(*counted_points(sides_of(run, task), task), task) for task in run.tasks]
    else:
        return no_cases(run)
    panels = [panel for panel in panels if panel[0]]
    if not panels:
        return Plot(missing="No task has enough test cases for a calibration plot.")
    columns = min(3, len(panels))
    figure, axes = panels_of(len(panels), columns, 3.3 * columns, 3.4, wspace=0.3, hspace=0.4)
    for ax, (points, what, task) in zip(axes, panels, strict=True):
        _panel(ax, points, what, task.name)
    said = ", ".join(task.name for _, _, task in panels)
    return to_plot(figure, "calibration", f"Predicted against observed, federated model: {said}.")


def counted_points(sides: Floats | None, task: Task) -> tuple[Points, str]:
    """Points from counts ``[classes, 2, steps]`` by step of probability; a case counts once for each class."""
    if sides is None:
        return [], ""
    others, own = sides.sum(axis=0).astype(int)
    middles = (np.arange(len(own)) + 0.5) / len(own)
    outcome = np.repeat([False, True], [others.sum(), own.sum()])
    points = _shares(outcome, np.concatenate([np.repeat(middles, others), np.repeat(middles, own)]))
    if task.kind == "ordinal":
        return points, _share_of_positive(task)
    return points, f"Share of {task.candidates[1]}" if len(sides) == 1 else "Share of the class"


def _share_of_positive(task: Task) -> str:
    return f"Share of {' and '.join(task.positive)}"


def _points(cases: pd.DataFrame, task: Task) -> tuple[Points, str]:
    """Points of a task and what its axis counts."""
    inside = cases[cases["probabilities"].notna()]
    chances = np.array([np.asarray(row, dtype=float) for row in inside["probabilities"]])
    if chances.ndim != 2 or chances.shape[1] != len(task.candidates):
        return [], ""
    if task.kind == "survival":
        return _survival_points(inside, chances, task)
    labels = inside["label"].astype(str).to_numpy()
    if task.kind == "ordinal":
        chance = chances[:, [name in task.positive for name in task.candidates]].sum(axis=1)
        return _shares(np.isin(labels, task.positive), chance), _share_of_positive(task)
    said = np.array(task.candidates)[chances.argmax(axis=1)]
    return _shares(said == labels, chances.max(axis=1)), "Share that is right"


def _shares(outcome: NDArray[np.bool_], chance: Floats) -> Points:
    points: Points = []
    for predicted, observed, count in zip(*calibration_curve(outcome, chance), strict=True):
        if count >= _FEWEST:
            interval = binomtest(round(observed * count), int(count)).proportion_ci(method="wilson")
            points.append((float(predicted), float(observed), interval.low, interval.high, int(count)))
    return points


def _survival_points(cases: pd.DataFrame, chances: NDArray[np.float64], task: Task) -> tuple[Points, str]:
    """Groups of predicted survival at the last horizon that the time bins reach, against Kaplan-Meier."""
    reached = [months for months in HORIZONS if task.edges and months <= task.edges[-1]]
    if not reached:
        return [], ""
    horizon = reached[-1]
    alive = survival_at(horizon, chances, task.edges)
    groups = risk_groups(alive, [float(cut) for cut in np.quantile(alive, np.arange(1, _SURVIVAL_GROUPS) / 4)])
    points: Points = []
    for group in np.unique(groups):
        part = cases[groups == group]
        if len(part) >= _FEWEST and part["time_months"].max() >= horizon:
            fitted = KaplanMeierFitter().fit(part["time_months"], part["event"])
            low, high = fitted.confidence_interval_.loc[:horizon].iloc[-1]
            observed = float(fitted.predict(horizon))
            points.append((float(alive[groups == group].mean()), observed, float(low), float(high), len(part)))
    return points, f"Alive after {horizon} months"


def _panel(ax: Axes, points: Points, what: str, name: str) -> None:
    colour = method_colours(["federated"])["federated"]
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1.0, linestyle=(0, (2, 2)))
    ax.plot([point[0] for point in points], [point[1] for point in points], color=colour, linewidth=1.2, alpha=0.6)
    for predicted, observed, low, high, count in points:
        ax.plot([predicted, predicted], [low, high], color=colour, linewidth=1.8, alpha=0.75, solid_capstyle="butt")
        size = float(np.clip(count, 15, 120))
        ax.scatter([predicted], [observed], s=size, color=colour, edgecolor="white", linewidth=0.9, zorder=5)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.set_title(short(name, 32))
    ax.set_xlabel("Predicted")
    ax.set_ylabel(what)
