from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modaltune.data.bags import read_bag, write_bag
from modaltune.data.site import load_site
from modaltune.data.slide_settings import SlideSettings, check_slides
from modaltune.doctor.bags import bags
from modaltune.doctor.site_files import SiteFiles
from modaltune.errors import FeatureFileError
from modaltune.federation.study import Study
from tests.data.small_site import write_small_site

DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "encoder": ({"patch_encoder": "uni_v1"}, "patch encoder test, the study uni_v1"),
    "resolution": ({"mpp": 0.25}, "0.5 micrometres per pixel, the study 0.25"),
    "edge": ({"patch_size": 512}, "patches of 256 pixels, the study 512"),
}
LIKE: list[dict[str, Any]] = [
    {},
    {"patch_encoder": "Owner/TEST"},
    {"patch_encoder": "hf-hub:Owner/test/"},
    {"patch_encoder": "test", "mpp": 0.499, "patch_size": 256},
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its files say: encoder test, 256 pixels at 20x."""
    return write_small_site(tmp_path_factory.mktemp("sites") / "H1")


def asking(study: Study, **said: Any) -> Study:
    return study.model_copy(update={"slides": study.slides.model_copy(update={"in_width": 4, **said})})


@pytest.mark.parametrize("what", DIFFERENT)
def test_patches_made_otherwise_than_the_study_says_are_refused(what: str, site: Path, tiny_study: Study) -> None:
    said, message = DIFFERENT[what]
    study = asking(tiny_study, **said)
    with pytest.raises(FeatureFileError, match=f"site H1: the bags have {message}; extract them as"):
        check_slides(load_site(site, split_salt="s"), study)
    findings = [found for found in bags(SiteFiles(site, study)) if not isinstance(found, Exception)]
    assert any(found.status == "error" and message in found.finding for found in findings)
    assert any("in 6 rows (first: row 1)" in found.finding for found in findings)


@pytest.mark.parametrize("said", LIKE)
def test_what_agrees_or_is_not_said_passes(said: dict[str, Any], site: Path, tiny_study: Study) -> None:
    study = asking(tiny_study, **said)
    check_slides(load_site(site, split_salt="s"), study)
    assert all("not made as" not in found.finding for found in bags(SiteFiles(site, study)))


def test_a_study_that_does_not_say_it_has_the_text_of_before(tiny_study: Study) -> None:
    """Else every study from before would have another digest."""
    assert not {"patch_encoder", "mpp", "patch_size"} & set(tiny_study.model_dump()["slides"])
    assert Study.from_json(tiny_study.to_json()) == tiny_study
    for name in ("uni_v1", "hf-hub:MahmoodLab/UNI"):
        said = asking(tiny_study, patch_encoder=name, mpp=0.5, patch_size=256)
        assert Study.from_json(said.to_json()) == said


def test_files_that_write_one_encoder_in_several_ways_agree(tmp_path: Path, tiny_study: Study) -> None:
    site = write_small_site(tmp_path / "H1")
    first, second, *_ = sorted((site / "features").glob("*.h5"))
    for file, name in ((first, "hf-hub:Owner/Test"), (second, "./test/")):
        write_bag(file, read_bag(file), encoder=name)
    assert len(load_site(site, split_salt="s").bags) == 5
    found = [finding.finding for finding in bags(SiteFiles(site, asking(tiny_study, patch_encoder="test")))]
    assert not any("differs" in text or "not stated" in text or "not made as" in text for text in found)


TOLD: list[tuple[SlideSettings, dict[str, Any]]] = [
    (SlideSettings(), {}),
    (SlideSettings(patch_encoder="hf-hub:MahmoodLab/UNI2-h", mpp=0.50214, patch_size=224),
     {"patch-encoder": "uni2_h", "patch-mpp": 0.502, "patch-size": 224}),
    (SlideSettings(patch_encoder="/data/Mrs Smith", mpp=99, patch_size=0), {}),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "told"), TOLD)
def test_a_site_tells_the_model_and_numbers_and_no_path(settings: SlideSettings, told: dict[str, Any]) -> None:
    assert settings.told() == told
    assert SlideSettings.parse(told).told() == told
