from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modaltune.data.bags import write_bag
from modaltune.data.cohort import Bag
from modaltune.data.site import load_site
from modaltune.data.tcga import with_cancer_tasks, with_location
from modaltune.errors import ConfigError, DataError
from simulation.sites import write_site
from simulation.studies.data import Share, deal, filled, write_scene
from simulation.studies.features import slide_files
from simulation.studies.pancancer import pan_vocabulary
from simulation.studies.spec import DataSpec
from simulation.synthetic import draw_hospitals


@pytest.fixture(scope="module")
def shares() -> list[Share]:
    return [
        Share(name=n, cohort="synthetic", cases=h.cases, expression=h.expression, bags=h.bags, files={})
        for n, h in draw_hospitals(0, 120).items()
    ]


def scene(tmp_path: Path, **data: object):
    return write_scene(DataSpec(kind="synthetic", cases=100, **data), 0, None, tmp_path)


def test_a_hospital_that_is_left_out_is_tested_and_does_not_train(tmp_path: Path) -> None:
    found = scene(tmp_path, leave_out=["H2"])
    assert list(found.sites) == ["H1", "H3", "H4", "H5"]
    assert list(found.truth) == ["H1", "H2", "H3", "H4", "H5"]


def test_disjoint_tasks_are_labelled_by_different_hospitals_and_tested_on_all(tmp_path: Path) -> None:
    found = scene(tmp_path, tasks="disjoint")
    tasks = {site: load_site(folder, split_salt="").tasks for site, folder in found.sites.items()}
    assert tasks["H1"] == ("diagnosis",)
    assert tasks["H4"] == ("diagnosis", "survival")
    assert len(tasks["H5"]) == 3
    assert len(load_site(found.truth["H1"], split_salt="").tasks) == 3


def test_a_hospital_keeps_a_share_of_its_labels_and_all_of_its_test_cases(shares: list[Share]) -> None:
    tasks = pan_vocabulary(("BRCA",))
    whole = shares[0]
    known = whole.cases["diagnosis"].notna() & (whole.cases["split"] != "test")
    before = pd.Series(True, index=whole.cases.index)
    for kept in (1.0, 0.5, 0.2):
        cases = whole.with_labels(tasks, kept, 0).cases
        still = cases["diagnosis"].notna()
        assert not (still & ~before).any()
        assert abs((still & known).sum() - kept * known.sum()) <= 2
        test = cases["split"] == "test"
        assert cases.loc[test, ["diagnosis", "time_months"]].equals(whole.cases.loc[test, ["diagnosis", "time_months"]])
        assert cases["time_months"].notna().equals(cases["event"].notna())
        before = still
    assert whole.with_labels(tasks, 0.5, 0).cases.equals(whole.with_labels(tasks, 0.5, 0).cases)
    assert not whole.with_labels(tasks, 0.5, 1).cases.equals(whole.with_labels(tasks, 0.5, 0).cases)


def test_few_labels_leave_the_truth_whole(tmp_path: Path) -> None:
    found = scene(tmp_path, labelled=0.5)
    few, all_of_them = (
        load_site(folder, split_salt="").cases["stage"].notna().sum()
        for folder in (found.sites["H1"], found.truth["H1"])
    )
    assert few < 0.8 * all_of_them


def test_in_several_cohorts_each_has_disjoint_tasks_of_its_own(tcga_dir: Path, tmp_path: Path) -> None:
    spec = DataSpec(kind="tcga", cohorts=("BLCA", "GBMLGG"), modalities=("expression",), tasks="disjoint")
    found = write_scene(spec, 0, tcga_dir, tmp_path)
    tasks = {site: load_site(folder, split_salt="").tasks for site, folder in found.sites.items()}
    assert tasks["BLCA-H2"] == ("stage",)
    assert tasks["GBMLGG-H2"] == ("grade",)
    assert tasks["GBMLGG-H4"] == ("diagnosis", "survival")
    assert set(tasks["GBMLGG-H5"]) == {"diagnosis", "grade", "survival"}
    assert set(load_site(found.truth["BLCA-H1"], split_salt="").tasks) == {"diagnosis", "stage", "survival"}


