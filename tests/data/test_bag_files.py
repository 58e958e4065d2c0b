from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modaltune.data.bag_files import open_bag
from modaltune.data.bag_layouts import BagSource, place
from modaltune.data.bags import BagFiles, SlideFile, check_features, read_bag
from modaltune.encoders.positions import grid_cells
from modaltune.errors import FeatureFileError
from tests.data.bag_writers import write_clam, write_stamp, write_tensors, write_trident

PATIENT = "TCGA-AA-1234"
DRAW = np.random.default_rng(0)
PATCHES, WIDTH = 40, 6
FEATURES = DRAW.normal(size=(PATCHES, WIDTH)).astype(np.float16)
CELLS = np.unique(DRAW.integers(0, 300, size=(4 * PATCHES, 2)), axis=0)[:PATCHES]
WRITERS: dict[str, Callable[[Path], Path]] = {
    "TRIDENT": lambda path: write_trident(path, FEATURES, CELLS),
    "CLAM": lambda path: write_clam(path, FEATURES, CELLS),
    "STAMP": lambda path: write_stamp(path, FEATURES, CELLS),
    "plain": lambda path: write_tensors(path, FEATURES, CELLS),
    "plain HDF5": lambda path: write_clam(path, FEATURES, CELLS, attributes=False),
}


def cells_of(path: Path) -> np.ndarray:
    bag, _ = open_bag(path, patch_size_level0=256)
    return grid_cells(bag.coords, bag.patch_size_level0, 1000, "")


@pytest.mark.parametrize("tool", WRITERS)
def test_the_same_case_gives_the_same_bag_through_every_tool_whatever_the_file_is_called(
    tool: str, tmp_path: Path
) -> None:
    bag = read_bag(WRITERS[tool](tmp_path / "slide.bin"), patch_size_level0=256)
    np.testing.assert_array_equal(bag.features, FEATURES.astype(np.float32))
    np.testing.assert_array_equal(bag.coords, CELLS * 256)
    assert (bag.patch_size_level0, bag.coords.dtype) == (256, np.int64)
    assert isinstance(bag.features, np.ndarray)
    assert bag.features.dtype == np.float32


@pytest.mark.parametrize("tool", WRITERS)
def test_the_layout_is_recognised_from_the_content(tool: str, tmp_path: Path) -> None:
    _, source = open_bag(WRITERS[tool](tmp_path / "slide"), patch_size_level0=256)
    said = {
        "TRIDENT": BagSource(layout="TRIDENT", dtype="float16", encoder="uni_v1", patch_size=256, mpp=0.5),
        "STAMP": BagSource(layout="STAMP", dtype="float16", encoder="uni", patch_size=256, mpp=0.5),
    }
    assert source == said.get(tool, BagSource(layout=tool.split()[0], dtype="float16"))


def test_scans_at_20x_and_40x_give_the_same_cells_through_every_tool(tmp_path: Path) -> None:
    files = [
        write_trident(tmp_path / "a", FEATURES, CELLS, scan=20),
        write_trident(tmp_path / "b", FEATURES, CELLS, scan=40),
        write_clam(tmp_path / "c", FEATURES, CELLS, downsample=(1.0, 1.0)),
        write_clam(tmp_path / "d", FEATURES, CELLS, downsample=(4.000123, 4.0002)),
        write_clam(tmp_path / "e", FEATURES, CELLS, downsample=2.0),
        write_clam(tmp_path / "h", FEATURES, CELLS, downsample=(16.0031, 16.0018)),
        write_stamp(tmp_path / "f", FEATURES, CELLS, um=128, pixels=256),
        write_stamp(tmp_path / "g", FEATURES, CELLS, um=256, pixels=224),
    ]
    for file in files:
        np.testing.assert_array_equal(cells_of(file), CELLS)


