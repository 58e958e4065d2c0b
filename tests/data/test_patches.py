from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modaltune.data.bag_files import open_bag
from modaltune.data.bags import BagFiles, SlideFile, check_features, write_bag
from modaltune.data.batch import CaseTensors, collate, without_modality
from modaltune.data.cohort import Bag, Cohort
from modaltune.data.loading import held, loaded_ahead
from modaltune.data.patches import CasePatches
from modaltune.data.preprocessing import Preprocessing, prepare
from modaltune.data.scale import Scale
from modaltune.errors import FeatureFileError
from modaltune.federation.inputs import SlideSpec
from modaltune.federation.study import Study
from modaltune.models.learner import Learner
from modaltune.models.modaltune import trainable_state
from modaltune.step import loss_of
from modaltune.training import fit, labelled

WIDTH = 3


def a_bag(patches: int, first: int = 0) -> Bag:
    """Row n holds the number ``first + n`` and lies in cell (n, n mod 7)."""
    number = np.arange(patches)
    features = np.repeat((first + number)[:, None], WIDTH, axis=1).astype(np.float32)
    return Bag(features=features, coords=np.stack([number, number % 7], axis=1) * 256, patch_size_level0=256)


def patches_of(*bags: Bag, limit: int = 8, scale: Scale | None = None, **options: Any) -> CasePatches:
    slides = SlideSpec(in_width=WIDTH, sha256="0" * 64, max_patches=limit, **options)
    source = CasePatches(bags={"c": bags}, case_id="c", site="H1", row=2, slides=slides, scale=scale, seed=5)
    return source.checked()


@given(size=st.integers(1, 60), limit=st.integers(1, 60), seed=st.integers(0, 2**31))
def test_a_subset_is_ascending_without_repeats_of_the_right_size_and_the_same_every_time(
    size: int, limit: int, seed: int
) -> None:
    source = replace(patches_of(a_bag(size), limit=limit), seed=seed)
    found = source.load()
    rows = found["patches"][:, 0].long()
    assert len(rows) == source.count == min(size, limit)
    assert source.nbytes == found["patches"].nbytes
    assert (rows.diff() > 0).all()
    assert 0 <= rows.min() <= rows.max() < size
    assert torch.equal(found["cells"], torch.stack([rows, rows % 7], dim=1))
    assert all(torch.equal(found[name], source.load()[name]) for name in found)


def test_a_patients_subset_does_not_depend_on_who_else_is_in_the_table() -> None:
    source = patches_of(a_bag(60))
    moved = replace(source, row=7, site="H2").load()["patches"]
    assert torch.equal(moved, source.load()["patches"])
    other = replace(source, bags={"d": source.bags["c"]}, case_id="d").load()["patches"]
    assert not torch.equal(other, moved)


def test_bags_within_the_limit_are_taken_whole_in_the_order_of_the_file() -> None:
    scale = Scale(mean=(1.0, 2.0, 3.0), deviation=(2.0, 1.0, 0.0))
    bags = a_bag(8), a_bag(5, first=100)
    found = patches_of(*bags, scale=scale, standardise="feature", limit=13).load()["patches"]
    expected = np.concatenate([scale.apply(np.asarray(bag.features)) for bag in bags])
    assert np.array_equal(found.numpy(), expected)


def test_every_patch_has_the_same_chance() -> None:
    counts = np.zeros(40)
    source = patches_of(a_bag(40), limit=10, resample=True)
    for seed in range(400):
        counts[source.resampled(seed).load()["patches"][:, 0].long().numpy()] += 1
    assert counts.sum() == 4000
    assert 60 < counts.min() <= counts.max() < 145  # 100 expected, deviation 8.7


def test_slides_lie_side_by_side_wherever_the_subset_falls() -> None:
    source = patches_of(a_bag(50), a_bag(50, first=1000), resample=True)
    for seed in range(5):
        found = source.resampled(seed).load()
        second = found["patches"][:, 0] >= 1000
        assert len(second) == 8, "the limit is of the case"
        assert torch.equal(found["cells"][:, 1], found["cells"][:, 0] % 7 + 8 * second)
        assert [len(corners) for corners in source.resampled(seed).corners()] == [8 - int(second.sum()), second.sum()]


