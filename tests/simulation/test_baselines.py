"""Rows of the baselines, on synthetic hospitals; the federated ones with the federation left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from modaltune.errors import ConfigError
from modaltune.federation.settings import NEEDS
from modaltune.federation.statistics import pooled_preprocessing, site_statistics
from modaltune.federation.study import Study
from modaltune.models.baselines.registry import ROWS
from modaltune.models.learner import build_learner
from modaltune.tasks.vocabulary import configs_folder, load_vocabulary
from simulation.baselines import NAMES, WAYS, baseline_methods, chosen_methods, remarks, run_baselines
from simulation.compare import Hospitals, Scene
from simulation.experiment import COMPARISONS
from simulation.outcomes import Outcome, Scorer
from simulation.study import draft_study, read_sites
from simulation.synthetic import HOMOGENEOUS, build_synthetic


def quiet(_: str) -> None:
    pass


def never(study: Study) -> pd.DataFrame:
    raise AssertionError(f"{study.name} was federated")


def scene_of(folder: Path, without: dict[str, tuple[str, ...]]) -> Scene:
    sites = build_synthetic(folder, seed=0, cases=200, layout=HOMOGENEOUS, without=without)[:2]
    tasks = load_vocabulary(configs_folder() / "labels" / "synthetic.toml")
    cohorts = read_sites(sites, tasks, "t")
    settings = {"slides": {"standardise": "feature", "max_patches": 8}, "training": {"rounds": 1}}
    study = draft_study("t", cohorts, tasks, folder / "gene_sets.gmt", settings, seed=0)
    panel = sorted({gene for members in study.gene_sets.values() for gene in members})
    sums = {site: site_statistics(cohort, study, panel) for site, cohort in cohorts.items()}
    found = dict(zip(cohorts, sites, strict=True))
    preprocessing = pooled_preprocessing(sums, study, panel)
    return Scene(sites=found, truth=found, study=study.to_json(), preprocessing=preprocessing.to_json())


@pytest.fixture(scope="module")
def genes_only(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Two hospitals without slides."""
    without = {"H1": ("slides",), "H2": ("slides",)}
    return scene_of(tmp_path_factory.mktemp("sites"), without)


