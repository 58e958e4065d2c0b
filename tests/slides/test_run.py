from __future__ import annotations

import os
import struct
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("openslide", reason="the extra 'slides' is not installed")

from modaltune.data.bags import read_bag
from modaltune.errors import ConfigError, FeatureFileError, SlideError
from modaltune.slides.cli import _speeds
from modaltune.slides.extraction import Pace, Patches
from modaltune.slides.folder import find_slides, source_mark
from modaltune.slides.lock import locked
from modaltune.slides.patch_encoder import PatchEncoder
from modaltune.slides.run import Extraction, Outcome
from tests.slides.stand_ins import TILE, painted, write_slide

PATIENT = "TCGA-AA-1234"
TUMOUR, NORMAL = f"{PATIENT}-01Z-00-DX1", f"{PATIENT}-11A-01-TS1"
PICTURE = painted(340, 400, (64, 32, 320, 288))


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """A tumour slide, one of normal tissue of the same patient, one of another hospital."""
    folder = tmp_path / "slides"
    for name in (f"{TUMOUR}.tiff", f"uuid/{NORMAL}.tiff", "H-17.tif"):
        write_slide(folder / name, [PICTURE])
    (folder / "notes.txt").write_text("no slide")
    return folder


@pytest.fixture
def extraction(tmp_path: Path, tiny_encoder: PatchEncoder) -> Extraction:
    """Patches of 32 pixels, so that slides of a few hundred have some."""
    return of(tmp_path / "out", tiny_encoder)


def of(out: Path, encoder: PatchEncoder, workers: int = 0, **patches: float) -> Extraction:
    cut = Patches(**{"size": 32, "mpp": 0.5, **patches})  # type: ignore[arg-type]
    return Extraction(out=out, encoder=encoder, patches=cut, pace=Pace(workers=workers, batch=7))


def quiet(outcome: Outcome, share: float) -> None:
    assert outcome.ended <= outcome.slides
    assert 0 <= share <= 1


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_a_folder_of_slides_becomes_bags_tables_and_pictures(slides: Path, extraction: Extraction) -> None:
    outcome = extraction.run(slides, quiet)
    assert (outcome.slides, outcome.done, outcome.failures, outcome.not_primary) == (3, 3, [], 1)
    assert sorted(os.listdir(extraction.out)) == ["failures.csv", "features", "slides.csv", "thumbnails"]
    assert sorted(os.listdir(extraction.out / "features")) == ["H-17.h5", f"{TUMOUR}.h5", f"{NORMAL}.h5"]
    bag = read_bag(extraction.out / "features" / "H-17.h5")
    assert bag.patch_size_level0 == 32
    assert len(bag.features) == len(bag.coords) == outcome.patches // 3
    corners = {tuple(corner) for corner in bag.coords.tolist()}
    assert corners >= {(x, y) for x in range(64, 320, 32) for y in range(32, 288, 32)}  # cells of tissue alone
    assert corners <= {(x, y) for x in range(32, 352, 32) for y in range(0, 320, 32)}  # and some at its edge
    with Image.open(extraction.out / "thumbnails" / "H-17.png") as picture:
        assert picture.size == (400, 340)


def test_the_file_says_how_it_was_made(slides: Path, extraction: Extraction, tiny_encoder: PatchEncoder) -> None:
    extraction.run(slides, quiet)
    with h5py.File(extraction.out / "features" / "H-17.h5") as bag:
        assert bag["features"].attrs["encoder"] == "tiny"
        found = dict(bag["coords"].attrs)
    assert found.pop("level0_mpp") == pytest.approx(0.5)
    assert found.pop("source_mark") == source_mark(slides / "H-17.tif")
    assert found == {
        "name": "H-17",
        "savetodir": "",
        "overlap": 0,
        "encoder": "tiny",
        "encoder_sha256": tiny_encoder.sha256,
        "mpp": 0.5,
        "patch_size": 32,
        "patch_size_level0": 32,
        "level0_mpp_from": "header",
        "level0_magnification": 20,
        "level0_objective": 20,
        "target_magnification": 20,
        "level0_width": 400,
        "level0_height": 340,
    }


def test_cases_are_tcga_patients_with_their_primary_tumours_and_other_slides_stand_alone(
    slides: Path, extraction: Extraction
) -> None:
    extraction.run(slides, quiet)
    table = pd.read_csv(extraction.out / "slides.csv")
    assert table.to_numpy().tolist() == [["H-17", "H-17", "H-17.h5"], [TUMOUR, PATIENT, f"{TUMOUR}.h5"]]


