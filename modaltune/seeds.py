"""Named seeds: every random draw of a study comes from ``(study seed, name, ...)``."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(root: int, *names: object) -> int:
    """A 63-bit seed that depends on the study seed and on what the draw is for."""
    text = "/".join([str(root), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(root: int, *names: object) -> torch.Generator:
    """A CPU generator for one named draw."""
    return torch.Generator().manual_seed(derive_seed(root, *names))


def numpy_generator(root: int, *names: object) -> np.random.Generator:
    """A numpy generator for one named draw."""
    return np.random.default_rng(derive_seed(root, *names))
