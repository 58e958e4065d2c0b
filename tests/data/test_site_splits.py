from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from modaltune.data.site import load_site
from modaltune.data.site_splits import case_splits, split_files
from tests.data.small_site import IDS, edit, write_small_site

BY_FILE = '[splits]\nfile = "splits.csv"\n'
BY_SLIDE = f'{BY_FILE}ids = "slide"\n'


def drop_split(cases: pd.DataFrame) -> pd.DataFrame:
    return cases.drop(columns="split")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The small site with its own column of splits."""
    return write_small_site(tmp_path / "site")


def by_hash(site: Path) -> None:
    edit(site, "cases.parquet", drop_split)


def by_file(site: Path) -> None:
    by_hash(site)
    pd.DataFrame({"case_id": IDS, "split": ["test", "train", "val", "train"] * 2}).to_csv(site / "splits.csv")
    (site / "site.toml").write_text((site / "site.toml").read_text() + BY_FILE)


def by_slide(site: Path) -> None:
    by_hash(site)
    slides = pd.read_csv(site / "slides.csv")
    slides.assign(split="train")[["slide_id", "split"]].to_csv(site / "splits.csv", index=False)
    (site / "site.toml").write_text((site / "site.toml").read_text() + BY_SLIDE)


@pytest.mark.parametrize(
    "change", [lambda _: None, by_hash, by_file, by_slide], ids=["column", "hash", "file", "slide"]
)
def test_the_splits_alone_are_those_of_the_whole_site(change: object, site: Path) -> None:
    change(site)  # type: ignore[operator]
    whole = load_site(site, split_salt="salt").cases["split"]
    alone = case_splits(site, split_salt="salt")
    pd.testing.assert_series_equal(alone[whole.index], whole)
    assert all(path.is_file() for path in split_files(site))


def test_the_files_that_decide_are_the_settings_the_cases_and_what_a_splits_file_needs(site: Path) -> None:
    assert [path.name for path in split_files(site)] == ["site.toml", "cases.parquet"]
    by_slide(site)
    assert [path.name for path in split_files(site)] == ["site.toml", "cases.parquet", "splits.csv", "slides.csv"]
