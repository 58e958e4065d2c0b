"""Drift correction in the manner of SCAFFOLD, without a message of its own.

Between two averages a hospital's weights drift to where its own cases pull. The next average tells it by how much:
its own steps alone would have led elsewhere. Per unit of learning rate, that difference is what its steps lack of
everybody's, and it is added to each of its steps in the next round. Summed over hospitals as the average weighs them,
corrections are zero, so what they take away is disagreement (control variates of SCAFFOLD, arXiv 1910.06378; that they
need no message, arXiv 2202.09357). They are added behind the optimiser, as decoupled weight decay is, and so suit AdamW
as well as plain gradient steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_ALONE, _RATES = "alone", "rates"


class Drift:
    """The corrections of one round at one hospital, and what they will be worked out from in the next.

    Args:
        model: holds the weights received.
        optimiser: its learning rate is that of the corrections.
        strength: part of what separates the hospital from the others that is corrected; 0 = none of it.
        last: what :meth:`state` gave after the round before; empty = nothing to correct.
    """

    def __init__(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, strength: float, last: Mapping[str, Tensor]
    ) -> None:
        self._optimiser = optimiser
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._rates = dict.fromkeys(self._parameters, 0.0)
        self._corrections: dict[str, Tensor] = {}
        for name, received in self._parameters.items():
            if f"{name}|{_ALONE}" in last:
                gap = received.detach() - last[f"{name}|{_ALONE}"].to(received.device)
                self._corrections[name] = strength * gap / float(last[f"{name}|{_RATES}"])

    @torch.no_grad()
    def after_step(self, _: int) -> None:
        """Correct what the optimiser has just moved."""
        rate = self._optimiser.param_groups[0]["lr"]
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            self._rates[name] += rate
            if name in self._corrections:
                parameter.add_(self._corrections[name], alpha=rate)

    def state(self, counted: Mapping[str, int]) -> dict[str, Tensor]:
        """Where the round's own steps alone would have led, and the sum of their learning rates.

        Args:
            counted: cases that the hospital's update of a parameter counts; without any it is none of the average.
        """
        out: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            if counted[name] and (rates := self._rates[name]):
                own = parameter.detach().clone()
                if name in self._corrections:
                    own.sub_(self._corrections[name], alpha=rates)
                out |= {f"{name}|{_ALONE}": own.cpu(), f"{name}|{_RATES}": torch.tensor(rates, dtype=torch.float64)}
        return out