@given(mpp=st.floats(0.2, 1.1), um=st.sampled_from([64.0, 112.0, 128.0, 256.0]), start=st.integers(0, 100))
@settings(max_examples=40)
def test_stamps_positions_are_grid_cells_however_pixels_are_rounded(mpp: float, um: float, start: int) -> None:
    step = round(um / mpp) * mpp  # a tile is a whole number of pixels of the slide
    cells = np.stack([np.arange(start, start + 300), np.arange(300)[::-1]], axis=1)
    said = {"tile_size_um": um, "unit": "um", "tile_size_px": 224}
    placed = place((cells * step).astype(np.float32), said, dtype="float16", where="")
    np.testing.assert_array_equal(np.diff(placed.coords, axis=0) // 224, np.diff(cells, axis=0))
    assert abs(placed.coords[0, 0] // 224 - start) <= 1


def test_what_else_a_file_holds_is_not_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for patient in ("MRN-0047-Mueller", "MRN-0048-Schmidt"):
            file.create_group(patient)
    with pytest.raises(FeatureFileError, match="'features' is missing \\(the file has 2 others\\)") as caught:
        open_bag(tmp_path / "all.h5", where="row 1")
    assert "MRN" not in str(caught.value)


def test_a_file_that_may_not_be_read_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_trident(tmp_path / "TCGA-AB", FEATURES, CELLS, scan=20)

    def refused(self: Path, mode: str = "r") -> IO[bytes]:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(FeatureFileError, match=r"^row 1: cannot be read") as caught:
        open_bag(path, where="row 1")
    assert caught.value.__suppress_context__
    assert path.stem not in str(caught.value)


def test_the_early_form_of_stamp_is_read(tmp_path: Path) -> None:
    path = write_stamp(tmp_path / "a", FEATURES, CELLS)
    with h5py.File(path, "r+") as file:
        file.attrs["tile_size"] = file.attrs["tile_size_um"]
        for name in ("tile_size_um", "tile_size_px", "feat_type"):
            del file.attrs[name]
    np.testing.assert_array_equal(cells_of(path), CELLS)


def test_tensors_of_early_torch_and_in_bfloat16_are_read(tmp_path: Path) -> None:
    path, values = tmp_path / "old.pt", torch.from_numpy(FEATURES).bfloat16()
    saved = {"features": values, "coords": torch.from_numpy(CELLS * 256)}
    torch.save(saved, path, _use_new_zipfile_serialization=False)
    bag, source = open_bag(path, patch_size_level0=256)
    np.testing.assert_array_equal(np.asarray(bag.features), values.float().numpy())
    np.testing.assert_array_equal(bag.features[np.array([3, 9])], values[[3, 9]].float().numpy())
    assert source.dtype == "bfloat16"


class Runs:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("was-run"),))


def save(value: Any) -> Callable[[Path], object]:
    return lambda path: torch.save(value, path)


def change(name: str | None, **attributes: Any) -> Callable[[Path], object]:
    """Set attributes (None = delete) of a STAMP file or, by ``name``, of a dataset of a TRIDENT file."""

    def work(path: Path) -> None:
        write_stamp(path, FEATURES, CELLS) if name is None else write_trident(path, FEATURES, CELLS)
        with h5py.File(path, "r+") as file:
            target = file if name is None else file[name]
            for key, value in attributes.items():
                if value is None:
                    del target.attrs[key]
                else:
                    target.attrs[key] = value

    return work


def stamp_coords(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    def work(path: Path) -> None:
        write_stamp(path, FEATURES, CELLS)
        with h5py.File(path, "r+") as file:
            file["coords"][...] = change(np.asarray(file["coords"]))

    return work


def cut(writer: str, keep: float) -> Callable[[Path], object]:
    def work(path: Path) -> None:
        data = WRITERS[writer](path).read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])

    return work


def without_space(name: str) -> Callable[[Path], object]:
    def work(path: Path) -> None:
        write_trident(path, FEATURES, CELLS)
        with h5py.File(path, "r+") as file:
            del file[name]
            file[name] = h5py.Empty("float32")

    return work


