"""Slides and patch encoders small enough for tests: real TIFF files that OpenSlide reads, real timm models."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from modaltune import _torchvision

Pixels = NDArray[np.uint8]
GLASS, PINK = (244, 242, 245), (214, 110, 170)
TILE = 64


def painted(height: int, width: int, *boxes: tuple[int, int, int, int]) -> Pixels:
    """Glass with boxes (left, top, right, bottom) of tissue, grained as tissue is."""
    draw = np.random.default_rng(0)
    picture = np.full((height, width, 3), GLASS, dtype=np.int64)
    for left, top, right, bottom in boxes:
        picture[top:bottom, left:right] = PINK
    return np.clip(picture + draw.integers(-4, 5, picture.shape), 0, 255).astype(np.uint8)


def write_slide(path: Path, levels: Sequence[Pixels], mpp: float | None = 0.5) -> Path:
    """A tiled, uncompressed TIFF 6.0 file: one directory a level, the resolution in pixels per centimetre."""
    data, directories = bytearray(b"II*\0\0\0\0\0"), []
    for level, pixels in enumerate(levels):
        height, width = pixels.shape[:2]
        tiles = [_tile(pixels, x, y) for y in range(0, height, TILE) for x in range(0, width, TILE)]
        offsets = []
        for tile in tiles:
            offsets.append(len(data))
            data += tile
        tags = {254: (4, [int(level > 0)]), 256: (4, [width]), 257: (4, [height]), 258: (3, [8, 8, 8]), 259: (3, [1])}
        tags |= {262: (3, [2]), 277: (3, [3]), 284: (3, [1]), 322: (3, [TILE]), 323: (3, [TILE])}
        tags |= {324: (4, offsets), 325: (4, [len(tile) for tile in tiles])}
        if mpp is not None:
            per_cm = [round(1e4 / mpp * 1000), 1000]
            tags |= {282: (5, per_cm), 283: (5, per_cm), 296: (3, [3])}
        directories.append(tags)
    link = 4
    for tags in directories:
        data += b"\0" * (len(data) % 2)
        struct.pack_into("<I", data, link, start := len(data))
        data += b"\0" * (2 + 12 * len(tags) + 4)
        link = start + 2 + 12 * len(tags)
        struct.pack_into("<H", data, start, len(tags))
        for number, (tag, (kind, values)) in enumerate(sorted(tags.items())):
            packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
            place = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", len(data))
            data += b"" if len(packed) <= 4 else packed
            count = len(values) // 2 if kind == 5 else len(values)
            struct.pack_into("<HHI4s", data, start + 2 + 12 * number, tag, kind, count, place)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _tile(pixels: Pixels, x: int, y: int) -> bytes:
    tile = np.zeros((TILE, TILE, 3), dtype=np.uint8)
    part = pixels[y : y + TILE, x : x + TILE]
    tile[: part.shape[0], : part.shape[1]] = part
    return tile.tobytes()


def timm_model(architecture: str = "test_vit", **options: Any) -> Any:
    _torchvision.install()
    import timm

    torch.manual_seed(0)
    return timm.create_model(architecture, **{"num_classes": 0, **options}).eval()


def write_encoder(folder: Path, model: Any, architecture: str = "test_vit", **model_args: Any) -> Path:
    """A model folder as the hub lays it out."""
    folder.mkdir(parents=True)
    settings = {"input_size": [3, 32, 32], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "crop_pct": 1.0}
    config = {"architecture": architecture, "num_classes": 0, "model_args": model_args, "pretrained_cfg": settings}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder
