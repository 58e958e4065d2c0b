from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modaltune.encoders.dilated_attention import DilatedConfig
from modaltune.encoders.longnet import DropPath, LongNetConfig, LongNetViT
from modaltune.encoders.slide import Places
from modaltune.errors import ConfigError

SMALL = LongNetConfig(
    in_width=6,
    width=16,
    depth=3,
    heads=4,
    ffn_width=24,
    grid=50,
    attention=DilatedConfig(segments=(4, 8), ratios=(1, 2)),
)


@pytest.fixture
def encoder() -> LongNetViT:
    torch.manual_seed(0)
    encoder = LongNetViT(SMALL).eval()
    torch.nn.init.normal_(encoder.cls_token)
    return encoder


def some_slides(batch: int, patches: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(batch, patches, SMALL.in_width, generator=generator)
    return features, torch.randint(0, SMALL.grid, (batch, patches, 2), generator=generator)


def test_a_padded_batch_equals_slides_one_by_one(encoder: LongNetViT) -> None:
    lengths = (11, 4, 1, 7)
    patches, cells = some_slides(len(lengths), max(lengths))
    patches.requires_grad_()
    weight = torch.randn(len(lengths), max(lengths) + 1, SMALL.width, generator=torch.Generator().manual_seed(2))
    together = encoder(patches, cells, torch.tensor(lengths) + 1)
    inside = torch.arange(max(lengths) + 1) <= torch.tensor(lengths)[:, None]
    (gradient,) = torch.autograd.grad((together * weight)[inside].sum(), patches)
    for row, length in enumerate(lengths):
        alone_patches = patches[row : row + 1, :length].detach().requires_grad_()
        alone = encoder(alone_patches, cells[row : row + 1, :length])
        torch.testing.assert_close(together[row, : length + 1], alone[0], atol=1e-5, rtol=1e-4)
        (expected,) = torch.autograd.grad((alone[0] * weight[row, : length + 1]).sum(), alone_patches)
        torch.testing.assert_close(gradient[row, :length], expected[0], atol=1e-5, rtol=1e-4)
        assert not gradient[row, length:].any()


def test_running_layers_in_parts_equals_running_them_at_once(encoder: LongNetViT) -> None:
    patches, cells = some_slides(2, 5)
    tokens, places = encoder.with_cls(encoder.embed(patches, cells)), Places(cells)
    parts = encoder.run_layers(encoder.run_layers(tokens, 0, 0, places), 1, 2, places)
    assert torch.equal(parts, encoder.run_layers(tokens, 0, 2, places))
    assert torch.equal(tokens, encoder.run_layers(tokens, 0, -1, places))


def test_there_is_a_hidden_state_before_and_after_every_layer(encoder: LongNetViT) -> None:
    slides = some_slides(2, 5)
    states = encoder.hidden_states(*slides)
    assert [tuple(state.shape) for state in states] == [(2, 6, SMALL.width)] * (SMALL.depth + 1)
    assert torch.equal(encoder.encoder.layer_norm(states[-1]), encoder(*slides))


def test_cls_comes_first_and_has_no_position(encoder: LongNetViT) -> None:
    embedded = encoder.embed(*some_slides(2, 5))
    tokens = encoder.with_cls(embedded)
    assert torch.equal(tokens[:, 0], encoder.cls_token[0].expand(2, -1))
    assert torch.equal(tokens[:, 1:], embedded)


def test_where_a_patch_lies_matters(encoder: LongNetViT) -> None:
    patches, cells = some_slides(1, 5)
    moved = cells.clone()
    moved[0, 2, 0] = (moved[0, 2, 0] + 1) % SMALL.grid
    assert not torch.allclose(encoder(patches, cells)[:, 0], encoder(patches, moved)[:, 0])


def test_evaluation_is_deterministic_and_training_is_not(encoder: LongNetViT) -> None:
    slides = some_slides(2, 5)
    assert torch.equal(encoder(*slides), encoder(*slides))
    encoder.train()
    assert not torch.equal(encoder(*slides), encoder(*slides))


def test_drop_path_drops_whole_cases_and_scales_the_others() -> None:
    torch.manual_seed(0)
    ones = torch.ones(4000, 3)
    dropped = DropPath(0.25)(ones)
    kept = dropped[:, 0] > 0
    torch.testing.assert_close(dropped, kept[:, None] / 0.75 * ones)
    assert abs(float(kept.float().mean()) - 0.75) < 0.03


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.5, False)])
def test_drop_path_is_the_identity_at_rate_zero_and_in_evaluation(rate: float, training: bool) -> None:
    ones = torch.ones(50, 2)
    assert torch.equal(DropPath(rate).train(training)(ones), ones)


def test_drop_path_grows_with_depth() -> None:
    rates = [layer.drop_path.rate for layer in LongNetViT(SMALL).encoder.layers]
    assert rates == pytest.approx([0.0, 0.05, 0.1])


def test_the_default_has_the_published_size() -> None:
    with torch.device("meta"):
        state = LongNetViT(LongNetConfig()).state_dict()
    assert len(state) == 247  # keys_gigapath_slide_enc12l768d of the published code
    assert sum(value.numel() for value in state.values()) == 86_330_880


@pytest.mark.parametrize(("width", "heads"), [(20, 8), (18, 3)])
def test_a_width_that_cannot_be_divided_is_refused(width: int, heads: int) -> None:
    with pytest.raises(ConfigError, match=f"width {width} must be divisible"):
        LongNetConfig(width=width, heads=heads)