def test_a_case_that_a_person_filled_in_is_kept(slides: Path, extraction: Extraction) -> None:
    extraction.run(slides, quiet)
    file = extraction.out / "slides.csv"
    file.write_text(file.read_text().replace("H-17,H-17,", "H-17,0042,"))
    write_slide(slides / "H-18.tiff", [PICTURE])
    extraction.run(slides, quiet)
    cases = pd.read_csv(file, dtype=str).set_index("slide_id")["case_id"]
    assert cases.to_dict() == {"H-17": "0042", "H-18": "H-18", TUMOUR: PATIENT}


def test_a_table_without_cases_is_one_line(slides: Path, extraction: Extraction) -> None:
    extraction.out.mkdir()
    (extraction.out / "slides.csv").write_text("slide,patient\na,b\n")
    with pytest.raises(FeatureFileError, match=r"slides.csv: column 'slide_id' is missing"):
        extraction.run(slides, quiet)
    assert os.listdir(extraction.out) == ["slides.csv"], "before anything is extracted"


def test_a_table_without_files_gets_them(slides: Path, extraction: Extraction) -> None:
    (extraction.out / "features").mkdir(parents=True)
    (extraction.out / "features" / "old.pt").touch()
    (extraction.out / "slides.csv").write_text("slide_id,case_id\nH-17,0042\nold,P8\n")
    extraction.run(slides, quiet)
    table = pd.read_csv(extraction.out / "slides.csv", dtype=str)
    expected = [["H-17", "0042", "H-17.h5"], ["old", "P8", "old.pt"], [TUMOUR, PATIENT, f"{TUMOUR}.h5"]]
    assert table.to_numpy().tolist() == expected


def test_the_number_of_workers_changes_nothing(slides: Path, tmp_path: Path, tiny_encoder: PatchEncoder) -> None:
    for workers in (0, 2):
        of(tmp_path / str(workers), tiny_encoder, workers).run(slides, quiet)
    for file in (tmp_path / "0" / "features").iterdir():
        assert file.read_bytes() == (tmp_path / "2" / "features" / file.name).read_bytes()


def test_scans_of_one_glass_at_20x_and_40x_give_the_same_bag(tmp_path: Path, tiny_encoder: PatchEncoder) -> None:
    write_slide(tmp_path / "slides" / "20x.tiff", [PICTURE], mpp=0.5)
    write_slide(tmp_path / "slides" / "40x.tiff", [PICTURE.repeat(2, axis=0).repeat(2, axis=1)], mpp=0.25)
    of(tmp_path / "out", tiny_encoder).run(tmp_path / "slides", quiet)
    twenty, forty = (read_bag(tmp_path / "out" / "features" / f"{name}.h5") for name in ("20x", "40x"))
    assert (twenty.patch_size_level0, forty.patch_size_level0) == (32, 64)
    np.testing.assert_array_equal(twenty.coords // 32, forty.coords // 64)
    np.testing.assert_allclose(twenty.features, forty.features, atol=0.1 * twenty.features.std())


def test_finished_slides_are_kept_and_new_ones_added(slides: Path, extraction: Extraction) -> None:
    extraction.run(slides, quiet)
    before = state(extraction.out / "features")
    write_slide(slides / "H-18.tiff", [PICTURE])
    outcome = extraction.run(slides, quiet)
    assert (outcome.kept, outcome.done) == (3, 1)
    after = state(extraction.out / "features")
    assert before.items() <= after.items()


@pytest.mark.parametrize("damage", [b"", b"half"])
def test_a_damaged_bag_is_made_again(damage: bytes, slides: Path, extraction: Extraction) -> None:
    extraction.run(slides, quiet)
    file = extraction.out / "features" / "H-17.h5"
    whole = file.read_bytes()
    file.write_bytes(whole[:700] if damage else b"")
    outcome = extraction.run(slides, quiet)
    assert (outcome.kept, outcome.done) == (2, 1)
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mpp": 1.0}, "made with mpp 0.5, this run has 1.0"),
        ({"size": 64}, "made with patch_size 32, this run has 64"),
    ],
)
def test_other_patches_in_the_same_folder_are_refused_before_anything_is_written(
    changes: dict[str, float], message: str, slides: Path, extraction: Extraction
) -> None:
    extraction.run(slides, quiet)
    before = state(extraction.out)
    with pytest.raises(ConfigError, match=message) as caught:
        of(extraction.out, extraction.encoder, **changes).run(slides, quiet)
    assert PATIENT not in str(caught.value)
    assert state(extraction.out) == before


def test_another_encoder_in_the_same_folder_is_refused(slides: Path, extraction: Extraction) -> None:
    extraction.run(slides, quiet)
    for file in (extraction.out / "features").iterdir():
        with h5py.File(file, "r+") as bag:
            bag["coords"].attrs["encoder_sha256"] = "0" * 64
    with pytest.raises(ConfigError, match="made with encoder_sha256 000000000000, this run has "):
        extraction.run(slides, quiet)


