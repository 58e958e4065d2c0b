from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modaltune.data.slide_settings import SlideSettings
from modaltune.errors import FederationError, ReplyRefused
from modaltune.federation.capability import (
    Capability,
    check_alike,
    check_like_others,
    check_panel,
    check_versions,
    gene_panel,
)
from modaltune.federation.study import Study

RECORD: dict[str, Any] = {
    "site": "H2",
    "tasks": ["diagnosis", "survival"],
    "modalities": ["slides", "expression"],
    "genes": ["G01", "G05"],
    "cases-train": 12,
    "cases-val": 0,
    "cases-test": 5,
    "version-flwr": "1.41.0",
    "version-torch": "2.13.0+cpu",
    "patch-encoder": "uni2_h",
    "patch-mpp": 0.5,
}


def test_a_complete_reply_is_understood(tiny_study: Study) -> None:
    assert Capability.parse(RECORD, tiny_study) == Capability(
        site="H2",
        tasks=("diagnosis", "survival"),
        modalities=("slides", "expression"),
        genes=("G01", "G05"),
        train_cases=12,
        val_cases=0,
        test_cases=5,
        versions={"flwr": "1.41.0", "torch": "2.13.0+cpu"},
        patches=SlideSettings(patch_encoder="uni2_h", mpp=0.5),
    )


def test_lists_that_are_empty_may_be_absent(tiny_study: Study) -> None:
    short = {name: value for name, value in RECORD.items() if name not in ("genes", "tasks", "modalities")}
    found = Capability.parse(short, tiny_study)
    assert (found.genes, found.tasks, found.modalities) == ((), (), ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"site": "H9"}, "no site of the roster"),
        ({"site": None}, "no site of the roster"),
        ({"site": ["H2"]}, "no site of the roster"),
        ({"tasks": ["grade"]}, "reply of H2 refused: it names a task outside the study"),
        ({"cases-train": -1}, "its case counts are not whole numbers"),
        ({"cases-val": 2.5}, "its case counts are not whole numbers"),
        ({"cases-test": None}, "its case counts are not whole numbers"),
        ({"patch-encoder": "Mrs Smith"}, "its patch-encoder cannot be right"),
        ({"patch-encoder": 7}, "its patch-encoder cannot be right"),
        ({"patch-mpp": float("nan")}, "its patch-mpp cannot be right"),
        ({"patch-mpp": 1900.0}, "its patch-mpp cannot be right"),
        ({"patch-size": True}, "its patch-size cannot be right"),
        ({"patch-size": 0}, "its patch-size cannot be right"),
    ],
)
def test_a_reply_that_does_not_fit_the_study_is_refused(
    change: dict[str, Any], message: str, tiny_study: Study
) -> None:
    with pytest.raises(ReplyRefused, match=message):
        Capability.parse({**RECORD, **change}, tiny_study)


@pytest.fixture
def site(tiny_study: Study) -> Capability:
    return Capability.parse(RECORD, tiny_study)


def test_the_panel_is_what_all_sites_with_expression_measure_and_some_set_names(
    site: Capability, tiny_study: Study
) -> None:
    sites = {
        "H1": replace(site, genes=("G09", "G05", "G01", "G10")),
        "H2": replace(site, genes=("G01", "G02", "G09", "G10")),
        "H3": replace(site, genes=(), modalities=("slides",)),
    }
    assert gene_panel(sites, tiny_study) == ["G01", "G09"]  # every site has G10, but no set does
    assert gene_panel(dict(reversed(sites.items())), tiny_study) == ["G01", "G09"]


def test_a_latecomer_measures_what_the_study_has_agreed_on(site: Capability, tiny_study: Study) -> None:
    check_panel(site, ("G01", "G05"), tiny_study)
    check_panel(replace(site, genes=(), modalities=("slides",)), ("G01", "G09"), tiny_study)
    with pytest.raises(ReplyRefused, match="it lacks 1 of the 2 genes that the study began with"):
        check_panel(site, ("G01", "G09"), tiny_study)
    check_panel(site, ("G01", "G09"), tiny_study.model_copy(update={"gene_panel": "union"}))


