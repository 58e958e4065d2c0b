"""modaltune explain: pages, tables and pictures of one case and of a cohort, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import Preprocessing
from modaltune.evaluation.metrics import bootstrap_weights
from modaltune.explain.cohort import summarise, summarise_parts
from modaltune.explain.heatmap import head_maps, heat_map
from modaltune.explain.places import SlidePlace, slide_places
from modaltune.federation.study import Study
from modaltune.models.learner import Learner
from modaltune.prediction.site import model_at_site
from tests.prediction.released import Released, Run, one_document, release


def outside(page: str) -> list[str]:
    """Addresses in a page that need another file or a network."""
    return [found for found in re.findall(r"""(?:src|href)=["']([^"']*)""", page) if not found.startswith("data:")]


def test_a_case_becomes_a_page_with_its_pictures_inside(run: Run, released: Released, tmp_path: Path) -> None:
    out = tmp_path / "page"
    code, text, err = run("explain", released.model, released.site, "PATIENT-00", "--out", out, "--json")
    document = one_document(text)
    assert (code, document["page"]) == (0, str(out / "explanation.html"))
    assert "PATIENT" not in text + err
    page = (out / "explanation.html").read_text()
    assert outside(page) == []
    for words in ("PATIENT-00", "stays at the hospital", "research use only", "first slide", "SECOND"):
        assert words in page
    for task in ("diagnosis", "stage", "survival"):
        with Image.open(out / f"attention-{task}.png") as picture:
            assert picture.format == "PNG"
    attention = pd.read_csv(out / "attention.csv")
    assert set(attention["slide"]) == {1, 2}
    np.testing.assert_allclose(attention[["diagnosis", "stage", "survival"]].sum(), 1, atol=1e-4)
    contributions = pd.read_csv(out / "contributions.csv")
    assert set(contributions["kind"]) == {"modality", "gene set"}


def test_the_same_case_gives_the_same_files(run: Run, released: Released, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("explain", released.model, released.site, "PATIENT-00", "--out", tmp_path / name)[0] == 0
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 9  # page, two tables, two pictures a task
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_default_folder_does_not_name_the_patient(run: Run, released: Released) -> None:
    assert run("explain", released.model, released.site, "PATIENT-00")[0] == 0
    assert (released.site / "explanations" / "row-1" / "explanation.html").is_file()


def test_a_case_without_slides_and_one_without_expression_say_so(
    run: Run, released: Released, tiny_cohort: Cohort, tmp_path: Path
) -> None:
    assert tiny_cohort.expression is not None
    no_slides = next(case for case in tiny_cohort.expression.index if case not in tiny_cohort.bags)
    no_genes = next(case for case in tiny_cohort.bags if case not in tiny_cohort.expression.index)
    for case, sentence in ((no_slides, "This case has no slide"), (no_genes, "no gene set contributes")):
        assert run("explain", released.model, released.site, case, "--out", tmp_path / case)[0] == 0
        assert sentence in (tmp_path / case / "explanation.html").read_text()
    assert not (tmp_path / no_slides / "attention.csv").exists()


def test_an_unknown_case_is_refused_without_repeating_it(run: Run, released: Released) -> None:
    code, out, err = run("explain", released.model, released.site, "PATIENT-99")
    assert (code, out) == (2, "")
    assert "CASE is none of 28 usable cases" in err
    assert "PATIENT" not in err


@pytest.mark.parametrize("arguments", [[], ["PATIENT-00", "--cohort"]])
def test_either_a_case_or_the_cohort(arguments: list[str], run: Run, released: Released) -> None:
    code, _, err = run("explain", released.model, released.site, *arguments)
    assert code == 2
    assert "give either a CASE or --cohort" in err


def test_a_folder_without_the_slides_of_the_case_is_refused(run: Run, released: Released, tmp_path: Path) -> None:
    pytest.importorskip("openslide", reason="needs the extra 'slides'")
    (tmp_path / "other.svs").write_bytes(b"")
    code, _, err = run("explain", released.model, released.site, "PATIENT-00", "--slides", tmp_path)
    assert code == 2
    assert "none of the 2 slides of this case" in err
    assert "PATIENT" not in err


def test_the_cohort_has_means_with_intervals_and_no_patient(run: Run, released: Released, tmp_path: Path) -> None:
    arguments = ("explain", released.model, released.site, "--cohort", "--split", "all", "--out", tmp_path, "--json")
    code, text, err = run(*arguments)
    assert code == 0, err
    table = pd.read_csv(tmp_path / "contributions.csv")
    assert ((table["low"] <= table["mean"]) & (table["mean"] <= table["high"])).all()
    assert (table["mean_size"] >= table["mean"].abs() - 1e-6).all()
    everybody = table[table["group"] == "all"]
    assert set(everybody["gene_set"]) == {"FIRST", "SECOND", "THIRD"}
    assert set(everybody["cases"]) == {one_document(text)["cases"]}
    parts = table[table["group"] != "all"]
    assert (parts["cases"] < everybody["cases"].iloc[0]).all(), "a group of everybody says nothing new"
    assert set(parts.groupby(["task", "towards"])["group"].nunique()) <= {2}, "one of two and all tell the other"
    assert set(table["task"]) == {"diagnosis", "stage", "survival"}
    page = (tmp_path / "cohort.html").read_text()
    assert outside(page) == []
    assert "PATIENT" not in page + text + err


def test_one_task_of_the_cohort(run: Run, released: Released, tmp_path: Path) -> None:
    common = ("explain", released.model, released.site, "--cohort", "--split", "all", "--out", tmp_path)
    assert run(*common, "--task", "stage")[0] == 0
    assert set(pd.read_csv(tmp_path / "contributions.csv")["task"]) == {"stage"}
    code, _, err = run(*common, "--task", "grade")
    assert code == 2
    assert "--task 'grade': the model has diagnosis, stage, survival" in err


def test_a_cohort_of_few_patients_is_refused(
    run: Run, tmp_path: Path, tiny_learner: Learner, tiny_study: Study, tiny_preprocessing: Preprocessing,
    tiny_cohort: Cohort,
) -> None:  # fmt: skip
    made = release(tmp_path, tiny_learner, tiny_study, tiny_preprocessing, tiny_cohort, min_cell=6)
    code, _, err = run("explain", made.model, made.site, "--cohort")
    assert code == 2
    assert "fewer than 6 cases of split 'test' have expression" in err
    assert not (made.site / "explanations").exists()


def test_a_small_group_is_named_and_nothing_more() -> None:
    group = summarise("predicted alpha", np.ones((4, 3)), 5, 0)
    assert (group.cases, len(group.mean), len(group.low), len(group.size)) == (None, 0, 0, 0)


@pytest.mark.parametrize(("first", "told"), [(20, None), (16, (16, 5))])
def test_of_two_groups_neither_is_told_where_one_is_too_small(first: int, told: tuple[int, int] | None) -> None:
    """Everybody less one of them is the other, to the last patient."""
    values = np.random.default_rng(0).normal(size=(21, 3))
    inside = np.arange(21) < first
    everybody, *parts = summarise_parts(values, {"these": inside, "those": ~inside}, 5, 0)
    assert everybody.cases == 21
    assert tuple(group.cases for group in parts) == (told or (None, None))
    assert all(len(group.mean) == (3 if told else 0) for group in parts)


def test_a_group_is_resampled_over_patients() -> None:
    values = np.random.default_rng(0).normal(loc=(0, 3), size=(40, 2))
    group = summarise("all", values, 5, 7)
    np.testing.assert_allclose(group.mean, values.mean(axis=0))
    np.testing.assert_allclose(group.size, np.abs(values).mean(axis=0))
    drawn = bootstrap_weights(40, 7, "contributions", "all")[1:] @ values / 40
    np.testing.assert_allclose(group.high - group.low, 3.92 * drawn.std(axis=0), rtol=0.1)


def test_places_are_the_patches_that_the_model_sees_in_its_order(
    tiny_learner: Learner, tiny_study: Study, tiny_preprocessing: Preprocessing, tiny_cohort: Cohort, tmp_path: Path
) -> None:
    """Also where a slide has more patches than the study takes: features tell which ones those are."""
    slides = tiny_study.slides.model_copy(update={"max_patches": 2})
    study = tiny_study.model_copy(update={"slides": slides})
    made = release(tmp_path, tiny_learner, study, tiny_preprocessing, tiny_cohort)
    at = model_at_site(made.model, made.site)
    assert at.preprocessing.patches is not None
    rows = [row for row, case in enumerate(at.cases) if case.patch_count]
    assert sum(at.cases[row].patch_count for row in rows) < sum(
        len(bag.coords) for bags in at.cohort.bags.values() for bag in bags
    ), "the test needs a slide with more patches than the study takes"
    for row in rows:
        seen = at.cases[row].loaded().patches.numpy()
        features = [
            bag.features[[int(np.flatnonzero((bag.coords == corner).all(axis=1))[0])]]
            for place, bag in zip(
                slide_places(at, row, None), at.cohort.bags[str(at.cohort.cases.index[row])], strict=True
            )
            for corner in place.corners
        ]
        np.testing.assert_allclose(at.preprocessing.patches.apply(np.concatenate(features)), seen, atol=1e-6)


def test_a_thumbnail_beside_the_bags_lies_under_the_map(released: Released) -> None:
    at = model_at_site(released.model, released.site)
    assert [place.overview for place in slide_places(at, 0, None)] == [None, None]
    folder = released.site / "thumbnails"
    folder.mkdir()
    Image.new("RGB", (40, 30), "pink").save(folder / "PATIENT-00-slide1.png")
    first, second = slide_places(at, 0, None)
    assert first.overview is None
    assert second.overview is not None
    assert second.overview.shape == (30, 40, 3)


def test_maps_of_many_heads_and_of_few_patches_are_drawn() -> None:
    place = SlidePlace(slide_id="s", corners=np.array([[0, 0], [256, 512]]), edge=256, size=(512, 768))
    even = np.ones(2)
    pictured = replace(place, overview=np.full((30, 20, 3), 200, dtype=np.uint8))
    for png in (heat_map([place, pictured], [even, even], "title"), head_maps([place], [[even]] * 7)):
        assert png.startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_real_slide_gives_its_pixels(real_slide: Path, released: Released) -> None:
    pytest.importorskip("openslide", reason="needs the extra 'slides'")
    corners = np.array([[1280, 2048]])  # tissue
    place = SlidePlace(slide_id="s", corners=corners, edge=256, size=(2220, 2967), file=real_slide)
    pixels = place.tile(corners[0])
    assert pixels is not None
    assert pixels.shape == (224, 224, 3)
    assert pixels.std() > 5