def test_bags_of_the_encoder_under_another_name_are_kept(slides: Path, extraction: Extraction) -> None:
    extraction.run(slides, quiet)
    for file in (extraction.out / "features").iterdir():
        with h5py.File(file, "r+") as bag:
            bag["coords"].attrs["encoder"] = "Owner/Tiny/"
    assert extraction.run(slides, quiet).kept == 3


def test_another_resolution_given_for_the_same_slides_is_refused(tmp_path: Path, tiny_encoder: PatchEncoder) -> None:
    write_slide(tmp_path / "slides" / "a.tiff", [PICTURE], mpp=None)
    out = tmp_path / "out"
    assert of(out, tiny_encoder, slide_mpp=0.5).run(tmp_path / "slides", quiet).done == 1
    with pytest.raises(ConfigError, match=r"made with level0_mpp 0.5, this run has 0.25"):
        of(out, tiny_encoder, slide_mpp=0.25).run(tmp_path / "slides", quiet)
    assert of(out, tiny_encoder).run(tmp_path / "slides", quiet).kept == 1


def test_an_assumed_resolution_is_not_held_against_kept_bags(tmp_path: Path, tiny_encoder: PatchEncoder) -> None:
    write_slide(tmp_path / "slides" / "a.tiff", [PICTURE], mpp=None)
    out = tmp_path / "out"
    assert of(out, tiny_encoder, slide_mpp=0.5).run(tmp_path / "slides", quiet).done == 1
    write_slide(tmp_path / "slides" / "b.tiff", [PICTURE], mpp=None)
    outcome = of(out, tiny_encoder, assumed_mpp=0.45).run(tmp_path / "slides", quiet)
    assert (outcome.kept, outcome.done, outcome.assumed) == (1, 1, 1)


