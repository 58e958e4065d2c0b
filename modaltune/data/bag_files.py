"""One slide's feature file, recognised from its content: HDF5 as TRIDENT, CLAM and STAMP write it, or ``.pt`` tensors.

Features stay in the file (:mod:`modaltune.data.features`); where the patches lie is read as the tool meant it
(:mod:`modaltune.data.bag_layouts`). File names of slides often carry a patient's barcode, so messages name a file only
by the words given as ``where``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from modaltune.data.bag_layouts import BagSource, place
from modaltune.data.cohort import Bag
from modaltune.data.features import StoredFeatures, TensorFeatures, file_version, load_tensors, stored_dataset
from modaltune.errors import FeatureFileError

_TORCH_STARTS = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")  # since torch 1.6, and before
_NUMBERS = ("float16", "float32", "float64", "int", "uint")
Contents = tuple[StoredFeatures, NDArray[np.generic], dict[str, Any], str]
"""Features, coords and attributes as stored, and the kind of number of the features."""


def open_bag(path: Path, *, where: str = "feature file", patch_size_level0: int | None = None) -> tuple[Bag, BagSource]:
    """Open one slide's bag. Features stay in the file; :func:`check_features` looks at their values.

    Args:
        path: HDF5 or ``.pt`` file.
        where: what messages call this file (never its name: slide names carry patient barcodes).
        patch_size_level0: patch edge in level-0 pixels, for files that do not state it.
    Returns:
        The bag and what the file says about its making.
    Raises:
        FeatureFileError: the file is absent, truncated, incomplete or empty, or its coordinates make no sense.
    """
    if not os.path.isfile(path):  # False also for a name that no file system takes
        raise FeatureFileError(f"{where}: no such file; check 'file' in the slides table and paths.features")
    try:
        path.open("rb").close()
    except OSError:
        raise FeatureFileError(f"{where}: cannot be read; check who may read it") from None
    features, coords, said, dtype = (_open_hdf5 if h5py.is_hdf5(path) else _open_tensors)(path, where)
    placed = place(coords, said, dtype=dtype, edge=patch_size_level0, where=where)
    return Bag(features=features, coords=placed.coords, patch_size_level0=placed.edge), placed.source


def _open_hdf5(path: Path, where: str) -> Contents:
    try:
        with h5py.File(path, "r") as file:
            features, coords = _dataset(file, ("features", "feats"), where), _dataset(file, ("coords",), where)
            shapes = [dataset.shape or () for dataset in (features, coords)]  # None: nothing was ever stored
            _require_shapes(shapes[0], str(features.dtype), shapes[1], str(coords.dtype), where)
            said = {**file.attrs, **features.attrs, **coords.attrs}
            places = stored_dataset(path, coords, where).read(np.arange(len(coords)))
            return stored_dataset(path, features, where), places, said, str(features.dtype)
    except (OSError, RuntimeError) as error:
        raise FeatureFileError(f"{where}: truncated or not an HDF5 file; copy or extract it again") from error


def _open_tensors(path: Path, where: str) -> Contents:
    import torch  # slow to import, and HDF5 does without

    with path.open("rb") as stream:
        known = stream.read(4) in _TORCH_STARTS
    if not known:
        raise FeatureFileError(f"{where}: truncated or not an HDF5 file, nor a .pt file of torch; extract it again")
    try:
        saved = load_tensors(path)
    except Exception as error:  # a damaged pickle may raise anything
        raise FeatureFileError(
            f"{where}: truncated, or holds more than tensors, which is not loaded; extract it again"
        ) from error
    if isinstance(saved, torch.Tensor):
        raise FeatureFileError(
            f"{where}: a bare tensor, which says nothing of where its patches lie; use the HDF5 file that the same"
            " tool writes with 'features' and 'coords'"
        )
    parts = [saved.get(name) if isinstance(saved, dict) else None for name in ("features", "coords")]
    features, coords = parts
    if not isinstance(features, torch.Tensor) or not isinstance(coords, torch.Tensor):
        raise FeatureFileError(f"{where}: expected a dict of two tensors, 'features' and 'coords'; extract it again")
    if any(part.is_meta or part.layout != torch.strided or part.is_quantized for part in (features, coords)):
        raise FeatureFileError(f"{where}: tensors without plain values; expected dense ones, extract it again")
    dtypes = [str(part.dtype).removeprefix("torch.") for part in (features, coords)]
    _require_shapes(tuple(features.shape), dtypes[0], tuple(coords.shape), dtypes[1], where)
    shape = (int(features.shape[0]), int(features.shape[1]))
    stored = TensorFeatures(path=path, where=where, shape=shape, version=file_version(path))
    return stored, coords.detach().numpy().copy(), {}, dtypes[0]


def _dataset(file: h5py.File, names: Sequence[str], where: str) -> h5py.Dataset:
    for name in names:
        if isinstance(file.get(name), h5py.Dataset):
            return file[name]
    raise FeatureFileError(  # other names in it may be those of patients
        f"{where}: dataset {names[0]!r} is missing (the file has {len(file)} others); expected 'features' (STAMP:"
        " 'feats') and 'coords'"
    )


def _require_shapes(
    features: tuple[int, ...], features_dtype: str, coords: tuple[int, ...], coords_dtype: str, where: str
) -> None:
    if len(features) != 2 or not features_dtype.startswith((*_NUMBERS, "bfloat", "float8")):
        raise FeatureFileError(
            f"{where}: 'features' is {features_dtype} with {len(features)} axes; expected numbers, patches x features"
        )
    if 0 in features:
        raise FeatureFileError(
            f"{where}: the bag is empty, shape {features}; "
            "remove the slide from the slides table or segment its tissue again"
        )
    if len(coords) != 2 or coords[1] != 2 or not coords_dtype.startswith(_NUMBERS):
        raise FeatureFileError(
            f"{where}: 'coords' is {coords_dtype} of shape {coords}; expected integers [N, 2], extract it again"
        )
    if coords[0] != features[0]:
        raise FeatureFileError(
            f"{where}: 'coords' has {coords[0]} rows but 'features' has {features[0]}; expected one per patch. "
            "Extract this slide again"
        )