def test_modalities_can_be_taken_from_a_hospital_or_from_all(tmp_path: Path) -> None:
    one = scene(tmp_path / "one", without={"H2": ["slides"]})
    assert not load_site(one.sites["H2"], split_salt="").bags
    every = scene(tmp_path / "all", modalities=["expression"])
    assert not any(load_site(folder, split_salt="").bags for folder in every.sites.values())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"leave_out": ["H9"]}, "unknown hospital 'H9'; choose from H1"),
        ({"leave_out": ["H1", "H2", "H3", "H4", "H5"]}, "nobody is left to train"),
        ({"hospitals": ["H1"], "tasks": "disjoint"}, "disjoint tasks need hospitals H1 to H4; H2 is absent"),
        ({"without": {"H1": ["slides", "expression"]}}, "left without a modality"),
        ({"tasks": {"H1": ["grade"]}}, "unknown task 'grade'"),
    ],
)
def test_what_the_data_does_not_have_is_an_error(tmp_path: Path, data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scene(tmp_path, **data)


def test_tcga_without_a_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data names the folder"):
        write_scene(DataSpec(kind="tcga", cohorts=("BRCA",)), 0, None, tmp_path)


@given(sites=st.integers(1, 6), seed=st.integers(0, 50))
def test_dealing_gives_every_case_to_one_site_and_keeps_its_split(shares: list[Share], sites: int, seed: int) -> None:
    dealt = deal(shares, sites, None, seed)
    together = pd.concat([share.cases for share in dealt])
    before = pd.concat([share.cases for share in shares])
    assert sorted(together.index) == sorted(before.index)
    pd.testing.assert_series_equal(together["split"].sort_index(), before["split"].sort_index())
    sizes = [len(share.cases) for share in dealt]
    assert max(sizes) - min(sizes) <= 3  # at most one case a split
    assert sum(len(share.bags) for share in dealt) == sum(len(share.bags) for share in shares)


def test_a_small_concentration_deals_the_diagnoses_unevenly(shares: list[Share]) -> None:
    def spread(skew: float | None) -> float:
        parts = [deal(shares, 3, skew, seed) for seed in range(5)]
        rates = [[(s.cases["diagnosis"] == "ductal-like carcinoma").mean() for s in part] for part in parts]
        return float(np.std(rates, axis=1).mean())

    assert spread(0.5) > 2 * spread(100.0)


def test_more_sites_than_the_cases_allow_are_refused(shares: list[Share]) -> None:
    with pytest.raises(ConfigError, match="120 cases cannot be dealt to 20 sites of at least 12"):
        deal(shares, 20, None, 0)


def test_filling_leaves_no_modality_missing_and_sees_training_cases_only(shares: list[Share]) -> None:
    lacking = [shares[0].without(["expression"]), shares[1].without(["slides"]), *shares[2:]]
    whole = filled(lacking)
    assert all(share.expression is not None and len(share.expression) == len(share.cases) for share in whole)
    assert all(set(share.bags) == set(share.cases.index) for share in whole)
    known = pd.concat([share.expression for share in lacking if share.expression is not None])
    train = [case for share in shares for case in share.cases.index[share.cases["split"] == "train"]]
    mean = known[known.index.isin(train)].mean()
    np.testing.assert_allclose(whole[0].expression.iloc[0].to_numpy(), mean.to_numpy(), rtol=1e-5)


def test_filling_keeps_the_cases_that_there_are_without_it(tcga_dir: Path, tmp_path: Path) -> None:
    found = {}
    for fill in (False, True):
        spec = DataSpec(kind="tcga", cohorts=("COADREAD",), without={"H2": ("expression",)}, fill=fill)
        made = write_scene(spec, 0, tcga_dir, tmp_path / str(fill))
        found[fill] = {site: load_site(folder, split_salt="") for site, folder in made.sites.items()}
    for site, cohort in found[False].items():
        assert list(found[True][site].cases.index) == list(cohort.cases.index)
        assert set(found[True][site].bags) == set(cohort.cases.index)
    assert found[False]["H2"].expression is None


def test_filling_sees_no_hospital_that_is_left_out(shares: list[Share]) -> None:
    lacking = [shares[0].without(["expression"]), *shares[1:]]
    whole = filled(lacking, leave_out=[shares[1].name])
    assert whole[0].expression is not None
    known = pd.concat([share.expression for share in lacking[2:] if share.expression is not None])
    train = [case for share in shares for case in share.cases.index[share.cases["split"] == "train"]]
    mean = known[known.index.isin(train)].mean()
    np.testing.assert_allclose(whole[0].expression.iloc[0].to_numpy(), mean.to_numpy(), rtol=1e-5)


def test_pan_cancer_labels_are_distinct_and_carry_the_cancers_location() -> None:
    tasks = {task.name: task for task in pan_vocabulary(["BRCA", "GBMLGG", "RCC"])}
    for name in ("diagnosis", "stage"):
        assert len(set(tasks[name].values)) == len(tasks[name].values)
        assert all("cancer location" in label.text for label in tasks[name].labels)
    assert set(tasks["stage"].positive) == {"breast III", "breast IV", "kidney III", "kidney IV"}
    assert [label.scale for label in tasks["stage"].labels] == ["breast"] * 4 + ["kidney"] * 4
    assert tasks["grade"].positive == ("brain G3",)
    cases = with_location(pd.DataFrame({"stage": ["II", None], "diagnosis": ["x", "y"]}), "BRCA")
    assert cases["stage"].tolist() == ["breast II", None]
    assert cases["stage"][0] in tasks["stage"].values


def test_cancers_apart_have_a_diagnosis_and_stage_of_their_own_and_one_survival() -> None:
    tasks = {task.name: task for task in pan_vocabulary(["BRCA", "GBMLGG", "RCC"], apart=True)}
    assert {"breast_diagnosis", "breast_stage", "brain_grade", "kidney_diagnosis", "survival"} <= {*tasks}
    assert not {"diagnosis", "stage", "grade"} & {*tasks}
    assert tasks["kidney_stage"].values == ("I", "II", "III", "IV")
    assert tasks["kidney_stage"].positive == ("III", "IV")
    assert all("cancer location kidney" in label.text for label in tasks["kidney_stage"].labels)
    cases = with_cancer_tasks(pd.DataFrame({"stage": ["II"], "diagnosis": ["x"], "event": [1]}), "RCC")
    assert list(cases) == ["kidney_stage", "kidney_diagnosis", "event"]


@pytest.mark.parametrize("cancers", ["together", "apart"])
def test_in_each_of_several_cancers_hospitals_label_different_tasks(
    cancers: str, tcga_dir: Path, tmp_path: Path
) -> None:
    spec = DataSpec(
        kind="tcga", cohorts=("GBMLGG", "RCC"), modalities=("expression",), tasks="disjoint", cancers=cancers
    )
    found = write_scene(spec, 0, tcga_dir, tmp_path)
    tasks = {site: load_site(folder, split_salt="").tasks for site, folder in found.sites.items()}
    brain, kidney = ("brain_", "kidney_") if cancers == "apart" else ("", "")
    assert tasks["GBMLGG-H2"] == (f"{brain}grade",)
    assert tasks["RCC-H1"] == (f"{kidney}diagnosis",)
    assert tasks["RCC-H2"] == (f"{kidney}stage",)
    assert {*tasks["RCC-H4"]} == {f"{kidney}diagnosis", "survival"}
    assert set(tasks["RCC-H5"]) == {f"{kidney}diagnosis", f"{kidney}stage", "survival"}


def feature_file(path: Path) -> None:
    coords = np.arange(6).reshape(3, 2) * 256
    write_bag(path, Bag(features=np.ones((3, 4), dtype=np.float32), coords=coords, patch_size_level0=256), encoder="x")


def test_feature_files_are_found_by_slide_and_only_pointed_to(tmp_path: Path) -> None:
    folder = tmp_path / "BRCA" / "features" / "gigapath"
    (tmp_path / "BRCA").mkdir()
    slides = pd.DataFrame({"case_id": ["a", "a", "b"], "slide_id": ["a-1", "a-2", "b-1"]})
    slides.to_parquet(tmp_path / "BRCA" / "slides.parquet")
    with pytest.raises(DataError, match="BRCA/features/gigapath: a feature file for none of 3 slides"):
        slide_files(tmp_path, "BRCA", "gigapath")
    for slide in ("a-1", "a-2"):
        feature_file(folder / f"{slide}.h5")
    files = slide_files(tmp_path, "BRCA", "gigapath")
    assert {case: [slide for slide, _ in pairs] for case, pairs in files.items()} == {"a": ["a-1", "a-2"]}
    cases = pd.DataFrame({"split": "train", "diagnosis": "x"}, index=pd.Index(["a"], name="case_id"))
    site = write_site(
        tmp_path / "H1", name="H1", tasks=["diagnosis"], cases=cases, expression=None, bags={}, files=files
    )
    assert (site / "features" / "a-1.h5").is_symlink()
    assert len(load_site(site, split_salt="").bags["a"]) == 2
