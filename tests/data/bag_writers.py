"""Feature files as the tools write them: names, kinds of numbers, chunks and attributes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray


def growing(file: h5py.File, name: str, values: NDArray[Any]) -> h5py.Dataset:
    """A dataset of a chunk a row that can grow, as TRIDENT and CLAM append to it."""
    shape = values.shape[1:]
    return file.create_dataset(name, data=values, chunks=(1, *shape), maxshape=(None, *shape))


def write_trident(
    path: Path,
    features: NDArray[Any],
    cells: NDArray[np.int64],
    *,
    scan: int = 20,
    encoder: str = "uni_v1",
    patch: int = 256,
    target: int = 20,
) -> Path:
    """``scan`` is the magnification of level 0."""
    edge = patch * scan // target
    with h5py.File(path, "w") as file:
        growing(file, "features", features).attrs.update({"encoder": encoder, "name": path.stem, "savetodir": "/x"})
        growing(file, "coords", cells * edge).attrs.update(
            {
                "patch_size": patch,
                "patch_size_level0": edge,
                "level0_magnification": scan,
                "target_magnification": target,
                "overlap": 0,
                "name": path.stem,
                "savetodir": "/x",
                "level0_width": 100_000,
                "level0_height": 100_000,
            }
        )
    return path


def write_clam(
    path: Path,
    features: NDArray[Any],
    cells: NDArray[np.int64],
    *,
    downsample: Any = (1.0, 1.0),
    attributes: bool = True,
) -> Path:
    """With ``attributes`` as in CLAM's patch files; its own feature files have none."""
    edge = 256 * int(np.mean(downsample))
    with h5py.File(path, "w") as file:
        growing(file, "features", features)
        coords = growing(file, "coords", cells * edge)
        if attributes:
            coords.attrs["patch_size"] = 256
            coords.attrs["patch_level"] = 0 if edge == 256 else 1
            coords.attrs["downsample"] = downsample
            coords.attrs["downsampled_level_dim"] = (50_000, 50_000)
            coords.attrs["level_dim"] = (50_000, 50_000)
            coords.attrs["name"] = path.stem
            coords.attrs["save_path"] = "/x"
    return path


def write_stamp(
    path: Path,
    features: NDArray[Any],
    cells: NDArray[np.int64],
    *,
    um: float = 128.0,
    pixels: int = 256,
    extractor: str = "uni",
    drift: float = 0.0,
) -> Path:
    """``drift``: how much less than ``um`` each step measures, for tiles are cut at whole pixels of the slide."""
    with h5py.File(path, "w") as file:
        file["coords"] = (cells * (um - drift)).astype(np.float32)
        file["feats"] = features.astype(np.float16)
        file.attrs["stamp_version"] = "2.3.0"
        file.attrs["extractor"] = extractor
        file.attrs["unit"] = "um"
        file.attrs["tile_size_um"] = um
        file.attrs["tile_size_px"] = pixels
        file.attrs["code_hash"] = "0123abcd"
        file.attrs["feat_type"] = "tile"
    return path


def write_tensors(path: Path, features: NDArray[Any], cells: NDArray[np.int64], *, edge: int = 256) -> Path:
    """The published ModalTune dict."""
    torch.save({"features": torch.from_numpy(features), "coords": torch.from_numpy(cells * edge)}, path)
    return path
