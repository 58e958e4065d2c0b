"""Size of the one file that travels at the full configuration, and what rounding does to the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from modaltune.benchmarks.full import full_model
from modaltune.federation.average import State
from modaltune.federation.wire import FORMS, SEALED, pack, seal, unpack
from modaltune.models.modaltune import trainable_state
from modaltune.seeds import numpy_generator


def bench_wire() -> dict[str, Any]:
    """Trained parameters, megabytes of one message one way in each form, and the largest relative error of a tensor.

    Three tasks, compact gene encoder, no clinical token; numbers drawn from a normal distribution.
    """
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in trainable_state(full_model(3)).items()}
    generator = numpy_generator(0, "bench-wire")
    values: State = {name: np.asarray(generator.normal(size=shape), dtype=np.float32) for name, shape in shapes.items()}
    out: dict[str, Any] = {"parameters": sum(value.size for value in values.values())}
    for form in FORMS:
        packed = pack(form, values)
        out[f"mb_{form}"] = seal(packed)[SEALED].nbytes / 1e6
        back = unpack(form, packed, shapes)
        out[f"error_{form}"] = max(
            float(np.linalg.norm(back[name] - value) / np.linalg.norm(value)) for name, value in values.items()
        )
    return out
