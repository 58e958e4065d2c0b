"""Size of one message at the full configuration."""

from __future__ import annotations

from typing import Any

import torch

from modaltune.benchmarks.full import full_model
from modaltune.models.modaltune import trainable_state


def bench_wire() -> dict[str, Any]:
    """Trained parameters and megabytes of one message: three tasks, compact gene encoder, no clinical token."""
    with torch.device("meta"):
        state = trainable_state(full_model(3))
    count = sum(value.numel() for value in state.values())
    return {"parameters": count, "mb_fp32": 4 * count / 1e6}
