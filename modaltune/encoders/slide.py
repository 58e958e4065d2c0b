"""Frozen slide encoders behind one interface, found by name and verified by hash.

- ``small``: built-in LongNetViT, drawn from a named seed; needs no file.
- ``longnet``: Prov-GigaPath's slide encoder (12 layers, width 768), from ``longnet/slide_encoder.pth``, gated.
- ``titan``: TITAN's slide encoder with the code of its snapshot, from the folder ``titan``, gated.
- ``vit``: a plain vision transformer over patch features (timm blocks), from ``vit/model.safetensors``.

Weights are looked for in ``$MODALTUNE_ENCODERS`` (default: ``encoders`` in the cache folder) and never travel. Another
encoder is a subclass of :class:`SlideEncoder` and a line in :mod:`modaltune.encoders.registry`.

Shapes: B cases, N patches, T = N + 1 tokens with CLS first, W features per patch, D width.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from modaltune.errors import ConfigError, ModelFileError
from modaltune.storage import cache_folder, digest_file, digest_folder, load_state


@dataclass(frozen=True)
class Places:
    """Where the patches of B cases lie: ``cells [B, N, 2]`` and counts ``lengths [B]``, None = N for every case."""

    cells: Tensor
    lengths: Tensor | None = None

    def of(self, rows: Tensor) -> Places:
        """Those of some rows, ``[Q]``."""
        return Places(self.cells[rows], None if self.lengths is None else self.lengths[rows])

    @property
    def tokens(self) -> Tensor | None:
        """Tokens ``[B]`` of each case, CLS included; None when every case has N + 1."""
        return None if self.lengths is None else self.lengths + 1


class SlideEncoder(nn.Module, ABC):
    """What adapters need of a slide encoder: embedding, layers one by one, and an image vector at the end."""

    in_width: int
    width: int
    depth: int

    @abstractmethod
    def embed(self, patches: Tensor, cells: Tensor) -> Tensor:
        """Patches ``[B, N, W]`` on grid cells ``[B, N, 2]`` -> tokens ``[B, N, D]`` without CLS."""

    @abstractmethod
    def with_cls(self, tokens: Tensor) -> Tensor:
        """Put CLS in front: ``[B, N, D]`` -> ``[B, T, D]``."""

    @abstractmethod
    def run_layers(self, x: Tensor, first: int, last: int, places: Places) -> Tensor:
        """Layers ``first`` to ``last``, inclusive, on ``[B, T, D]``; tokens beyond a case's patches are padding."""

    def image(self, x: Tensor, places: Places) -> Tensor:
        """Image vector ``[B, 1, D]`` of the last layer's output; CLS unless the encoder pools otherwise."""
        return x[:, :1]

    def slide_vector(self, x: Tensor, places: Places) -> Tensor:
        """What the encoder alone says of each slide, ``[B, D]``, from the last layer's output."""
        return self.image(x, places)[:, 0]


def encoders_folder() -> Path:
    """Where gated or private weights lie: ``$MODALTUNE_ENCODERS`` or ``encoders`` in the cache folder."""
    return Path(os.environ.get("MODALTUNE_ENCODERS") or cache_folder() / "encoders").expanduser()


def verified_file(name: str, file: str, sha256: str) -> Path:
    """The weights of an encoder, by hash.

    Raises:
        ModelFileError: the file is absent, or differs from what the study names.
    """
    path = encoders_folder() / name / file
    if not path.is_file():
        raise ModelFileError(
            f"slide encoder {name!r}: no file {path}; put the weights there or name their folder in MODALTUNE_ENCODERS"
        )
    found = digest_file(path)
    if found != sha256:
        raise ModelFileError(
            f"slide encoder {name!r}: {file} has sha256 {found[:12]}... but the study names {sha256[:12]}...; a part is"
            " missing or it is another version, download it again"
        )
    return path


def verified_folder(name: str, sha256: str) -> Path:
    """A model folder of an encoder whose code is run: every file is part of the hash.

    Raises:
        ModelFileError: the folder is absent, or differs from what the study names.
    """
    path = encoders_folder() / name
    if not (path / "config.json").is_file():
        raise ModelFileError(
            f"slide encoder {name!r}: no model folder {path}; put the snapshot there or name its parent in"
            " MODALTUNE_ENCODERS"
        )
    found = digest_folder(path)
    if found != sha256:
        raise ModelFileError(
            f"slide encoder {name!r}: the folder has sha256 {found[:12]}... but the study names {sha256[:12]}...; its"
            " code is not run: a file is missing, changed or of another version, download the snapshot again"
        )
    return path


def read_checkpoint(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Tensors of a ``.pth`` or safetensors file; ``key`` names the entry of a ``.pth`` that holds them."""
    if path.suffix == ".safetensors":
        return load_state(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = content[key] if key is not None else content
        return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # torch.load raises a dozen kinds for a damaged file
        raise ModelFileError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); download it again"
        ) from error


def require_sizes(name: str, found: tuple[int, int, int], asked: tuple[int, int, int], patches_of: str) -> None:
    """Refuse a study whose (features per patch, width, depth) are not those of the encoder."""
    if found != asked:
        raise ConfigError(
            f"slides: encoder {name!r} has in_width {found[0]}, width {found[1]} and depth {found[2]}, but the study"
            f" says {asked[0]}, {asked[1]} and {asked[2]}; extract features with {patches_of}"
        )


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load every tensor; one that is missing, extra or of another shape is an error that counts and names them."""
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for problem, names in (("missing", set(own) - set(state)), ("unexpected", set(state) - set(own))):
        if names:
            raise ModelFileError(f"{where}: {len(names)} tensor(s) {problem} of {len(own)}, first {min(names)}")
    for name, shape in own.items():
        if tuple(state[name].shape) != shape:
            raise ModelFileError(f"{where}: {name} has shape {tuple(state[name].shape)}, expected {shape}")
    module.load_state_dict(dict(state), strict=True, assign=True)
    module.float()  # some are published in half precision
