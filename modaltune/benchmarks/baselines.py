"""Parameters and message size of every baseline at the full configuration; shapes only, nothing is computed."""

from __future__ import annotations

import torch

from modaltune.benchmarks.full import GENES, gene_indices
from modaltune.encoders.longnet import LongNetConfig, LongNetViT
from modaltune.models.baselines.base import Inputs
from modaltune.models.baselines.registry import ROWS, build_baseline
from modaltune.models.learner import Learner
from modaltune.models.modaltune import trainable_state
from modaltune.tasks.head import HazardHeads

_CLASSES = {"diagnosis": 2, "survival": 4}
COUNTED = tuple(kind for kind, row in ROWS.items() if row.encoder != "titan")
"""Rows whose code is here: TITAN's comes with its gated weights."""


def full_baseline(kind: str) -> Learner:
    """A baseline at its published widths on the meta device, with heads for two classes and four time bins."""
    config = LongNetConfig()
    with torch.device("meta"):
        inputs = Inputs(
            features=config.in_width,
            genes=GENES,
            gene_indices=gene_indices(),
            slide_encoder=lambda: LongNetViT(config),
        )
        model = build_baseline(kind, inputs)
        head = HazardHeads(_CLASSES, model.config.output_width, ["survival"])
    return Learner(model, head, {"diagnosis": "nominal", "survival": "survival"})


def bench_baselines() -> dict[str, dict[str, float]]:
    """Trained parameters, and megabytes of one message one way when they travel in half precision."""
    out = {}
    for kind in COUNTED:
        count = sum(value.numel() for value in trainable_state(full_baseline(kind)).values())
        out[kind] = {"parameters": count, "mb_fp16": 2 * count / 1e6}
    return out
