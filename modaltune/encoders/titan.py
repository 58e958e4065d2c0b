"""TITAN's slide encoder, run with the code and weights of a local snapshot.

Patches of CONCH v1.5 (512 px at 20x) are tokens whose attention falls off with their distance on the patch grid, at a
pace of its own for each head. Background is never a token, so a case is a set of patches and cells like for any other
encoder. What is used of the snapshot: ``vision_encoder`` with ``patch_embed``, ``cls_token``, ``norm_pre``,
``blocks.modules_list``, ``norm``, ``forward_attn_pool`` and ``get_alibi``. The weights are gated; here it has been run
on a stand-in with the same interface only.

Shapes: B cases, N patches, T = N + 1 tokens with CLS first, D width, H heads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modaltune.encoders.slide import Places, SlideEncoder, require_sizes
from modaltune.encoders.snapshot import load_snapshot
from modaltune.errors import ModelFileError


class TitanSlideEncoder(SlideEncoder):
    """The slide encoder of a loaded snapshot.

    Args:
        vision_encoder: its vision transformer, with relative positions (``pos_encode_type`` alibi).
    Raises:
        ModelFileError: positions of another kind, or distances that differ from the snapshot's own.
    """

    slopes: Tensor

    def __init__(self, vision_encoder: nn.Module) -> None:
        super().__init__()
        vision: Any = vision_encoder
        if vision.pos_encode_type != "alibi":
            raise ModelFileError(f"titan: positions of type {vision.pos_encode_type!r} are not supported, only 'alibi'")
        self.vision_encoder = vision_encoder
        first = next(part for part in vision.patch_embed.modules() if isinstance(part, nn.Linear))
        self.in_width, self.width = first.in_features, first.out_features
        self.depth = len(vision.blocks.modules_list)
        self.register_buffer("slopes", -vision.get_alibi(1, 2)[0, :, 1, 2], persistent=False)
        self._compare_distances()

    def embed(self, patches: Tensor, cells: Tensor) -> Tensor:
        """See :meth:`SlideEncoder.embed`; positions enter in the attention."""
        vision: Any = self.vision_encoder
        out: Tensor = vision.patch_embed(patches)
        return out

    def with_cls(self, tokens: Tensor) -> Tensor:
        """See :meth:`SlideEncoder.with_cls`."""
        vision: Any = self.vision_encoder
        out: Tensor = vision.norm_pre(torch.cat([vision.cls_token.expand(len(tokens), -1, -1), tokens], dim=1))
        return out

    def run_layers(self, x: Tensor, first: int, last: int, places: Places) -> Tensor:
        """See :meth:`SlideEncoder.run_layers`; one case at a time, each with its own distances."""
        vision: Any = self.vision_encoder
        out = []
        for row, count in enumerate(_counts(x, places)):
            case = x[row : row + 1, : count + 1]
            bias = self._bias(places.cells[row, :count]).to(x.dtype)
            for block in vision.blocks.modules_list[first : last + 1]:
                case = block(case, bias, None)
            out.append(F.pad(case, (0, 0, 0, x.shape[1] - count - 1)))
        return torch.cat(out)

    def image(self, x: Tensor, places: Places) -> Tensor:
        """The attentional pool ``[B, 1, D]`` over the normed tokens of each case."""
        vision: Any = self.vision_encoder
        pooled = [
            vision.forward_attn_pool(vision.norm(x[row : row + 1, : count + 1]), None)[0]
            for row, count in enumerate(_counts(x, places))
        ]
        return torch.stack(pooled)

    def _bias(self, cells: Tensor) -> Tensor:
        """Minus slope times distance in cells, ``[1, H, N + 1, N + 1]``; zero to and from CLS."""
        place = cells.float()
        distance = torch.cdist(place, place, compute_mode="donot_use_mm_for_euclid_dist")
        return F.pad(-self.slopes[:, None, None] * distance, (1, 0, 1, 0)).unsqueeze(0)

    def _compare_distances(self) -> None:
        """Ours must be the snapshot's own on a small grid with a hole."""
        vision: Any = self.vision_encoder
        tissue = torch.ones(1, 3, 4, dtype=torch.bool)
        tissue[0, 1, 2] = False
        if not torch.allclose(self._bias(tissue[0].nonzero()), vision.get_alibi(3, 4, tissue), atol=1e-4):
            raise ModelFileError("titan: this snapshot measures distances in another way; use the published version")


def _counts(x: Tensor, places: Places) -> list[int]:
    """Patches of each case."""
    return [x.shape[1] - 1] * len(x) if places.lengths is None else places.lengths.tolist()


def titan_slide_encoder(folder: Path, in_width: int, width: int, depth: int) -> TitanSlideEncoder:
    """Load a verified snapshot and check the sizes that a study gives."""
    model: Any = load_snapshot(folder)
    if not isinstance(getattr(model, "vision_encoder", None), nn.Module):
        raise ModelFileError("titan: the snapshot's model has no vision_encoder; expected MahmoodLab's TITAN")
    encoder = TitanSlideEncoder(model.vision_encoder)
    found = (encoder.in_width, encoder.width, encoder.depth)
    require_sizes("titan", found, (in_width, width, depth), "CONCH v1.5")
    return encoder
