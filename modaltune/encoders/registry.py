"""The slide encoder that a study names."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from modaltune.encoders.longnet import LongNetConfig, LongNetViT
from modaltune.encoders.slide import (
    SlideEncoder,
    encoders_folder,
    load_strictly,
    read_checkpoint,
    require_sizes,
    verified_file,
    verified_folder,
)
from modaltune.encoders.small import small_slide_encoder
from modaltune.encoders.titan import titan_slide_encoder
from modaltune.encoders.vit import ViTSlideEncoder
from modaltune.errors import ModelFileError
from modaltune.storage import digest_file, digest_folder, digest_state


def _longnet(in_width: int, width: int, depth: int) -> LongNetViT:
    config = LongNetConfig()
    found = (config.in_width, config.width, config.depth)
    require_sizes("longnet", found, (in_width, width, depth), "Prov-GigaPath's tile encoder")
    return LongNetViT(config)


class _SizesOnly(SlideEncoder):
    """Stands for an encoder whose code is not on this machine; a model around it can be averaged, not run."""

    def __init__(self, in_width: int, width: int, depth: int) -> None:
        super().__init__()
        self.in_width, self.width, self.depth = in_width, width, depth

    def _refuse(self, *_: Any, **__: Any) -> Tensor:
        raise ModelFileError("slide encoder: its code and weights are not on this machine; run the model at a site")

    embed = with_cls = run_layers = _refuse


_MODULES: dict[str, Callable[[int, int, int], SlideEncoder]] = {
    "small": lambda in_width, width, depth: small_slide_encoder(in_width, width=width, depth=depth),
    "longnet": _longnet,
    "titan": _SizesOnly,
    "vit": ViTSlideEncoder,
}
_FILES = {"longnet": ("slide_encoder.pth", "model"), "vit": ("model.safetensors", None)}  # and the entry inside
_FOLDERS = {"titan": titan_slide_encoder}


def slide_encoder(name: str, *, in_width: int, width: int, depth: int, sha256: str) -> SlideEncoder:
    """A frozen slide encoder in evaluation mode.

    Args:
        name: ``small``, ``longnet``, ``titan`` or ``vit``.
        in_width: W, features per patch.
        width: D.
        depth: number of layers.
        sha256: of the weights file, for ``titan`` of its folder, for ``small`` of its names, shapes and bytes.
    Raises:
        ModelFileError: weights absent, truncated, incomplete or with another hash.
        ConfigError: sizes that the encoder does not have.
    """
    if name in _FILES or name in _FOLDERS:
        return _from_disk(name, in_width, width, depth, sha256)
    encoder = _MODULES[name](in_width, width, depth)
    found = digest_state(encoder.state_dict())
    if found != sha256:
        raise ModelFileError(
            f"slide encoder {name!r}: sha256 {found[:12]}... differs from the study's {sha256[:12]}...; use the release"
            " of this project that the study was made with"
        )
    return encoder


@lru_cache(maxsize=1)
def _from_disk(name: str, in_width: int, width: int, depth: int, sha256: str) -> SlideEncoder:
    """Read once and shared: frozen weights are the same for every model of a process."""
    if name in _FOLDERS:
        return _FOLDERS[name](verified_folder(name, sha256), in_width, width, depth)
    encoder = blank_slide_encoder(name, in_width=in_width, width=width, depth=depth)
    file, entry = _FILES[name]
    path = verified_file(name, file, sha256)
    load_strictly(encoder, read_checkpoint(path, entry), str(path))
    return encoder.requires_grad_(False).eval()


def blank_slide_encoder(name: str, *, in_width: int, width: int, depth: int) -> SlideEncoder:
    """The module without weights, on the meta device: all that a coordinator without the gated files needs."""
    with torch.device("meta"):
        return _MODULES[name](in_width, width, depth).requires_grad_(False).eval()


def weights_are_here(name: str) -> bool:
    """Whether this machine has the weights of an encoder."""
    file = "config.json" if name in _FOLDERS else _FILES[name][0] if name in _FILES else None
    return file is None or (encoders_folder() / name / file).is_file()


def encoder_digest(name: str, *, in_width: int, width: int, depth: int) -> str:
    """SHA-256 of an encoder as this machine has it, for a study that is to name it.

    Raises:
        ModelFileError: its weights are not here.
    """
    if not weights_are_here(name):
        raise ModelFileError(
            f"slide encoder {name!r}: no weights in {encoders_folder() / name}; put them there or name their parent in"
            " MODALTUNE_ENCODERS"
        )
    if name in _FOLDERS:
        return digest_folder(encoders_folder() / name)
    if name in _FILES:
        return digest_file(encoders_folder() / name / _FILES[name][0])
    return digest_state(_MODULES[name](in_width, width, depth).state_dict())
