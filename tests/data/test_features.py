from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modaltune.data import features as module
from modaltune.data.features import (
    ChunkedFeatures,
    MappedFeatures,
    StoredFeatures,
    TensorFeatures,
    file_version,
    slabs,
    stored_dataset,
)

ROWS, WIDTH = 37, 5
PLAIN = np.random.default_rng(0).normal(size=(ROWS, WIDTH))
LAYOUTS: dict[str, tuple[type[StoredFeatures], dict[str, object]]] = {
    "contiguous": (MappedFeatures, {}),
    "a chunk a row": (MappedFeatures, {"chunks": (1, WIDTH), "maxshape": (None, WIDTH)}),
    "whole rows": (MappedFeatures, {"chunks": (8, WIDTH)}),
    "narrow chunks": (ChunkedFeatures, {"chunks": (8, 2)}),
    "compressed": (ChunkedFeatures, {"chunks": (8, WIDTH), "compression": "gzip"}),
    "checksums": (ChunkedFeatures, {"chunks": (4, WIDTH), "fletcher32": True}),
}


def opened(path: Path) -> StoredFeatures:
    with h5py.File(path, "r") as file:
        return stored_dataset(path, file["features"], "x")


def write(path: Path, layout: str, dtype: str, userblock: int = 0) -> np.ndarray:
    values = PLAIN.astype(dtype)
    with h5py.File(path, "w", userblock_size=userblock) as file:
        file["before"] = np.arange(3, dtype=np.uint8)
        file.create_dataset("features", data=values, **LAYOUTS[layout][1])
    return values.astype(np.float32)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", "<i2"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_read_from_disk_equals_a_plain_read(
    layout: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLAB_BYTES", 4 * WIDTH * 10)
    expected, features = write(tmp_path / "a", layout, dtype), opened(tmp_path / "a")
    assert type(features) is LAYOUTS[layout][0]
    assert (len(features), features.shape) == (ROWS, (ROWS, WIDTH))
    for rows in (slice(None), slice(3, 30), slice(5, 5), np.array([0, 1, 17, 36]), np.array([36]), np.arange(9, 12)):
        found = features[rows]
        assert found.dtype == np.float32
        assert found.flags.writeable
        np.testing.assert_array_equal(found, expected[rows])
    np.testing.assert_array_equal(np.asarray(features), expected)
    parts = list(slabs(features))
    assert len(parts) > 1
    np.testing.assert_array_equal(np.concatenate(parts), expected)


@given(rows=st.sets(st.integers(0, ROWS - 1), min_size=1), layout=st.sampled_from(sorted(LAYOUTS)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_subset_of_rows_is_that_of_the_array(rows: set[int], layout: str, tmp_path: Path) -> None:
    path = tmp_path / f"{layout}.h5"
    expected = PLAIN.astype(np.float32) if path.exists() else write(path, layout, "<f4")
    chosen = np.array(sorted(rows))
    np.testing.assert_array_equal(opened(path)[chosen], expected[chosen])


@pytest.mark.parametrize("layout", ["contiguous", "a chunk a row"])
def test_a_user_block_before_the_file_moves_nothing(layout: str, tmp_path: Path) -> None:
    expected = write(tmp_path / "a", layout, "<f4", userblock=1024)
    np.testing.assert_array_equal(opened(tmp_path / "a")[:], expected)


def unwritten(file: h5py.File) -> None:
    file.create_dataset("features", (ROWS, WIDTH), "f4", fillvalue=2.0)


def half_written(file: h5py.File) -> None:
    file.create_dataset("features", (ROWS, WIDTH), "f4", chunks=(8, WIDTH), fillvalue=2.0)
    file["features"][:8] = 2.0


def elsewhere(file: h5py.File) -> None:
    Path(file.filename).with_suffix(".raw").write_bytes(np.full((ROWS, WIDTH), 2.0, dtype="<f4").tobytes())
    parts = [(str(Path(file.filename).with_suffix(".raw")), 0, 4 * ROWS * WIDTH)]
    file.create_dataset("features", (ROWS, WIDTH), "f4", external=parts)


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((ROWS, WIDTH), "f4")
    file.create_virtual_dataset("features", layout, fillvalue=2.0)


def compact(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((ROWS, WIDTH))
    found = h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, space, plist)
    found.write(h5py.h5s.ALL, h5py.h5s.ALL, np.full((ROWS, WIDTH), 2.0, dtype="<f4"))


@pytest.mark.parametrize("make", [unwritten, half_written, elsewhere, virtual, compact])
def test_rows_that_lie_nowhere_in_the_file_are_left_to_hdf5(make: Callable[[h5py.File], None], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file)
    features = opened(tmp_path / "a.h5")
    assert isinstance(features, ChunkedFeatures)
    np.testing.assert_array_equal(features[:], np.full((ROWS, WIDTH), 2.0))


@pytest.mark.parametrize("rows", [np.array([0, 1, 17, 36]), slice(4, 20), slice(None)])
def test_tensors_on_disk_equal_the_array(rows: slice | np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"features": torch.from_numpy(PLAIN)}, path)
    features = TensorFeatures(path=path, where="x", shape=(ROWS, WIDTH), version=file_version(path))
    np.testing.assert_array_equal(features[rows], PLAIN.astype(np.float32)[rows])


def test_only_chunks_with_wanted_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLAB_BYTES", 1)
    write(tmp_path / "a", "compressed", "<f4")
    features, asked = opened(tmp_path / "a"), []
    read = h5py.Dataset.__getitem__

    def spy(dataset: h5py.Dataset, rows: slice) -> np.ndarray:
        asked.append((rows.start, rows.stop))
        return np.asarray(read(dataset, rows))

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    np.testing.assert_array_equal(features[np.array([9, 11, 33])], PLAIN.astype(np.float32)[[9, 11, 33]])
    assert asked == [(9, 12), (33, 34)]
