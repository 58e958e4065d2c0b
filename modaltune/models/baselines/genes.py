"""Baselines that read expression alone."""

from __future__ import annotations

from torch import Tensor, nn

from modaltune.encoders.gene import GeneEncoderConfig, PaperGeneEncoder
from modaltune.encoders.slide import Places
from modaltune.models.baselines.base import Inputs, Trunk
from modaltune.models.baselines.layers import SparseLayers, self_normalising

_DROPOUT = 0.1


class MLP(Trunk):
    """Two hidden layers over all genes."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.width = self.token_width = width = inputs.width(256)
        self.layers = nn.Sequential(
            *(nn.Linear(inputs.genes, width), nn.ReLU(), nn.Dropout(_DROPOUT)),
            *(nn.Linear(width, width), nn.ReLU(), nn.Dropout(_DROPOUT)),
        )

    def forward(self, patches: Tensor, places: Places, expression: Tensor) -> Tensor:
        """See :meth:`Trunk.forward`; patches are not read."""
        out: Tensor = self.layers(expression)
        return out


class SparseMLP(Trunk):
    """Genes reach hidden units only through their gene sets; a dense layer joins the sets at the end."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.sparse = SparseLayers(inputs.sets())
        self.width = self.token_width = self.sparse.width // 4
        self.joined = nn.Sequential(nn.Linear(self.sparse.width, self.width), nn.ReLU(), nn.Dropout(_DROPOUT))

    def forward(self, patches: Tensor, places: Places, expression: Tensor) -> Tensor:
        """See :meth:`Trunk.forward`; patches are not read."""
        out: Tensor = self.joined(self.sparse(expression))
        return out


class GeneMixer(Trunk):
    """The published gene encoder of ModalTune on its own: pathway tokens, mixed, compressed and averaged."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.width = self.token_width = inputs.width(768)
        config = GeneEncoderConfig(kind="paper", latent=inputs.width(256), depth=3, tokens=64, dropout=0.25)
        self.encoder = PaperGeneEncoder(inputs.sets(), self.width, config)
        self_normalising(self.encoder)
        self.norm = nn.LayerNorm(self.width)

    def forward(self, patches: Tensor, places: Places, expression: Tensor) -> Tensor:
        """See :meth:`Trunk.forward`; patches are not read."""
        out: Tensor = self.norm(self.encoder(expression).mean(dim=1))
        return out
