from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from modaltune.data.bags import BagFiles, SlideFile, read_bag, write_bag
from modaltune.data.cohort import Bag
from modaltune.data.features import StoredFeatures
from modaltune.errors import FeatureFileError

PATIENT = "TCGA-AA-1234"


def a_bag(patches: int = 5, width: int = 4) -> Bag:
    draw = np.random.default_rng(0)
    cells = np.stack([np.arange(patches), np.arange(patches)], axis=1).astype(np.int64)
    features = draw.normal(size=(patches, width)).astype(np.float32)
    return Bag(features=features, coords=cells * 256, patch_size_level0=256)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / f"{PATIENT}-DX1.h5"
    write_bag(file, a_bag(), encoder="test")
    return file


def test_a_bag_survives_writing_and_reading(path: Path) -> None:
    bag, expected = read_bag(path), a_bag()
    np.testing.assert_array_equal(bag.features, expected.features)
    np.testing.assert_array_equal(bag.coords, expected.coords)
    assert bag.patch_size_level0 == 256
    assert bag.features.dtype == np.float32
    assert bag.coords.dtype == np.int64


def test_a_bag_is_stored_contiguously_with_tridents_attributes(path: Path) -> None:
    with h5py.File(path) as file:
        assert file["features"].chunks is None
        assert file["features"].attrs["encoder"] == "test"
        assert {
            "patch_size",
            "patch_size_level0",
            "level0_magnification",
            "target_magnification",
            "overlap",
            "name",
        } <= set(file["coords"].attrs)
        assert file["coords"].attrs["level0_width"] == 5 * 256


def test_equal_bags_give_equal_bytes(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again" / path.name
    write_bag(again, a_bag(), encoder="test")
    assert again.read_bytes() == path.read_bytes()
    assert not list(again.parent.glob(".*"))


def test_half_precision_features_are_read_as_single_precision(path: Path) -> None:
    replace(path, "features", np.ones((5, 4), dtype=np.float16))
    assert read_bag(path).features.dtype == np.float32


def replace(path: Path, name: str, values: np.ndarray | None) -> None:
    with h5py.File(path, "r+") as file:
        attributes = dict(file[name].attrs)
        del file[name]
        if values is not None:
            file.create_dataset(name, data=values).attrs.update(attributes)


def with_value(row: int, value: float) -> np.ndarray:
    features = np.ones((5, 4), dtype=np.float64)
    features[row, 2] = value
    return features


def drop_size(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["coords"].attrs["patch_size_level0"]


def set_size(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["coords"].attrs["patch_size_level0"] = 0


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda path: path.unlink(), "no such file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:600]), "truncated or not an HDF5"),
    "not HDF5": (lambda path: path.write_text("hello"), "truncated or not an HDF5"),
    "no features": (lambda path: replace(path, "features", None), "'features' is missing"),
    "no coords": (lambda path: replace(path, "coords", None), "'coords' is missing"),
    "one axis": (lambda path: replace(path, "features", np.ones(5)), "1 axes"),
    "text": (lambda path: replace(path, "features", np.full((5, 4), b"x")), "expected numbers"),
    "empty": (lambda path: replace(path, "features", np.ones((0, 4))), "empty"),
    "NaN": (lambda path: replace(path, "features", with_value(3, np.nan)), "1 of 5 rows .* row 4"),
    "infinite": (lambda path: replace(path, "features", with_value(1, np.inf)), "row 2"),
    "too large": (lambda path: replace(path, "features", with_value(0, 1e300)), "row 1"),
    "lengths": (lambda path: replace(path, "coords", np.zeros((4, 2), dtype=np.int64)), "4 rows but 'features' has 5"),
    "shape": (lambda path: replace(path, "coords", np.zeros((5, 3), dtype=np.int64)), r"\[N, 2\]"),
    "micrometres": (lambda path: replace(path, "coords", np.full((5, 2), 0.5)), "whole numbers"),
    "NaN coords": (lambda path: replace(path, "coords", np.full((5, 2), np.nan)), "whole numbers"),
    "no patch size": (drop_size, "no attribute 'patch_size_level0'"),
    "zero patch size": (set_size, "one positive number"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_file_is_one_line_without_its_name(name: str, path: Path) -> None:
    damage, message = BREAKS[name]
    damage(path)
    with pytest.raises(FeatureFileError, match=message) as caught:
        read_bag(path, where="slides.csv, file of row 3")
    text = str(caught.value)
    assert text.startswith("slides.csv, file of row 3: ")
    assert PATIENT not in text
    assert "\n" not in text


def slide_files(tmp_path: Path, *widths: int) -> dict[str, list[SlideFile]]:
    files = {}
    for number, width in enumerate(widths, start=1):
        file = tmp_path / f"{PATIENT}-{number}.h5"
        write_bag(file, a_bag(width=width), encoder="test")
        files[f"{PATIENT}-{number}"] = [SlideFile(file, f"row {number}")]
    return files


def test_slides_of_different_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FeatureFileError, match="row 3: 'features' has 5 columns but earlier slides of this site have 4"
    ):
        BagFiles(slide_files(tmp_path, 4, 4, 5))


def test_features_stay_on_disk_and_bags_beyond_the_limit_are_opened_each_time(tmp_path: Path) -> None:
    files = slide_files(tmp_path, 4, 4)
    kept, opened = BagFiles(files), BagFiles(files, index_limit=0)
    assert list(kept) == list(opened) == list(files)
    assert len(kept) == 2
    case = next(iter(files))
    assert kept[case][0] is kept[case][0]
    assert opened[case][0] is not opened[case][0]
    for bags in (kept, opened):
        assert isinstance(bags[case][0].features, StoredFeatures)
        np.testing.assert_array_equal(np.asarray(bags[case][0].features), a_bag().features)


def test_an_unknown_case_has_no_bags(tmp_path: Path) -> None:
    bags = BagFiles(slide_files(tmp_path, 4))
    assert "stranger" not in bags
    assert bags.get("stranger") is None
