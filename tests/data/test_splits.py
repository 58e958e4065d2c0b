from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modaltune.data.cohort import SPLITS
from modaltune.data.splits import SplitsConfig, load_splits
from tests.data import tool_files as tools

CASES = pd.Index(["a", "b", "c"])


def load(folder: Path, text: str, **options: object) -> dict[str, str]:
    (folder / "s.csv").write_text(text)
    config = SplitsConfig.model_validate({"file": "s.csv", **options})
    slides = {"a1": "a", "a2.svs": "a", "b1": "b"}
    return {
        str(k): v for k, v in load_splits(folder, config, cases=CASES, slides=slides, columns={}, site="H1").items()
    }


def test_a_table_of_cases_says_their_splits(tmp_path: Path) -> None:
    assert load(tmp_path, "case_id,split\na,train\nb,test\n") == {"a": "train", "b": "test"}


def test_one_fold_of_several_is_used(tmp_path: Path) -> None:
    text = "case_id,fold,split\na,0,train\nb,0,val\na,1,val\nb,1,train\n"
    assert load(tmp_path, text, fold=1) == {"a": "val", "b": "train"}


def test_a_single_fold_needs_no_choice(tmp_path: Path) -> None:
    assert load(tmp_path, "case_id,fold,split\na,3,train\n") == {"a": "train"}


def test_columns_of_unequal_length_are_read_to_their_ends(tmp_path: Path) -> None:
    tools.clam_splits(tmp_path / "x.csv", {"train": ["a", "b"], "val": ["c"]})
    assert load(tmp_path, (tmp_path / "x.csv").read_text()) == {"a": "train", "b": "train", "c": "val"}


@pytest.mark.parametrize("text", ["train,val\na1,b1\na2,\n", "slide_id,split\na1,train\na2.svs,train\nb1,val\n"])
def test_slides_stand_for_their_cases_with_or_without_suffix(text: str, tmp_path: Path) -> None:
    assert load(tmp_path, text, ids="slide") == {"a": "train", "b": "val"}


def test_cases_of_other_sites_are_ignored_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path, "train,val\na,x\ny,b\n") == {"a": "train", "b": "val"}
    assert "2 of 4 identifiers are not of this site: ignored" in caplog.text


@given(splits=st.lists(st.sampled_from(SPLITS), min_size=3, max_size=3))
def test_both_layouts_say_the_same(splits: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("splits")
    chosen = dict(zip(CASES, splits, strict=True))
    columns = {split: [case for case in CASES if chosen[case] == split] for split in SPLITS}
    tools.clam_splits(folder / "x.csv", columns)
    assert load(folder, (folder / "x.csv").read_text()) == chosen
    assert load(folder, "case_id,split\n" + "".join(f"{case},{split}\n" for case, split in chosen.items())) == chosen
