"""Named seeds: every random draw of a study comes from ``(study seed, name, ...)``."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(root: int, *names: object) -> int:
    """A 63-bit seed that depends on the study seed and on what the draw is for."""
    text = "/".join([str(root), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def fill_uniform(parameter: torch.Tensor, bound: float, generator: np.random.Generator) -> None:
    """Fill in place with uniform numbers in [-bound, bound), equal on every processor and torch version."""
    values = generator.uniform(-bound, bound, size=tuple(parameter.shape)).astype(np.float32)
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(values))


def numpy_generator(root: int, *names: object) -> np.random.Generator:
    """A numpy generator for one named draw."""
    return np.random.default_rng(derive_seed(root, *names))
