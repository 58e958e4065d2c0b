"""Patch features that stay on disk: only the rows that are asked for are read.

Where the rows of a file lie as they are (contiguous HDF5, or HDF5 in uncompressed chunks of whole rows, as TRIDENT and
CLAM write it) they are memory-mapped; other HDF5 is read slab by slab, ``.pt`` files through torch's memory map. No
file stays open, and a map lives no longer than one call, so memory is that of the rows returned.

Shapes: N patches, W features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

from modaltune.errors import FeatureFileError

SLAB_BYTES = 2**23
"""Bytes of float32 features that are read at a time when a whole bag passes through."""
Rows = slice | NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredFeatures(ABC):
    """``[N, W]`` features in a file, float32 when read; takes a slice or ascending row numbers, as an array does.

    Attributes:
        where: what messages call the file.
        version: of the file when it was opened, see :func:`file_version`; another one is refused.
        block: rows that the file can only give together.
    """

    path: Path
    where: str
    shape: tuple[int, int]
    version: tuple[int, int]
    block: int = 1

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Rows) -> NDArray[np.float32]:
        wanted = np.arange(len(self))[rows]
        if not len(wanted):
            return np.zeros((0, self.shape[1]), dtype=np.float32)
        try:
            self.require_version(self.version)
            return _single(self.read(wanted))
        except (OSError, RuntimeError) as error:
            raise FeatureFileError(f"{self.where}: truncated or damaged; copy or extract it again") from error

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def require_version(self, version: tuple[int, int]) -> None:
        """Refuse a file that is not as it was."""
        if file_version(self.path) != version:
            raise FeatureFileError(f"{self.where}: changed since it was checked; start again with the new file")

    @abstractmethod
    def read(self, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        """Ascending rows, at least one, as the file has them."""


def file_version(path: Path) -> tuple[int, int]:
    """Time of the last change in nanoseconds, and size in bytes."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


Features = NDArray[np.float32] | StoredFeatures


def slabs(features: Features) -> Iterator[NDArray[np.float32]]:
    """All rows in order, about :data:`SLAB_BYTES` at a time."""
    rows = _slab_rows(features.shape[1], features.block if isinstance(features, StoredFeatures) else 1)
    for start in range(0, len(features), rows):
        yield features[start : start + rows]


def _single(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """A copy in float32; torch turns half precision several times faster than numpy."""
    if values.dtype == np.float16:
        import torch  # slow to import, so only where it is used

        half: NDArray[np.float32] = torch.from_numpy(values).to(torch.float32).numpy()
        return half
    with np.errstate(over="ignore"):
        return np.array(values, dtype=np.float32)


def _slab_rows(width: int, block: int) -> int:
    return block * max(1, SLAB_BYTES // (4 * width * block))


@dataclass(frozen=True, kw_only=True, eq=False)
class MappedFeatures(StoredFeatures):
    """Rows that lie uncompressed in the file.

    Attributes:
        starts: byte at which each run of ``run`` rows begins.
    """

    dtype: np.dtype[Any]
    starts: NDArray[np.int64]
    run: int

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        width = self.shape[1] * self.dtype.itemsize
        places = self.starts[rows // self.run] + rows % self.run * width
        first, end = int(places.min()), int(places.max()) + width
        stored = np.asarray(np.memmap(self.path, np.uint8, mode="c", offset=first, shape=(end - first,)))
        if end - first == len(rows) * width and len(self.starts) == 1:
            return stored.view(self.dtype).reshape(len(rows), -1)
        out = np.empty((len(rows), width), dtype=np.uint8)
        for row, place in zip(out, (places - first).tolist(), strict=True):
            row[:] = stored[place : place + width]
        return out.view(self.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class ChunkedFeatures(StoredFeatures):
    """Rows of an HDF5 dataset that only HDF5 can read; chunks without a wanted row are passed over."""

    dtype: np.dtype[Any]
    name: str

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        out = np.empty((len(rows), self.shape[1]), dtype=self.dtype)
        step = _slab_rows(self.shape[1], self.block)
        with h5py.File(self.path, "r") as file:
            for start in range(int(rows[0]) // step * step, int(rows[-1]) + 1, step):
                inside = slice(*np.searchsorted(rows, (start, start + step)))
                chosen = rows[inside]
                if len(chosen):
                    out[inside] = file[self.name][chosen[0] : chosen[-1] + 1][chosen - chosen[0]]
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorFeatures(StoredFeatures):
    """The entry ``features`` of a dict of tensors that torch saved."""

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        import torch

        values = load_tensors(self.path)["features"]
        if rows[-1] - rows[0] == len(rows) - 1:
            chosen = values[int(rows[0]) : int(rows[-1]) + 1]
        else:
            chosen = values[torch.from_numpy(rows)]
        out: NDArray[np.generic] = chosen.to(torch.float32).numpy()
        return out


def load_tensors(path: Path) -> Any:
    """What torch saved in a file, memory-mapped where its form allows; code in the file is never run."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the form before torch 1.6 cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)


def stored_dataset(path: Path, dataset: h5py.Dataset, where: str) -> MappedFeatures | ChunkedFeatures:
    """A two-dimensional HDF5 dataset, read in the fastest way that its layout allows."""
    shape, version, dtype = (int(dataset.shape[0]), int(dataset.shape[1])), file_version(path), dataset.dtype
    starts, run = _run_starts(dataset)
    if len(starts):
        return MappedFeatures(path=path, where=where, shape=shape, version=version, dtype=dtype, starts=starts, run=run)
    chunk = dataset.chunks[0] if dataset.chunks else 1
    return ChunkedFeatures(
        path=path, where=where, shape=shape, version=version, dtype=dtype, name=dataset.name, block=chunk
    )


def _run_starts(dataset: h5py.Dataset) -> tuple[NDArray[np.int64], int]:
    """Byte addresses of runs of whole rows, and rows in a run; no address when the rows cannot be mapped."""
    nothing = np.zeros(0, dtype=np.int64)
    rows, width = dataset.shape
    if dataset.dtype.kind not in "iuf" or dataset.external or dataset.is_virtual:
        return nothing, 1
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        return (nothing, 1) if offset is None else (np.array([offset], dtype=np.int64), rows)
    run = dataset.chunks[0]
    filtered = dataset.id.get_create_plist().get_nfilters() > 0
    if filtered or dataset.chunks[1] != width or dataset.file.userblock_size:
        return nothing, 1
    starts = np.full(-(-rows // run), -1, dtype=np.int64)

    def note(chunk: Any) -> None:
        starts[chunk.chunk_offset[0] // run] = chunk.byte_offset

    dataset.id.chunk_iter(note)
    return (starts, run) if (starts >= 0).all() else (nothing, 1)
