"""Attention of the extractor heads over patches, read beside the model, never in it.

The kernels of a forward pass give no weights. A hook on each extractor computes them once more from the same queries
and keys; what the model itself computes stays as it is.

Shapes: E extractors, H heads, T tokens, N patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modaltune.data.batch import CaseTensors, collate
from modaltune.evaluation.metrics import Floats
from modaltune.models.adapters import Extractor, Interaction
from modaltune.models.learner import Learner
from modaltune.models.modaltune import ModalTune
from modaltune.step import device_of, precision_of


@contextmanager
def watched(model: ModalTune) -> Iterator[list[Tensor]]:
    """Inside the block, every extractor that runs adds its weights ``[Q, H, T, N]`` to the list."""
    found: list[Tensor] = []

    def note(layer: nn.Module, arguments: Any, options: dict[str, Any], _: object) -> None:
        asked = {**options, "need_weights": True, "average_attn_weights": False}
        weights = nn.MultiheadAttention.forward(cast(nn.MultiheadAttention, layer), *arguments, **asked)[1]
        found.append(cast(Tensor, weights))

    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in _layers(model)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _layers(model: ModalTune) -> list[nn.MultiheadAttention]:
    """Attention of all extractors, in the order in which they run."""
    layers = []
    for interaction in cast(Iterable[Interaction], model.interactions):
        extractors = [interaction.extractor, *cast(Iterable[Extractor], interaction.extra_extractors or ())]
        layers += [extractor.attn.multihead_attn for extractor in extractors]
    return layers


@torch.no_grad()
def patch_attention(learner: Learner, case: CaseTensors, task: str) -> Floats:
    """What the token of a task attends to in each extractor: ``[E, H, N]``, each head's row sums to 1.

    Args:
        case: with its patches in memory, at least one.
    """
    model, device = learner.modaltune, device_of(learner)
    with precision_of(device), watched(model) as found:
        model.embed(collate([case]).to(device), [task])
    token = int(model.clinical_encoder is not None)
    if model.config.task_pass == "joint":
        token += model.config.tasks.index(task)
    weights: Floats = torch.stack([layer[0, :, token] for layer in found]).double().cpu().numpy()
    return weights


def times_even(weights: Floats) -> Floats:
    """Weights ``[..., N]`` as multiples of an even spread: 1 = as much as every patch would get."""
    out: Floats = weights * weights.shape[-1]
    return out


def spread(weights: NDArray[np.float64]) -> float:
    """Share of the patches over which ``[N]`` weights are spread (exponential of the entropy over N); 1 = evenly."""
    positive = weights[weights > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()) / len(weights))
