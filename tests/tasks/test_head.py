from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modaltune.tasks.head import SeparateHeads, TextHead, candidate_targets
from modaltune.tasks.projector import seeded_projector


def nearly_parallel_texts(candidates: int) -> Tensor:
    """As sentence embeddings of one task are."""
    return 5 + torch.randn(candidates, 8, generator=torch.Generator().manual_seed(0))


def test_two_centred_candidates_point_in_opposite_directions() -> None:
    targets = candidate_targets(nearly_parallel_texts(2), centre=True)
    torch.testing.assert_close(targets[0], -targets[1])


@pytest.mark.parametrize("candidates", [2, 3, 5])
@pytest.mark.parametrize("centre", [True, False])
def test_targets_have_unit_length(candidates: int, centre: bool) -> None:
    targets = candidate_targets(nearly_parallel_texts(candidates), centre=centre)
    torch.testing.assert_close(targets.norm(dim=-1), torch.ones(candidates))


def test_centring_tells_nearly_parallel_candidates_apart() -> None:
    texts = nearly_parallel_texts(4)
    plain, centred = (candidate_targets(texts, centre=centre) for centre in (False, True))
    above = torch.triu_indices(4, 4, offset=1)
    assert (plain @ plain.T)[*above].min() > 0.9
    assert (centred @ centred.T)[*above].max() < 0.7


def test_one_candidate_is_not_centred_away() -> None:
    texts = nearly_parallel_texts(1)
    torch.testing.assert_close(candidate_targets(texts, centre=True), F.normalize(texts, dim=-1))


def test_logits_are_cosines_times_the_scale() -> None:
    targets = candidate_targets(nearly_parallel_texts(3), centre=True)
    head = TextHead({"task": targets})
    embeddings = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    cosines = F.cosine_similarity(embeddings[:, None], targets[None], dim=-1)
    for scale in (1.0, 25.0):
        with torch.no_grad():
            head.scale["task"].fill_(torch.tensor(scale).log())
        torch.testing.assert_close(head(embeddings, "task"), scale * cosines)
        torch.testing.assert_close(head(7 * embeddings, "task"), scale * cosines)


def test_the_scale_never_exceeds_its_largest_value() -> None:
    targets = candidate_targets(nearly_parallel_texts(3), centre=True)
    head = TextHead({"task": targets})
    with torch.no_grad():
        head.scale["task"].fill_(20.0)
    torch.testing.assert_close(head(targets, "task").diagonal(), torch.full((3,), 100.0))


def test_only_the_scale_of_the_text_head_is_trained() -> None:
    head = TextHead({"one": torch.eye(2, 8), "two": torch.eye(3, 8)})
    assert {name for name, p in head.named_parameters() if p.requires_grad} == {"scale.one", "scale.two"}
    head(torch.randn(4, 8), "one").sum().backward()
    assert head.scale["two"].grad is None


def test_separate_heads_have_a_classifier_per_task() -> None:
    heads = SeparateHeads({"one": 2, "two": 3}, 8)
    assert heads(torch.randn(4, 8), "one").shape == (4, 2)
    assert heads(torch.randn(4, 8), "two").shape == (4, 3)
    assert sum(p.numel() for p in heads.parameters()) == 9 * 2 + 9 * 3


def test_the_projector_is_frozen_and_follows_the_study_seed_only() -> None:
    torch.manual_seed(1)
    first = seeded_projector(3, 8, 4)
    state = torch.random.get_rng_state()
    second = seeded_projector(3, 8, 4)
    assert torch.equal(torch.random.get_rng_state(), state)
    texts = nearly_parallel_texts(3)
    assert torch.equal(first(texts), second(texts))
    assert not torch.allclose(first(texts), seeded_projector(4, 8, 4)(texts))
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_a_tasks_map_turns_its_own_embeddings_only() -> None:
    candidates = {"one": torch.eye(2, 8), "two": torch.eye(3, 8)}
    head, plain = TextHead(candidates, maps=True), TextHead(candidates)
    embeddings = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    for task in candidates:
        torch.testing.assert_close(head(embeddings, task), plain(embeddings, task))
    with torch.no_grad():
        head.maps["one"][0, 0] = 1.0
    doubled = embeddings * torch.tensor([2.0, *[1.0] * 7])
    torch.testing.assert_close(head(embeddings, "one"), plain(doubled, "one"))
    torch.testing.assert_close(head.cosines(embeddings, "one"), plain.cosines(doubled, "one"))
    torch.testing.assert_close(head(embeddings, "two"), plain(embeddings, "two"))
    head(embeddings, "one").sum().backward()
    assert head.maps["one"].grad is not None
    assert head.maps["two"].grad is None
