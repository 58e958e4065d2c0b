"""Damped Newton steps on a convex objective that is only known through what sites answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from modaltune.errors import ProbeError
from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.probes.sums import Sums

TOLERANCE = 1e-10
"""Euclidean norm of the gradient per case at which a fit is done."""
_SETTLED = 1e-4  # a last step longer than this share of the coefficients means that they still grow
_SUFFICIENT, _SHORTEST, _ROUNDING = 1e-4, 2.0**-30, 1e-13
Objective = Callable[[Floats, bool], Sums]
"""(coefficients ``[D]``, whether derivatives are wanted) -> objective per case."""


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Where the objective is smallest, and how many questions that took."""

    coefficients: Floats
    loss: float
    gradient_norm: float
    questions: int


def minimise(objective: Objective, size: int, most_questions: int) -> Optimum:
    """Newton's method from zero; a step that does not lower the loss is halved, at the cost of losses only.

    The step that follows from the last derivatives is taken without asking again.

    Raises:
        ProbeError: no optimum within ``most_questions``.
    """
    position, asked = np.zeros(size), 1
    here = objective(position, True)
    while True:
        step = -_solve(here.hessian, here.gradient)
        norm = float(np.linalg.norm(here.gradient))
        settled = np.linalg.norm(step) <= _SETTLED * (1 + np.linalg.norm(position))
        if norm <= TOLERANCE and settled:
            return Optimum(coefficients=position + step, loss=here.loss, gradient_norm=norm, questions=asked)
        length, slope = 1.0, float(here.gradient @ step)
        allowed = _ROUNDING * (1 + abs(here.loss))
        there, derivatives = here, False
        while True:
            if asked >= most_questions or length < _SHORTEST:
                raise ProbeError(
                    f"no optimum after {asked} questions; without a ridge coefficients grow without end where a feature"
                    " separates the classes or orders all deaths: set one, or allow more questions"
                )
            # a whole step is nearly always accepted: its derivatives are asked for at once
            derivatives = length == 1.0
            there, asked = objective(position + length * step, derivatives), asked + 1
            if there.loss <= here.loss + _SUFFICIENT * length * slope + allowed:
                break
            length /= 2
        position = position + length * step
        if not derivatives:
            there, asked = objective(position, True), asked + 1
        here = there


def _solve(hessian: Floats, gradient: Floats) -> Floats:
    """Newton direction; of the many of a singular Hessian (a constant feature) the shortest."""
    try:
        out: Floats = cho_solve(cho_factor(hessian), gradient)
    except np.linalg.LinAlgError:
        out = np.asarray(np.linalg.lstsq(hessian, gradient, rcond=None)[0], dtype=np.float64)
    return out
