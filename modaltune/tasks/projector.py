"""The text projector: a frozen random network that carries label embeddings into the model's output space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modaltune.seeds import derive_seed


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
    """The projector of a study: torch's default initialisation drawn from the study seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(study_seed, "text-projector"))
        return TextProjector(text_width, output_width)
