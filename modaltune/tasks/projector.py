"""The text projector: a frozen random network that carries label embeddings into the model's output space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modaltune.seeds import fill_uniform, numpy_generator


class TextProjector(nn.Module):
    """``Linear, LayerNorm, ReLU, Linear``; never trained, equal at every site because it is part of the study."""

    def __init__(self, text_width: int, output_width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(text_width, output_width),
            nn.LayerNorm(output_width),
            nn.ReLU(),
            nn.Linear(output_width, output_width),
        )
        self.requires_grad_(False)

    def forward(self, text: Tensor) -> Tensor:
        """``[..., text width] -> [..., O]``."""
        out: Tensor = self.layers(text)
        return out


def seeded_projector(study_seed: int, text_width: int, output_width: int) -> TextProjector:
    """The projector of a study: torch's default distribution, drawn from the study seed by numpy."""
    with torch.random.fork_rng(devices=[]):
        projector = TextProjector(text_width, output_width)
    generator = numpy_generator(study_seed, "text-projector")
    for module in projector.modules():
        if isinstance(module, nn.Linear):
            for parameter in (module.weight, module.bias):
                fill_uniform(parameter, module.in_features**-0.5, generator)
    return projector
