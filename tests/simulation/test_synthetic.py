from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modaltune.data.cohort import Cohort
from modaltune.data.genesets import read_gene_sets
from modaltune.data.site import load_site
from modaltune.errors import ConfigError
from modaltune.tasks.vocabulary import configs_folder, load_vocabulary
from simulation.difficulty import difficulty
from simulation.sites import disjoint_tasks, draw_split
from simulation.synthetic import HETEROGENEOUS, HOMOGENEOUS, TASKS, SiteLayout, build_synthetic, draw_hospitals

CASES = 150


def load_all(folders: list[Path]) -> dict[str, Cohort]:
    tasks = load_vocabulary(configs_folder() / "labels" / "synthetic.toml")
    labels = {task.name: task.values for task in tasks if task.kind != "survival"}
    return {folder.name: load_site(folder, split_salt="unused", labels=labels) for folder in folders}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Cohort]:
    return load_all(build_synthetic(tmp_path_factory.mktemp("synthetic"), cases=CASES, layout=HOMOGENEOUS))


def test_every_hospital_loads_with_every_task_and_modality(cohorts: Mapping[str, Cohort]) -> None:
    assert list(cohorts) == ["H1", "H2", "H3", "H4", "H5"]
    for cohort in cohorts.values():
        assert cohort.tasks == TASKS
        assert cohort.expression is not None
        assert list(cohort.expression.index) == list(cohort.bags) == list(cohort.cases.index)
        assert cohort.cases.notna().all(axis=None)
    assert sum(len(cohort.cases) for cohort in cohorts.values()) == CASES


def test_patients_and_splits_are_disjoint(cohorts: Mapping[str, Cohort]) -> None:
    cases = pd.concat([cohort.cases for cohort in cohorts.values()])
    assert cases.index.is_unique
    assert cases.index.str.startswith("SYN-H").all()
    assert cases["split"].value_counts(normalize=True)["test"] == pytest.approx(0.25, abs=0.03)
    assert cases["split"].value_counts(normalize=True)["val"] == pytest.approx(0.10, abs=0.03)


def test_bags_have_patches_on_distinct_grid_cells_and_some_cases_have_two_slides(cohorts: Mapping[str, Cohort]) -> None:
    cases = [bags for cohort in cohorts.values() for bags in cohort.bags.values()]
    assert {len(bags) for bags in cases} == {1, 2}
    for bags in cases:
        assert 16 <= sum(len(bag.features) for bag in bags) <= 32
        for bag in bags:
            assert len(np.unique(bag.coords, axis=0)) == len(bag.coords)
            assert not (bag.coords % bag.patch_size_level0).any()


def test_the_default_layout_is_the_documented_one(tmp_path: Path) -> None:
    cohorts = load_all(build_synthetic(tmp_path, cases=60))
    for name, layout in HETEROGENEOUS.items():
        assert cohorts[name].tasks == layout.tasks
        assert (cohorts[name].expression is None) == ("expression" in layout.without)
        assert (not cohorts[name].bags) == ("slides" in layout.without)
    assert HETEROGENEOUS["H1"] == SiteLayout()


def test_tasks_replace_the_layout_and_missing_modalities_add_to_it(tmp_path: Path) -> None:
    options = {"tasks": {"H2": ["survival", "stage"]}, "without": {"H1": ["expression"], "H3": ["slides"]}}
    cohorts = load_all(build_synthetic(tmp_path, cases=60, **options))
    assert cohorts["H2"].tasks == ("stage", "survival")
    assert cohorts["H1"].expression is None
    assert not cohorts["H3"].bags
    with pytest.raises(ConfigError, match="hospital H3 is left without a modality"):
        build_synthetic(tmp_path, cases=60, without={"H3": ["expression"]})


def test_disjoint_tasks_name_every_hospital() -> None:
    found = disjoint_tasks(("H1", "H2", "H3", "H4", "H5"), ("diagnosis", "grade", "survival"))
    assert found["H2"] == ("grade",)
    assert found["H5"] == ("diagnosis", "grade", "survival")


def test_patients_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    some, every = (
        load_all(build_synthetic(tmp_path / name, cases=60, layout=layout))["H3"].cases
        for name, layout in (("some", HETEROGENEOUS), ("every", HOMOGENEOUS))
    )
    pd.testing.assert_frame_equal(some, every[some.columns])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        build_synthetic(tmp_path / name, seed=seed, cases=60)
    first, second, other = (digests(tmp_path / name) for name in ("first", "second", "other"))
    assert first == second
    assert first["H1/expression.parquet"] != other["H1/expression.parquet"]
    assert first["gene_sets.gmt"] == other["gene_sets.gmt"]


