"""Every reader against a file as its tool writes it: the same cohort comes out."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modaltune.data.site import load_site
from tests.data import tool_files as tools
from tests.data.tool_sites import SITES, SPLIT, expected_expression, make_site


@pytest.mark.parametrize("kind", SITES)
def test_the_same_cohort_comes_out_of_every_tools_files(kind: str, tmp_path: Path) -> None:
    cohort = load_site(make_site(kind, tmp_path / "H1"), split_salt="s", labels=tools.LABELS)
    listed = [*tools.CASES[:4], tools.CASES[-1]] if kind in SPLIT else [*tools.MEASURED]
    cases = cohort.cases.loc[listed].drop(columns="split")
    assert list(cases.index) == listed
    pd.testing.assert_frame_equal(cases, tools.truth().loc[listed], check_dtype=False, rtol=1e-9)
    assert cohort.expression is not None
    expected = pd.DataFrame(expected_expression(kind), index=tools.MEASURED, columns=list(tools.ENSEMBL))
    expected = expected.loc[[case for case in listed if case in tools.MEASURED], cohort.expression.columns]
    np.testing.assert_allclose(cohort.expression.loc[expected.index], expected, rtol=1e-5)
    assert set(cohort.expression.columns) == set(tools.ENSEMBL)
    assert set(cohort.expression.dtypes) == {np.dtype("float32")}


def test_splits_of_slides_become_splits_of_cases(tmp_path: Path) -> None:
    cohort = load_site(make_site("survpath", tmp_path / "H1"), split_salt="s", labels=tools.LABELS)
    assert cohort.cases["split"].tolist() == ["train"] * 3 + ["val", "test"]
    assert list(cohort.bags) == [*tools.CASES[:4], tools.CASES[-1]]


def test_what_is_left_out_is_counted_and_names_no_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for kind in SITES:
            load_site(make_site(kind, tmp_path / kind), split_salt="s", labels=tools.LABELS)
    assert "1 of 11 samples are of another type: left out" in caplog.text
    assert "1 of 6 genes without a name left out" in caplog.text
    assert "1 of 6 genes without any value left out" in caplog.text
    assert "7 cases left out: not in splits_0.csv" in caplog.text
    assert "TCGA-A1" not in caplog.text
