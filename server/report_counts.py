"""Curves from counts that hospitals sent of their test cases: none of single cases."""

from __future__ import annotations

import numpy as np

from modaltune.evaluation.metrics import Floats
from server.report_data import RunData, Task


def sides_of(run: RunData, task: Task) -> Floats | None:
    """Cases ``[classes, 2, steps]`` of a task by step of probability, first those of other classes; None = not told."""
    told = run.counts.get(task.name)
    return None if told is None else np.array(told["counts"], dtype=np.float64)


def binned_curves(sides: Floats) -> list[tuple[Floats, Floats]]:
    """False and true positive rates of each class that has both sides, from (0, 0) to (1, 1), a point a step.

    The area under the straight lines between points counts pairs in one step as half: it is ``auc_binned``.
    """
    curves = []
    for both in sides:
        if both.sum(axis=1).all():
            above = np.pad(both[:, ::-1].cumsum(axis=1), ((0, 0), (1, 0)))
            false, true = above / above[:, -1:]
            curves.append((false, true))
    return curves
