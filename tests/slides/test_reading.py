from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openslide", reason="the extra 'slides' is not installed")

from openslide import OpenSlide, OpenSlideError

from modaltune.errors import SlideError
from modaltune.slides.extraction import Patches
from modaltune.slides.reading import Scan, read_overview, read_patch, read_scan, reading
from tests.slides.stand_ins import GLASS, painted, write_slide

PATIENT = "TCGA-AA-1234-01Z-00-DX1"


def scan(mpp: float, width: int = 4000, height: int = 3000) -> Scan:
    return Scan(width=width, height=height, mpp=mpp, mpp_from="header", magnification=20)


@pytest.fixture
def flat(tmp_path: Path) -> Iterator[OpenSlide]:
    with OpenSlide(write_slide(tmp_path / "flat.tiff", [painted(300, 500, (100, 60, 400, 280))])) as slide:
        yield slide


def test_the_header_says_how_large_the_slide_and_its_pixels_are(flat: OpenSlide) -> None:
    found = read_scan(flat, None)
    assert (found.width, found.height, found.mpp_from, found.magnification) == (500, 300, "header", 20)
    assert found.mpp == pytest.approx(0.5)


def test_the_option_serves_only_slides_without_a_plausible_resolution(flat: OpenSlide, tmp_path: Path) -> None:
    assert read_scan(flat, 0.25).mpp == pytest.approx(0.5)
    for name, mpp in (("none", None), ("screen", 352.8)):
        with OpenSlide(write_slide(tmp_path / f"{name}.tiff", [painted(100, 100)], mpp)) as slide:
            found = read_scan(slide, 0.25)
            assert (found.mpp, found.mpp_from, found.magnification) == (0.25, "option", 40)
            with pytest.raises(SlideError, match=r"micrometres per pixel, expected 0.05 to 10.0; .* --slide-mpp"):
                read_scan(slide, None)


def test_a_patch_at_the_slides_own_resolution_is_its_pixels(flat: OpenSlide) -> None:
    patch = np.asarray(read_patch(flat, 130, 70, 64, 64))
    np.testing.assert_array_equal(patch, painted(300, 500, (100, 60, 400, 280))[70:134, 130:194])


def test_a_coarser_patch_is_read_from_the_level_nearest_to_it(tmp_path: Path) -> None:
    colours = [np.full((256 // 2**level, 256 // 2**level, 3), 40 * level, dtype=np.uint8) for level in range(3)]
    with OpenSlide(write_slide(tmp_path / "pyramid.tiff", colours)) as slide:
        found = {edge: np.unique(np.asarray(read_patch(slide, 0, 0, edge, 32))) for edge in (32, 60, 64, 100, 128)}
    assert {edge: int(values[0]) for edge, values in found.items()} == {32: 0, 60: 0, 64: 40, 100: 40, 128: 80}


def test_what_was_not_scanned_is_white(flat: OpenSlide) -> None:
    assert (np.asarray(read_patch(flat, 600, 400, 32, 32)) == 255).all()


def test_the_overview_of_a_slide_without_pyramid_is_its_mean_colour_everywhere(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 255, 640).astype(np.uint8)[None, :, None], 200, axis=0).repeat(3, axis=2)
    with OpenSlide(write_slide(tmp_path / "ramp.tiff", [ramp])) as slide:
        overview = read_overview(slide, scan(0.5, 640, 200), 1.0)  # 320 wide: three blocks
    np.testing.assert_allclose(overview, ramp[::2, :].reshape(100, 320, 2, 3).mean(axis=2), atol=1.5)


def test_glass_stays_glass_in_the_overview(flat: OpenSlide) -> None:
    overview = read_overview(flat, read_scan(flat, None), 4.0)
    assert overview.shape == (38, 62, 3)
    np.testing.assert_allclose(overview[:5].mean(axis=(0, 1)), GLASS, atol=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no slide at all", "not a slide"), (b"II*\0\x08\0\0\0\0\0", "cannot be read|not a slide")],
)
def test_a_file_that_is_no_slide_is_one_line_without_its_name(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / f"{PATIENT}.tiff"
    path.write_bytes(content)
    with pytest.raises(SlideError, match=message) as caught, reading(path), OpenSlide(path):
        pass
    assert PATIENT not in str(caught.value)


def test_the_folder_that_a_slide_needs_is_not_named(tmp_path: Path) -> None:
    path = tmp_path / "private" / f"{PATIENT} Mueller.mrxs"
    with pytest.raises(SlideError, match="cannot be read") as caught, reading(path):
        raise OpenSlideError(f"Couldn't open {path.with_suffix('')}/Index.dat, private/{path.stem}/Index.dat")
    assert not any(word in str(caught.value) for word in (PATIENT, "Mueller", str(tmp_path)))


@pytest.mark.parametrize(("mpp", "edge"), [(0.5, 256), (0.499, 257), (0.25, 512), (0.2527, 507), (0.55, 233)])
def test_the_edge_of_a_patch_follows_from_both_resolutions(mpp: float, edge: int) -> None:
    assert Patches().edge(scan(mpp)) == edge


def test_a_slide_coarser_than_the_patches_is_refused_unless_told() -> None:
    with pytest.raises(SlideError, match=r"scanned at 0.560 .* coarser than the 0.5 asked for"):
        Patches().edge(scan(0.56))
    assert Patches(upsample=True).edge(scan(1.0)) == 128


def test_a_slide_smaller_than_one_patch_is_refused() -> None:
    with pytest.raises(SlideError, match="300 x 200 pixels hold no patch of 256"):
        Patches().edge(scan(0.5, 300, 200))