F, C = torch.from_numpy(FEATURES), torch.from_numpy(CELLS)
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "bare tensor": (save(F), "a bare tensor, which says nothing of where its patches lie; use the HDF5 file"),
    "no coords": (save({"features": F}), "expected a dict of two tensors"),
    "lists": (save({"features": [1.0], "coords": [2.0]}), "expected a dict of two tensors"),
    "code": (save({"features": F, "coords": C, "more": Runs()}), "holds more than tensors"),
    "bfloat16 coords": (save({"features": F, "coords": C.bfloat16()}), r"'coords' is bfloat16 .*expected integers"),
    "meta tensors": (save({"features": F.to("meta"), "coords": C}), "tensors without plain values; expected dense"),
    "sparse tensors": (save({"features": F.to_sparse(), "coords": C}), "tensors without plain values"),
    "features of no space": (without_space("features"), "'features' is float32 with 0 axes"),
    "coords of no space": (without_space("coords"), r"'coords' is float32 of shape \(\)"),
    "one coordinate": (save({"features": F, "coords": C[:, :1]}), r"expected integers \[N, 2\]"),
    "short coords": (save({"features": F, "coords": C[:5]}), "5 rows but 'features' has 40"),
    "no patches": (save({"features": F[:0], "coords": C[:0]}), "the bag is empty"),
    "half pixels": (save({"features": F, "coords": C + 0.5}), "not whole numbers"),
    "cut tensors": (cut("plain", 0.6), "truncated"),
    "cut TRIDENT": (cut("TRIDENT", 0.6), "truncated"),
    "cut STAMP": (cut("STAMP", 0.6), "truncated"),
    "nothing": (lambda path: path.touch(), "truncated"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n"), "truncated or not an HDF5 file, nor a .pt"),
    "whole slide": (change(None, feat_type="slide"), "STAMP features of a whole slide or patient"),
    "no tile size": (change(None, tile_size_um=None), "'tile_size' must be one positive number"),
    "negative tile": (change(None, tile_size_um=-1.0), "'tile_size_um' must be one positive number"),
    "wrong tile": (change(None, tile_size_um=173.0), "not on a grid of tile_size_um = 173"),
    "off the grid": (stamp_coords(lambda xy: xy + DRAW.uniform(0, 99, xy.shape)), "not on a grid"),
    "NaN position": (stamp_coords(lambda xy: np.where(xy == xy.max(), np.nan, xy)), "NaN or infinity"),
    "two downsamples": (change("coords", patch_size_level0=None, downsample=(1.0, 2.0)), "'downsample' must be one"),
    "text edge": (change("coords", patch_size_level0="wide"), "'patch_size_level0' must be one positive number"),
    "wrong scale": (change("coords", level0_magnification=40), "patch_size_level0 is 256 but .* make it 512"),
    "no magnification": (change("coords", target_magnification=0), "'target_magnification' must be one positive"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_makes_no_sense_is_one_line_without_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"{PATIENT}.h5"
    BROKEN[name][0](path)
    with pytest.raises(FeatureFileError, match=BROKEN[name][1]) as caught:
        read_bag(path, where="slides.csv, file of row 3", patch_size_level0=256)
    text = str(caught.value)
    assert text.startswith("slides.csv, file of row 3: ")
    assert PATIENT not in text
    assert "\n" not in text
    assert not Path("was-run").exists()


@pytest.mark.parametrize("tool", ["plain", "plain HDF5"])
def test_a_file_without_a_patch_edge_needs_it_in_the_site_file(tool: str, tmp_path: Path) -> None:
    path = WRITERS[tool](tmp_path / "a")
    with pytest.raises(FeatureFileError, match=r"set patch_size_level0 under \[features\] in site.toml"):
        open_bag(path)
    assert open_bag(path, patch_size_level0=512)[0].patch_size_level0 == 512


def test_what_a_file_states_comes_before_what_the_site_file_states(tmp_path: Path) -> None:
    bag, _ = open_bag(write_trident(tmp_path / "a", FEATURES, CELLS, scan=40), patch_size_level0=256)
    assert bag.patch_size_level0 == 512


def site(*paths: Path, **options: Any) -> BagFiles:
    files = {f"{PATIENT}-{row}": [SlideFile(path, f"file of row {row}")] for row, path in enumerate(paths, start=1)}
    return BagFiles(files, **options)


MIXED: dict[str, tuple[dict[str, Any], str]] = {
    "encoder": ({"encoder": "gigapath"}, "row 3: patch encoder gigapath but uni_v1 in file of row 1"),
    "edge": ({"patch": 512}, "row 3: patch edge in pixels 512 but 256 in file of row 1"),
    "resolution": ({"target": 10}, "row 3: micrometres per pixel of the patches 1.0 but 0.5 in file of row 1"),
}


@pytest.mark.parametrize("what", MIXED)
def test_a_site_that_mixes_kinds_of_patches_is_refused_naming_both(what: str, tmp_path: Path) -> None:
    options, message = MIXED[what]
    paths = [write_trident(tmp_path / name, FEATURES, CELLS) for name in "ab"]
    with pytest.raises(FeatureFileError, match=message):
        site(*paths, write_trident(tmp_path / "c", FEATURES, CELLS, **options))


def test_scanners_and_tools_may_be_mixed_where_they_agree(tmp_path: Path) -> None:
    bags = site(
        write_trident(tmp_path / "a", FEATURES, CELLS, scan=20),
        write_trident(tmp_path / "b", FEATURES.astype(np.float32), CELLS, scan=40),
        write_stamp(tmp_path / "c", FEATURES, CELLS, extractor="uni_v1"),
        write_tensors(tmp_path / "d", FEATURES, CELLS),
        patch_size_level0=256,
    )
    found = [source for sources in bags.sources.values() for source in sources]
    assert [source.layout for source in found] == ["TRIDENT", "TRIDENT", "STAMP", "plain"]
    assert [source.dtype for source in found] == ["float16", "float32", "float16", "float16"]


@pytest.mark.parametrize("index_limit", [0, 2**20])
def test_a_file_that_changes_after_it_was_checked_is_refused(index_limit: int, tmp_path: Path) -> None:
    path = write_trident(tmp_path / "a", FEATURES, CELLS)
    bags = site(path, index_limit=index_limit)
    write_trident(path, FEATURES[::-1].astype(np.float64), CELLS)
    with pytest.raises(FeatureFileError, match="file of row 1: changed since it was checked"):
        np.asarray(next(iter(bags.values()))[0].features)


def test_a_damaged_compressed_chunk_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=np.zeros((64, 8)), chunks=(16, 8), compression="gzip")
        file.create_dataset("coords", data=np.zeros((64, 2), dtype=np.int64)).attrs["patch_size_level0"] = 256
        place = file["features"].id.get_chunk_info(2).byte_offset
    data = bytearray(path.read_bytes())
    data[place : place + 8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(FeatureFileError, match="row 1: truncated or damaged"):
        site(path)


def test_values_are_checked_in_every_slab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modaltune.data.features.SLAB_BYTES", 4 * WIDTH * 7)
    features = FEATURES.copy()
    features[[36, 38], 2] = np.inf
    bag, _ = open_bag(write_stamp(tmp_path / "a", features, CELLS), where="x")
    with pytest.raises(FeatureFileError, match=r"x: 2 of 40 rows of 'features' hold NaN .* \(first: row 37\)"):
        check_features(bag, "x")
