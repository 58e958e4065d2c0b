from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modaltune.data.batch import CaseTensors, collate
from modaltune.data.preprocessing import Preprocessing
from modaltune.evaluation.predictions import embed_cases
from modaltune.federation.study import Study
from modaltune.models.learner import Learner, build_learner
from modaltune.models.prefix import with_cached_prefix

SHA = "0" * 64


@pytest.fixture
def late(tiny_study: Study, tiny_preprocessing: Preprocessing, tiny_targets: dict[str, torch.Tensor]) -> Learner:
    last = tiny_study.slides.depth - 1
    spec = tiny_study.model.model_copy(update={"groups": ((last, last),)})
    return build_learner(tiny_study.model_copy(update={"model": spec}), tiny_preprocessing, tiny_targets).eval()


def test_cached_tokens_beyond_the_limit_stay_on_disk_and_are_the_same(
    late: Learner, tiny_cases: list[CaseTensors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = with_cached_prefix(late.modaltune, SHA, tiny_cases, tmp_path)
    monkeypatch.setattr("modaltune.data.loading.MEMORY_LIMIT", 0)
    there = with_cached_prefix(late.modaltune, SHA, tiny_cases, tmp_path)
    assert all(case.tokens is None for case in there)
    assert [case.patch_count for case in there] == [case.patch_count for case in here]
    one, other = collate(here), collate(there)
    assert one.tokens is not None
    assert other.tokens is not None
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.cells, other.cells)


def test_cached_cases_give_the_same_embeddings(late: Learner, tiny_cases: list[CaseTensors], tmp_path: Path) -> None:
    cached = with_cached_prefix(late.modaltune, SHA, tiny_cases, tmp_path)
    assert [case.patch_count for case in cached] == [case.patch_count for case in tiny_cases]
    assert not any(len(case.patches) for case in cached)
    expected, found = embed_cases(late, tiny_cases), embed_cases(late, cached)
    for task, value in expected.items():
        torch.testing.assert_close(found[task], value, atol=5e-3, rtol=5e-3)  # half precision


def test_a_case_is_computed_once(
    late: Learner, tiny_cases: list[CaseTensors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = with_cached_prefix(late.modaltune, SHA, tiny_cases, tmp_path)
    assert len(list(tmp_path.iterdir())) == sum(case.patch_count > 0 for case in tiny_cases)
    monkeypatch.setattr(late.modaltune, "image_tokens", None)
    again = with_cached_prefix(late.modaltune, SHA, tiny_cases, tmp_path)
    for one, other in zip(first, again, strict=True):
        assert (one.tokens is None and other.tokens is None) or torch.equal(one.tokens, other.tokens)


def test_other_features_or_another_encoder_are_computed_anew(
    late: Learner, tiny_cases: list[CaseTensors], tmp_path: Path
) -> None:
    case = next(case for case in tiny_cases if case.patch_count)
    for sha, one in ((SHA, case), ("1" * 64, case), (SHA, replace(case, patches=case.patches + 1))):
        with_cached_prefix(late.modaltune, sha, [one], tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_adapters_from_the_first_layer_on_leave_cases_as_they_are(
    tiny_learner: Learner, tiny_cases: list[CaseTensors], tmp_path: Path
) -> None:
    assert with_cached_prefix(tiny_learner.modaltune, SHA, tiny_cases, tmp_path) == list(tiny_cases)
    assert not list(tmp_path.iterdir())


def test_the_patch_embedding_alone_is_cached_on_request(
    tiny_learner: Learner, tiny_cases: list[CaseTensors], tmp_path: Path
) -> None:
    cached = with_cached_prefix(tiny_learner.modaltune, SHA, tiny_cases, tmp_path, embedding=True)
    assert not any(len(case.patches) for case in cached)
    expected, found = embed_cases(tiny_learner.eval(), tiny_cases), embed_cases(tiny_learner, cached)
    for task, value in expected.items():
        torch.testing.assert_close(found[task], value, atol=5e-3, rtol=5e-3)  # half precision