@pytest.fixture(scope="module")
def half_with_slides(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Two hospitals of which only the first has slides."""
    return scene_of(tmp_path_factory.mktemp("sites"), {"H2": ("slides",)})


def test_a_name_alone_means_all_three_ways_and_baselines_every_row() -> None:
    assert baseline_methods("abmil") == ("abmil/federated", "abmil/local", "abmil/pooled")
    assert baseline_methods("mcat/local") == ("mcat/local",)
    assert len(baseline_methods("baselines")) == (len(NAMES) - 3) * len(WAYS) == 12 * 3, "TITAN's rows by name only"
    assert set(NAMES) == {"gigapath_lp", "titan_lp", *ROWS} == set(NEEDS) - {"modaltune"}
    assert baseline_methods("abmil/central") == ()


def test_comparisons_and_baselines_mix_and_each_row_comes_once() -> None:
    assert chosen_methods(["pooled", "abmil", "abmil/local", "pooled"], COMPARISONS) == (
        "pooled",
        *baseline_methods("abmil"),
    )
    with pytest.raises(
        ConfigError, match=r"unknown 'resnet'; choose from pooled, .*, baselines, gigapath_lp, titan_lp, abmil"
    ):
        chosen_methods(["pooled", "resnet"], COMPARISONS)


def test_models_to_compare_with_see_the_cached_tokens_that_the_federation_sees(half_with_slides: Scene) -> None:
    study = Study.from_json(half_with_slides.study)
    late = study.model_copy(update={"model": study.model.model_copy(update={"groups": ((1, 1),)})})
    data = Hospitals(replace(half_with_slides, study=late.to_json()))
    learner = build_learner(late, data.preprocessing)
    cases = [case for case in data.shown(learner, "H1", "train") if case.patch_count]
    kept = half_with_slides.sites["H1"] / ".state" / "prefix"
    assert len(list(kept.glob("*.safetensors"))) == len(cases) > 0
    assert all(case.tokens is not None and not len(case.patches) for case in cases)


def test_a_baseline_whose_modality_nobody_has_is_a_row_without_value_and_says_why(genes_only: Scene) -> None:
    data = Hospitals(genes_only)
    wanted = [method for kind in ("abmil", "survpath", "gigapath_lp") for method in baseline_methods(kind)]
    found = list(run_baselines(wanted, data, genes_only, never, quiet))
    assert sorted(row.method for row in found) == sorted(wanted)
    assert all(not row.tables for row in found)
    notes = {note for row in found for note in row.notes}
    assert "abmil: n/a: no training case has slides." in notes
    assert "survpath: n/a: no training case has slides and expression." in notes


def test_a_probe_leaves_out_cases_without_slides_and_says_how_many_and_that_its_encoder_is_a_stand_in(
    half_with_slides: Scene,
) -> None:
    data = Hospitals(half_with_slides)
    methods = ("gigapath_lp/pooled", "gigapath_lp/local", "gigapath_lp/federated")
    found = {row.method: row for row in run_baselines(methods, data, half_with_slides, never, quiet)}
    pooled = found["gigapath_lp/pooled"].tables[""]
    assert set(pooled["hospital"]) == {"H1"}
    assert list(found["gigapath_lp/local"].tables) == ["H1"]
    assert set(found["gigapath_lp/federated"].tables[""]["hospital"]) == {"H1"}
    test = {site: int((data.truth[site].cases["split"] == "test").sum()) for site in data.truth}
    expected = f"gigapath_lp: {test['H2']} of {sum(test.values())} test cases lack slides and are left out of its rows."
    assert expected in found["gigapath_lp/pooled"].notes
    assert any("stand-in" in note and "'small'" in note for note in found["gigapath_lp/pooled"].notes)


def test_a_probe_on_slides_never_reads_expression_and_one_hospital_is_not_enough_where_two_are_asked(
    half_with_slides: Scene,
) -> None:
    notes = {}

    def tables(data: Hospitals) -> dict[str, pd.DataFrame]:
        methods = ("gigapath_lp/pooled", "gigapath_lp/federated")
        rows = {row.method: row for row in run_baselines(methods, data, half_with_slides, never, quiet)}
        notes.update({method: row.notes for method, row in rows.items()})
        return {method: row.tables[""] for method, row in rows.items()}

    data = Hospitals(half_with_slides)
    before = tables(data)
    for cases in data.cases.values():
        cases[:] = [replace(case, expression=case.expression + 1) for case in cases]
    privacy = data.study.privacy.model_copy(update={"min_contributors": 2})
    data.study = data.study.model_copy(update={"privacy": privacy})
    after = tables(data)
    pd.testing.assert_frame_equal(after["gigapath_lp/pooled"], before["gigapath_lp/pooled"])
    assert len(before["gigapath_lp/federated"])
    assert after["gigapath_lp/federated"].empty
    why = "not fitted, 1 of 2 sites contribute, min_contributors = 2."
    assert f"gigapath_lp/federated, probe of diagnosis: {why}" in notes["gigapath_lp/federated"]
    assert not any("probe of" in note for note in notes["gigapath_lp/pooled"])


@pytest.mark.parametrize("way", ["lp", "tuned", "cat"])
def test_a_row_is_marked_unless_its_own_encoder_made_it(way: str, half_with_slides: Scene) -> None:
    def said(kind: str, encoder: str) -> str:
        slides = data.study.slides.model_copy(update={"encoder": encoder})
        data.study = data.study.model_copy(update={"slides": slides})
        return " ".join(note for note in remarks(kind, data) if "encoder" in note)

    data, gigapath, titan = Hospitals(half_with_slides), f"gigapath_{way}", f"titan_{way}"
    assert not said(gigapath, "longnet") + said(titan, "titan") + said("abmil", "small") + said("modaltune", "small")
    assert said(gigapath, "small") == f"{gigapath}: stand-in: the slide encoder is 'small' in place of Prov-GigaPath."
    assert said(titan, "small") == f"{titan}: stand-in: the slide encoder is 'small' in place of TITAN."
    assert said(gigapath, "titan") == f"{gigapath}: the slide encoder is TITAN, not Prov-GigaPath."


def test_a_probe_of_several_cohorts_is_one_of_each_and_is_not_scored_over_all(half_with_slides: Scene) -> None:
    scene = replace(half_with_slides, cancers={"H1": "BRCA", "H2": "RCC"})
    data, outcome = Hospitals(scene), Outcome()
    for found in run_baselines(("gigapath_lp/federated",), data, scene, never, quiet):
        Scorer(data, outcome).record(found.method, found.tables, everybody=found.everybody)
    assert {row["hospital"] for row in outcome.rows} == {"H1", "H2"}
    assert {row["hospital"] for row in outcome.rows if row["value"] is not None} == {"H1"}
    assert set(outcome.predictions[0]["task"]) <= {task.name for task in data.study.tasks}


def test_the_budget_of_a_baseline_counts_the_cases_that_it_can_read(half_with_slides: Scene) -> None:
    data = Hospitals(half_with_slides)
    assert 0 < data.budget(("slides",)) < data.budget() == data.budget(("expression",))


def test_a_trained_baseline_is_federated_as_a_variant_and_trained_in_one_place_with_the_same_steps(
    half_with_slides: Scene,
) -> None:
    data, federated, said = Hospitals(half_with_slides), [], []

    def federate(study: Study) -> pd.DataFrame:
        federated.append(study)
        return pd.DataFrame({"hospital": []})

    rows = list(run_baselines(baseline_methods("abmil"), data, half_with_slides, federate, said.append))
    assert [row.method for row in rows] == ["abmil/federated", "abmil/pooled", "abmil/local"]
    assert [study.model.kind for study in federated] == ["abmil"]
    assert set(rows[1].tables) == {""}
    assert set(rows[2].tables) == {"H1"}  # H2 has nothing that it could train on
    assert set(rows[1].tables[""]["hospital"]) == {"H1"}
    assert any(f"{data.budget(('slides',))} steps each" in line for line in said)