def test_building_again_replaces_the_sites_and_leaves_nothing_else(tmp_path: Path) -> None:
    build_synthetic(tmp_path, seed=1, cases=80)
    build_synthetic(tmp_path, seed=1, cases=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["H1", "H2", "H3", "H4", "H5", "gene_sets.gmt"]
    assert sum(len(cohort.cases) for cohort in load_all(sorted(tmp_path.glob("H*"))).values()) == 60


@pytest.mark.parametrize("site_file", [None, 'name = "H2"\ntasks = ["stage"]\n'])
def test_a_folder_that_no_simulation_wrote_is_not_replaced(tmp_path: Path, site_file: str | None) -> None:
    (tmp_path / "H2").mkdir()
    (tmp_path / "H2" / "thesis.txt").write_text("years of work")
    if site_file is not None:
        (tmp_path / "H2" / "site.toml").write_text(site_file)
    with pytest.raises(ConfigError, match="exists and was not written by a simulation"):
        build_synthetic(tmp_path, cases=60)
    assert (tmp_path / "H2" / "thesis.txt").exists()


def test_gene_sets_overlap_and_are_measured(tmp_path: Path, cohorts: Mapping[str, Cohort]) -> None:
    build_synthetic(tmp_path, cases=60)
    sets = read_gene_sets(tmp_path / "gene_sets.gmt")
    expression = cohorts["H1"].expression
    assert expression is not None
    members = [gene for genes in sets.values() for gene in genes]
    assert len(sets) == 24
    assert set(members) <= set(expression.columns)
    assert len(set(members)) < len(members)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cases": 10}, "cases must be at least 60"),
        ({"tasks": {"H9": ["stage"]}}, "unknown hospital 'H9'; choose from H1, H2, H3, H4, H5"),
        ({"tasks": {"H1": ["grade"]}}, "unknown task 'grade'; choose from diagnosis, stage, survival"),
        ({"tasks": {"H1": []}}, "H1 is left without a task"),
        ({"without": {"H1": ["rna"]}}, "unknown modality 'rna'; choose from expression, slides"),
        ({"without": {"H1": ["expression", "slides"]}}, "H1 is left without a modality"),
    ],
)
def test_a_wrong_option_lists_the_right_ones(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        build_synthetic(tmp_path, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_hospitals_differ_in_size_stain_and_genes() -> None:
    hospitals = draw_hospitals(0, 400)
    sizes = [len(hospital.cases) for hospital in hospitals.values()]
    assert sizes == sorted(sizes, reverse=True)
    genes = np.stack([hospital.expression.to_numpy().mean(axis=0) for hospital in hospitals.values()])
    assert genes.std(axis=0).mean() > 0.3


def test_about_half_of_the_patients_die_and_every_label_occurs() -> None:
    cases = pd.concat([hospital.cases for hospital in draw_hospitals().values()])
    assert 0.40 <= cases["event"].mean() <= 0.52
    assert cases["stage"].value_counts(normalize=True).min() > 0.05
    assert cases["diagnosis"].value_counts(normalize=True).min() > 0.25
    assert (cases["time_months"] > 0).all()


def test_difficulty_is_as_documented() -> None:
    scores = difficulty(seed=0)
    assert 0.89 <= scores["oracle"]["diagnosis"] <= 0.96
    assert 0.85 <= scores["oracle"]["stage"] <= 0.92
    assert 0.74 <= scores["oracle"]["survival"] <= 0.81
    assert 0.78 <= scores["linear"]["diagnosis"] <= 0.88
    for task in TASKS:
        assert scores["oracle"][task] > scores["linear"][task] > scores["linear local"][task]


def test_a_split_is_stratified_and_reproducible() -> None:
    strata = pd.Series(["a"] * 70 + ["b"] * 20 + ["c"] * 10, index=[f"case-{number}" for number in range(100)])
    split = draw_split(strata, 0, "H1")
    assert split.equals(draw_split(strata, 0, "H1"))
    assert not split.equals(draw_split(strata, 1, "H1"))
    assert not split.equals(draw_split(strata, 0, "H2"))
    for stratum, share in split.groupby(strata):
        assert (share == "train").mean() == pytest.approx(0.65, abs=0.11), stratum
    assert split.value_counts()["test"] == pytest.approx(25, abs=1)


def test_nothing_is_logged_about_patients(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        load_all(build_synthetic(tmp_path, cases=60))
    assert "SYN-" not in caplog.text