def with_a_lost_tile(path: Path) -> Path:
    """A slide that opens, has an overview, and lacks the pixels of one tile of tissue at level 0."""
    content = bytearray(write_slide(path, [PICTURE, PICTURE[::2, ::2]]).read_bytes())
    across = -(-PICTURE.shape[1] // TILE)
    offset = struct.pack("<I", 8 + (2 * across + 2) * TILE * TILE * 3)
    place = content.rindex(offset)
    content[place : place + 4] = struct.pack("<I", 2**31)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_that_cannot_be_read_are_one_line_from_any_process(
    workers: int, tmp_path: Path, tiny_encoder: PatchEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modaltune.slides.thumbnails.LONGEST_EDGE", 100)  # the overview reads level 1
    with_a_lost_tile(tmp_path / "slides" / f"{TUMOUR}.tiff")
    write_slide(tmp_path / "slides" / "whole.tiff", [PICTURE])
    outcome = of(tmp_path / "out", tiny_encoder, workers).run(tmp_path / "slides", quiet)
    assert (outcome.done, [source.row for source, _ in outcome.failures]) == (1, [1])
    reason = outcome.failures[0][1]
    assert reason.startswith("cannot be read: ")
    assert "\n" not in reason
    assert PATIENT not in reason
    assert outcome.patches > 64  # batches before the lost tile were encoded, and thrown away
    assert os.listdir(tmp_path / "out" / "features") == ["whole.h5"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_slide_never_stops_the_run(
    workers: int, slides: Path, tmp_path: Path, tiny_encoder: PatchEncoder
) -> None:
    (slides / f"{PATIENT}-01Z-00-DX2.svs").write_bytes(b"not a slide")
    write_slide(slides / "a-no-mpp.tiff", [PICTURE], mpp=None)
    write_slide(slides / "b-bare-glass.tiff", [painted(340, 400)])
    write_slide(slides / "c" / "H-17.tiff", [PICTURE])
    out = tmp_path / "out"
    outcome = of(out, tiny_encoder, workers).run(slides, quiet)
    assert (outcome.done, len(outcome.failures)) == (3, 4)
    table = pd.read_csv(out / "failures.csv").set_index("file")["reason"]
    expected = {
        f"{PATIENT}-01Z-00-DX2.svs": "not a slide",
        "a-no-mpp.tiff": "--slide-mpp",
        "b-bare-glass.tiff": "no tissue found",
        "c/H-17.tiff": "another slide has the same name",
    }
    assert set(table.index) == set(expected)
    assert all(words in table[file] for file, words in expected.items())
    assert not any(PATIENT in reason for _, reason in outcome.failures)
    assert (out / "thumbnails" / "b-bare-glass.png").is_file()
    assert not list((out / "features").glob(".*"))


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left: TCGA-AA-1234"), RuntimeError("TCGA-AA-1234.h5.partial")]
)
def test_a_full_disk_ends_the_run_with_its_tables_and_without_half_a_bag(
    failure: Exception, slides: Path, extraction: Extraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = h5py.Group.create_dataset

    def full(group: h5py.Group, name: str, *arguments: object, **options: object) -> h5py.Dataset:
        if name == "coords" and group.file.filename.endswith(f".{TUMOUR}.h5.partial"):
            raise failure
        return create(group, name, *arguments, **options)

    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    with pytest.raises(OSError, match="no bag was written") as caught:
        extraction.run(slides, quiet)
    assert PATIENT not in str(caught.value)
    assert sorted(os.listdir(extraction.out / "features")) == ["H-17.h5"]
    assert pd.read_csv(extraction.out / "slides.csv")["slide_id"].tolist() == ["H-17"]
    (reason,) = pd.read_csv(extraction.out / "failures.csv")["reason"]
    assert reason.startswith("could not be written: ")
    monkeypatch.undo()
    assert (outcome := extraction.run(slides, quiet)).done == 2
    assert (outcome.kept, outcome.failures) == (1, [])


def test_tables_that_cannot_be_written_do_not_hide_what_ended_the_run(
    slides: Path, extraction: Extraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "the disk is full")

    def unwritten(*_: object) -> None:
        raise FeatureFileError("slides.csv was damaged meanwhile")

    monkeypatch.setattr(Extraction, "_one", full)
    monkeypatch.setattr("modaltune.slides.run.write_slides_table", unwritten)
    with pytest.raises(OSError, match="the disk is full"):
        extraction.run(slides, quiet)


def test_slides_of_an_assumed_resolution_are_counted(tmp_path: Path, tiny_encoder: PatchEncoder) -> None:
    write_slide(tmp_path / "slides" / "a.tiff", [PICTURE], mpp=None)
    write_slide(tmp_path / "slides" / "b.tiff", [PICTURE])
    assert of(tmp_path / "out", tiny_encoder, slide_mpp=0.5).run(tmp_path / "slides", quiet).assumed == 1


def test_the_bar_tells_patches_and_slides_a_second() -> None:
    assert _speeds(Outcome(slides=9, done=2, patches=900, seconds=50.0), 0.5) == "18 patches/s, 0.05 slides/s"


def test_a_slide_in_the_hands_of_another_process_is_left_to_it(slides: Path, extraction: Extraction) -> None:
    lock = extraction.out / "features" / ".H-17.lock"
    lock.parent.mkdir(parents=True)
    with locked(lock):
        outcome = extraction.run(slides, quiet)
    assert (outcome.busy, outcome.done) == (1, 2)
    assert not (extraction.out / "features" / "H-17.h5").exists()
    assert extraction.run(slides, quiet).done == 1


def test_another_scan_under_the_same_name_is_encoded_anew(slides: Path, extraction: Extraction) -> None:
    extraction.run(slides, quiet)
    with h5py.File(extraction.out / "features" / "H-17.h5") as bag:
        before = dict(bag["coords"].attrs)
    write_slide(slides / "H-17.tif", [PICTURE[:-64]])
    outcome = extraction.run(slides, quiet)
    assert (outcome.done, outcome.kept) == (1, 2)
    with h5py.File(extraction.out / "features" / "H-17.h5") as bag:
        after = dict(bag["coords"].attrs)
    assert after["level0_height"] == before["level0_height"] - 64
    assert after["source_mark"] != before["source_mark"]


def test_rows_and_columns_of_a_table_that_a_person_edited_stay(slides: Path, extraction: Extraction) -> None:
    extraction.run(slides, quiet)
    file = extraction.out / "slides.csv"
    edited = "slide_id,case_id,file,stain\nS1,0007,H-17.h5,HE\nold,P8,sub/old.h5,HE\n"
    file.write_text(edited)
    assert extraction.run(slides, quiet).kept == 3
    assert file.read_text() == edited, "neither changed nor what was taken out brought back"
    write_slide(slides / "H-18.tiff", [PICTURE])
    extraction.run(slides, quiet)
    assert file.read_text() == edited + "H-18,H-18,H-18.h5,\n"


def test_a_folder_without_slides_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no such folder"):
        find_slides(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(SlideError, match="no slide in it"):
        find_slides(tmp_path)


def test_dicom_files_of_a_subfolder_are_one_slide(tmp_path: Path) -> None:
    for name in ("A/1.dcm", "A/2.dcm", "B/1.dcm", "c.dcm", "d.DCM", ".trash/e.svs", "f.svs"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    found = {slide.slide_id: (slide.row, slide.file) for slide in find_slides(tmp_path)}
    assert found == {"A": (1, "A/1.dcm"), "B": (2, "B/1.dcm"), "c": (3, "c.dcm"), "d": (4, "d.DCM"), "f": (5, "f.svs")}