def test_slides_fill_the_grid_shelf_by_shelf_and_their_blank_margins_do_not_count() -> None:
    far = replace(a_bag(300), coords=a_bag(300).coords + np.array([500, 990]) * 256)
    cells = patches_of(*[far] * 250, limit=250 * 300).load()["cells"]
    assert len(torch.unique(cells, dim=0)) == len(cells)
    assert cells.min() == 0
    assert cells[:, 0].max() == 301 + 299, "125 slides beside each other, and as many on the second shelf"
    assert torch.equal(patches_of(far, limit=300).load()["cells"], torch.from_numpy(far.coords // 256)), "one stays"


def test_where_every_row_counts_the_limit_is_not_passed_over_in_silence() -> None:
    with pytest.raises(FeatureFileError, match=r"8 rows but slides\.max_patches = 7; .* raise it"):
        patches_of(a_bag(4), a_bag(4), standardise="position", rows=4, limit=7)


def test_a_fresh_subset_comes_only_where_the_study_asks_and_a_slide_is_larger() -> None:
    for source in (patches_of(a_bag(50)), patches_of(a_bag(8), resample=True)):
        assert source.fixed
        assert source.resampled(1) is source
    source = patches_of(a_bag(50), resample=True)
    draws = [source.resampled(seed).load()["patches"] for seed in (1, 2, 1)]
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def test_coordinates_that_do_not_fit_are_found_before_training() -> None:
    far = replace(a_bag(2), coords=np.array([[0, 0], [256_000, 0]]))
    with pytest.raises(FeatureFileError, match="site H1, case row 2, slide 0: patch coordinates reach cell 1000"):
        patches_of(far)
    with pytest.raises(FeatureFileError, match="376 slides need 1203 rows of a grid of 1000"):
        patches_of(*[a_bag(300)] * 376)  # 125 beside each other
    with pytest.raises(FeatureFileError, match=r"bag has 5 rows but slides.standardise = 'position' needs 4"):
        patches_of(a_bag(5), standardise="position", rows=4)


def test_a_fresh_subset_cannot_go_with_cached_layers(tiny_study: Study) -> None:
    value = tiny_study.model_dump(mode="json")
    value["slides"]["resample"] = True
    assert Study.model_validate(value).slides.resample
    value["model"]["groups"] = [[1, 1]]
    with pytest.raises(ValueError, match=r"slides\.resample needs adapters from the first layer on"):
        Study.model_validate(value)


@pytest.fixture
def large(tiny_cohort: Cohort, tmp_path: Path) -> Cohort:
    """The tiny cohort with its bags in files."""
    files: dict[str, list[SlideFile]] = {}
    for case, bags in tiny_cohort.bags.items():
        for number, bag in enumerate(bags):
            write_bag(tmp_path / f"{case}-{number}.h5", bag, encoder="test")
            files.setdefault(case, []).append(SlideFile(tmp_path / f"{case}-{number}.h5", f"row {case}"))
    return replace(tiny_cohort, bags=BagFiles(files))


def same(one: CaseTensors, other: CaseTensors) -> bool:
    return torch.equal(one.patches, other.patches) and torch.equal(one.cells, other.cells)


def test_cases_beyond_the_limit_stay_on_disk_and_are_the_same_when_loaded(
    large: Cohort, tiny_study: Study, tiny_preprocessing: Preprocessing, tiny_cases: list[CaseTensors]
) -> None:
    total = sum(case.patches.nbytes for case in tiny_cases)
    for limit in (0, total // 2, total):
        cases = prepare(large, tiny_study, tiny_preprocessing, memory_limit=limit)
        assert sum(case.patches.nbytes for case in cases) <= limit
        assert any(case.stored is not None for case in cases) == (limit < total)
        assert [case.patch_count for case in cases] == [case.patch_count for case in tiny_cases]
        assert all(same(case.loaded(), known) for case, known in zip(cases, tiny_cases, strict=True))
        assert torch.equal(collate(cases).patches, collate(tiny_cases).patches)


def test_a_case_on_disk_loses_its_slides_like_any_other(
    large: Cohort, tiny_study: Study, tiny_preprocessing: Preprocessing
) -> None:
    case = prepare(large, tiny_study, tiny_preprocessing, memory_limit=0)[0]
    assert case.patch_count > 0
    without = without_modality(case, "slides")
    assert without.patch_count == len(without.loaded().patches) == 0


def test_training_from_disk_gives_the_same_weights_as_from_memory(
    large: Cohort,
    tiny_study: Study,
    tiny_preprocessing: Preprocessing,
    tiny_cases: list[CaseTensors],
    tiny_learner: Learner,
) -> None:
    start = {name: value.clone() for name, value in trainable_state(tiny_learner).items()}
    ends = []
    for cases in (tiny_cases, prepare(large, tiny_study, tiny_preprocessing, memory_limit=0)):
        for name, value in trainable_state(tiny_learner).items():
            value.data.copy_(start[name])
        loss = fit(tiny_learner, cases, tiny_study.training, steps=4, seed=1).loss
        tiny_learner.eval()
        ends.append((loss, loss_of(tiny_learner, labelled(cases), "contrastive"), digest(tiny_learner)))
    assert ends[0] == ends[1]


def digest(learner: Learner) -> float:
    return float(sum(value.double().abs().sum() for value in trainable_state(learner).values()))


def test_training_draws_a_fresh_subset_in_each_epoch_and_evaluation_does_not(
    large: Cohort,
    tiny_study: Study,
    tiny_preprocessing: Preprocessing,
    tiny_learner: Learner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slides = tiny_study.slides.model_copy(update={"max_patches": 2, "resample": True})
    study = tiny_study.model_copy(update={"slides": slides})
    seen: list[tuple[int, int]] = []
    load = CasePatches.load

    def spy(source: CasePatches) -> dict[str, Tensor]:
        if not source.fixed:
            seen.append((source.row, source.seed))
        return load(source)

    monkeypatch.setattr(CasePatches, "load", spy)
    cases = labelled(prepare(large, study, tiny_preprocessing))
    spec = study.training.model_copy(update={"batch_size": len(cases), "modality_dropout": 0.0})
    fit(tiny_learner, cases, spec, steps=3, seed=1)
    larger = {row for row, _ in seen}
    assert larger
    assert len(seen) == 3 * len(larger)
    assert len({seed for _, seed in seen}) == 3
    seen.clear()
    losses = {loss_of(tiny_learner.eval(), cases, "contrastive") for _ in range(2)}
    assert len(losses) == 1
    assert {seed for _, seed in seen} == {study.seed}


@dataclass(frozen=True)
class Counted:
    """Stored patches that note when they are read, and by which thread."""

    number: int
    log: list[tuple[int, str]]
    count: int = 1
    nbytes: int = 12
    fixed: bool = True

    def load(self) -> dict[str, Tensor]:
        self.log.append((self.number, threading.current_thread().name))
        if self.number == 13:
            raise FeatureFileError("row 13: damaged")
        return {"patches": torch.full((1, WIDTH), float(self.number)), "cells": torch.zeros(1, 2, dtype=torch.long)}

    def resampled(self, seed: int) -> Self:
        return self


def counted(numbers: range, log: list[tuple[int, str]]) -> Iterator[CaseTensors]:
    empty = {"patches": torch.zeros(0, WIDTH), "cells": torch.zeros(0, 2, dtype=torch.long)}
    for number in numbers:
        yield CaseTensors(
            **empty,
            expression=torch.zeros(0),
            has_expression=False,
            clinical=torch.zeros(0),
            targets={},
            stored=Counted(number, log),
        )


def test_the_next_group_is_read_by_a_thread_while_the_caller_works_and_no_further_one() -> None:
    log: list[tuple[int, str]] = []
    cases = list(counted(range(6), log))
    for place, group in enumerate(loaded_ahead([case] for case in cases)):
        assert float(group[0].patches[0, 0]) == place
        assert len(log) <= place + 2
    assert [number for number, _ in log] == list(range(6))
    assert threading.current_thread().name not in {name for _, name in log}
    assert all(case.stored is not None for case in cases)


def test_a_file_that_cannot_be_read_stops_the_caller_with_its_line() -> None:
    with pytest.raises(FeatureFileError, match="row 13: damaged"):
        list(loaded_ahead([case] for case in counted(range(11, 16), [])))


def test_memory_is_held_up_to_the_limit() -> None:
    assert [case.stored is None for case in held(counted(range(4), []), 30)] == [True, True, False, False]


def test_a_bag_of_200000_patches_passes_in_bounded_memory(tmp_path: Path) -> None:
    path, patches, width = tmp_path / "a.h5", 200_000, 64
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", (patches, width), "f4", fillvalue=1.0)
        features[::20_000] = 0.5
        place = np.arange(patches)
        file["coords"] = np.stack([place // 1000, place % 1000], axis=1).astype(np.int32)
        file["coords"].attrs["patch_size_level0"] = 1
    bag, _ = open_bag(path)
    tracemalloc.start()
    check_features(bag, "x")
    wanted = np.sort(np.random.default_rng(0).choice(patches, 4096, replace=False))
    assert bag.features[wanted].shape == (4096, width)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6 < 4 * patches * width
