"""Discrete-time survival: a hazard per time bin, its likelihood, and what follows from it.

Shapes: Q cases, S time bins. The hazard of a bin is the chance to die in it for who lived to see it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EVENT_SHARE = 0.5


def hazard_nll(logits: Tensor, index: Tensor, observed: Tensor, event_share: float = EVENT_SHARE) -> Tensor:
    """Negative log-likelihood of discrete-time survival.

    Args:
        logits: ``[Q, S]`` hazards before the sigmoid.
        index: ``[Q]`` bin of the follow-up time.
        observed: ``[Q]`` True = death, False = censored: alive at the end of the bin.
        event_share: weight that goes from all cases to those with a death; they are fewer.
    Returns:
        Mean over cases; lower is better.
    """
    survived = _log_survival(logits)
    before = F.pad(survived, (1, 0))[:, :-1]  # log S of the bin before; 0 for the first
    place = index[:, None]
    death = -(before + F.logsigmoid(logits)).gather(1, place).squeeze(1) * observed
    alive = -survived.gather(1, place).squeeze(1) * ~observed
    return (death + (1 - event_share) * alive).mean()


def bin_log_probabilities(logits: Tensor) -> Tensor:
    """``[Q, S]`` log chance to die in each bin; the last one is open and takes all who live to see it."""
    before = F.pad(_log_survival(logits), (1, 0))[:, :-1]
    return torch.cat([before[:, :-1] + F.logsigmoid(logits[:, :-1]), before[:, -1:]], dim=1)


def hazard_risk(logits: Tensor) -> Tensor:
    """``[Q]`` minus the sum of the survival curve over the bins; higher = worse."""
    return -_log_survival(logits).exp().sum(dim=1)


def _log_survival(logits: Tensor) -> Tensor:
    """``[Q, S]`` log chance to live through each bin."""
    return F.logsigmoid(-logits).cumsum(dim=1)
