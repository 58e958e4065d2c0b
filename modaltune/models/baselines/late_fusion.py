"""The "(cat)" rows: an image model's vector beside a gene vector, joined by a small network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modaltune.encoders.slide import Places
from modaltune.models.baselines.base import Inputs, Trunk
from modaltune.models.baselines.layers import SparseLayers


class LateFusion(Trunk):
    """The two vectors meet only after each modality has been summed up."""

    def __init__(self, inputs: Inputs, image: Trunk) -> None:
        super().__init__()
        self.width, self.token_width = inputs.width(256), image.token_width
        sparse, middle = SparseLayers(inputs.sets()), inputs.width(64)
        self.image = image
        self.genes = nn.Sequential(sparse, nn.Linear(sparse.width, middle), nn.ReLU(), nn.Linear(middle, self.width))
        self.joined = nn.Sequential(
            *(nn.Linear(image.width + self.width, self.width), nn.ReLU()),
            *(nn.Linear(self.width, self.width), nn.ReLU()),
        )

    def forward(self, patches: Tensor, places: Places, expression: Tensor) -> Tensor:
        """See :meth:`Trunk.forward`."""
        vectors = [self.image(patches, places, expression), self.genes(expression)]
        out: Tensor = self.joined(torch.cat(vectors, dim=-1))
        return out
