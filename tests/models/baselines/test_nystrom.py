from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from modaltune.models.baselines.nystrom import NystromAttention, landmark_means, nystrom, pseudo_inverse


def test_landmarks_are_means_of_neighbouring_tokens() -> None:
    x = torch.randn(2, 3, 12, 4)
    expected = x.unflatten(2, (4, 3)).mean(dim=3)
    torch.testing.assert_close(landmark_means(x, 4), expected)


def test_the_iteration_finds_the_inverse_of_each_matrix_by_itself() -> None:
    matrices = torch.stack([(scale * torch.eye(6) + 0.3 * torch.rand(6, 6)).softmax(dim=-1) for scale in (2.0, 6.0)])
    found = pseudo_inverse(matrices, 12)
    torch.testing.assert_close(found @ matrices, torch.eye(6).expand(2, 6, 6), rtol=0, atol=1e-3)
    torch.testing.assert_close(found[0], pseudo_inverse(matrices[:1], 12)[0])


def test_as_many_landmarks_as_tokens_give_exact_attention() -> None:
    q, k, v = (
        2 * torch.eye(8, 16).expand(1, 2, 8, 16),
        4 * torch.eye(8, 16).expand(1, 2, 8, 16),
        torch.randn(1, 2, 8, 16),
    )
    torch.testing.assert_close(nystrom(q, k, v, 8, 20), F.scaled_dot_product_attention(q, k, v), rtol=1e-3, atol=1e-3)


def test_few_landmarks_come_close_when_neighbours_are_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    slow = torch.randn(1, 2, 8, 16, generator=generator).repeat_interleave(16, dim=2)  # 128 tokens in 8 stretches
    q, k, v = slow, slow.roll(16, dims=2), torch.randn(1, 2, 128, 16, generator=generator)
    exact = F.scaled_dot_product_attention(q, k, v)
    error = (nystrom(q, k, v, 8, 20) - exact).norm() / exact.norm()
    assert error < 0.01


@pytest.mark.parametrize("tokens", [5, 40])
def test_cases_of_a_batch_do_not_touch_each_other(tokens: int) -> None:
    torch.manual_seed(0)
    attention = NystromAttention(32, heads=4, landmarks=8).eval()
    x = torch.randn(3, tokens, 32)
    with torch.no_grad():
        torch.testing.assert_close(attention(x)[1:2], attention(x[1:2]), rtol=1e-4, atol=1e-5)