def test_without_expression_or_without_gene_sets_there_is_no_panel(site: Capability, tiny_study: Study) -> None:
    assert gene_panel({"H1": replace(site, genes=(), modalities=("slides",))}, tiny_study) == []
    assert gene_panel({"H1": site}, tiny_study.model_copy(update={"gene_sets": {}})) == []


def test_sites_that_share_no_gene_are_an_error(site: Capability, tiny_study: Study) -> None:
    foreign = Capability.parse({**RECORD, "genes": ["ENSG0001"]}, tiny_study)
    assert foreign.genes == (), "no name beyond those of the study travels"
    sites = {"H1": site, "H2": foreign}
    with pytest.raises(FederationError, match=r"share 0 genes .* measured by site: H1 2, H2 0; check"):
        gene_panel(sites, tiny_study)


def test_a_site_may_not_claim_more_cases_than_the_study_allows_it(tiny_study: Study) -> None:
    study = tiny_study.model_copy(update={"site_cases": {"H2": 11}})
    with pytest.raises(ReplyRefused, match="it claims 12 training cases and the study allows it 11"):
        Capability.parse(RECORD, study)


def test_what_a_site_says_beyond_the_study_is_left_out(tiny_study: Study) -> None:
    told = {
        **RECORD,
        "genes": ["G01", "Mrs Smith"],
        "modalities": ["slides", "\x1b[31m"],
        "version-torch": "\x1b[2J2.13",
    }
    found = Capability.parse(told, tiny_study)
    assert (found.genes, found.modalities) == (("G01",), ("slides",))
    assert "torch" not in found.versions


def test_builds_of_one_version_may_differ(site: Capability) -> None:
    on_gpu = replace(site, versions={**site.versions, "torch": "2.13.0+cu130"})
    assert check_versions(on_gpu, {"flwr": "1.41.0", "torch": "2.13.0+cpu"}) is None


@pytest.mark.parametrize("versions", [{"flwr": "1.41.0", "torch": "2.12.1"}, {"flwr": "1.41.0"}])
def test_a_site_with_other_versions_is_refused_in_one_line(site: Capability, versions: dict[str, str]) -> None:
    other = replace(site, versions=versions)
    with pytest.raises(ReplyRefused, match=r"it runs torch (2\.12\.1|none) and the coordinator 2\.13\.0; install"):
        check_versions(other, {"flwr": "1.41.0", "torch": "2.13.0"})


UNLIKE: dict[str, tuple[dict[str, Any], str]] = {
    "encoder": ({"patch_encoder": "gigapath", "mpp": 0.5}, "patch encoder uni2_h, those of H3 gigapath"),
    "resolution": ({"mpp": 0.25}, "0.5 micrometres per pixel, those of H3 0.25"),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_patches_that_were_made_otherwise_at_two_sites_end_a_study_before_it_begins(
    what: str, site: Capability
) -> None:
    said, message = UNLIKE[what]
    sites = {"H1": replace(site, site="H1", patches=SlideSettings()), "H2": site}
    check_alike(sites)
    other = replace(site, site="H3", patches=SlideSettings(**said))
    with pytest.raises(FederationError, match=f"the bags of site H2 have {message}; say under"):
        check_alike(sites | {"H3": other})


def test_a_latecomer_with_other_patches_is_refused_alone(site: Capability) -> None:
    late = replace(site, site="H5", patches=SlideSettings(patch_encoder="gigapath"))
    with pytest.raises(
        ReplyRefused, match="reply of H5 refused: its bags have patch encoder gigapath, those of H2 uni"
    ):
        check_like_others(late, {"H2": site})
    check_like_others(replace(late, patches=SlideSettings(mpp=0.499)), {"H2": site})
