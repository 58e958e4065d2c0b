from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from modaltune.errors import ConfigError
from modaltune.models.adapters import (
    AdapterConfig,
    CrossAttention,
    Extractor,
    Injector,
    Interaction,
    TokenSelfAttention,
    init_adapters,
)

WIDTH, PATCHES, TOKENS = 16, 7, 3
CONFIG = AdapterConfig(groups=((0, 1),), heads=2, gamma=0.5, drop_path=0.0)
POSITION = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(3))


def an_adapter(kind: type[nn.Module], config: AdapterConfig = CONFIG) -> nn.Module:
    torch.manual_seed(0)
    return kind(WIDTH, config).eval()


@pytest.fixture
def patches() -> Tensor:
    return torch.randn(2, PATCHES, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("residual", ["single", "reference"])
def test_the_injector_is_the_identity_while_gamma_is_zero(residual: str, patches: Tensor, tokens: Tensor) -> None:
    injector = an_adapter(Injector, replace(CONFIG, gamma=0.0, residual=residual))
    assert torch.equal(injector(patches, tokens, POSITION), patches)


def test_the_injector_adds_gamma_times_attention(patches: Tensor, tokens: Tensor) -> None:
    injector = an_adapter(Injector)
    update = injector.attn(patches, tokens, memory_position=POSITION)
    assert update.abs().max() > 0.01
    torch.testing.assert_close(injector(patches, tokens, POSITION), patches + 0.5 * update)


def test_gamma_learns_even_when_it_starts_at_zero(patches: Tensor, tokens: Tensor) -> None:
    injector = an_adapter(Injector, replace(CONFIG, gamma=0.0))
    injector(patches, tokens, POSITION).square().sum().backward()
    assert (injector.gamma.grad != 0).all()


def test_the_reference_injector_counts_gamma_times_the_patches_once_more(patches: Tensor, tokens: Tensor) -> None:
    single, reference = (an_adapter(Injector, replace(CONFIG, residual=name)) for name in ("single", "reference"))
    difference = reference(patches, tokens, POSITION) - single(patches, tokens, POSITION)
    torch.testing.assert_close(difference, 0.5 * patches)


def test_the_reference_extractor_counts_the_tokens_once_more(patches: Tensor, tokens: Tensor) -> None:
    config = replace(CONFIG, bottleneck=False)
    single, reference = (an_adapter(Extractor, replace(config, residual=name)) for name in ("single", "reference"))
    difference = reference(tokens, patches, POSITION) - single(tokens, patches, POSITION)
    torch.testing.assert_close(difference, tokens)


def test_the_extractor_feeds_forward_what_it_has_joined(patches: Tensor, tokens: Tensor) -> None:
    extractor = an_adapter(Extractor, replace(CONFIG, residual="reference"))
    joined = 2 * tokens + extractor.attn(tokens, patches, target_position=POSITION)
    torch.testing.assert_close(extractor(tokens, patches, POSITION), joined + extractor.ffn(joined))


def test_masked_patches_equal_a_shorter_bag(patches: Tensor, tokens: Tensor) -> None:
    extractor = an_adapter(Extractor)
    lengths = torch.tensor([4, PATCHES])
    padding = torch.arange(PATCHES) >= lengths[:, None]
    patches.requires_grad_()
    together = extractor(tokens, patches, POSITION, padding)
    for row, length in enumerate(lengths.tolist()):
        alone = extractor(tokens[row : row + 1], patches[row : row + 1, :length], POSITION)
        torch.testing.assert_close(together[row : row + 1], alone)
    (gradient,) = torch.autograd.grad(together.square().sum(), patches)
    assert not gradient[padding].any()
    assert gradient[~padding].any(dim=-1).all()


def test_the_order_of_patches_does_not_matter_to_the_extractor(patches: Tensor, tokens: Tensor) -> None:
    extractor = an_adapter(Extractor)
    expected = extractor(tokens, patches, POSITION)
    torch.testing.assert_close(extractor(tokens, patches.flip(1), POSITION), expected)


def test_positions_tell_equal_tokens_apart(patches: Tensor) -> None:
    read = an_adapter(Extractor)(torch.zeros(2, TOKENS, WIDTH), patches, POSITION)
    assert not torch.allclose(read[:, 0], read[:, 1], atol=1e-3)


def test_self_attention_depends_on_positions(tokens: Tensor) -> None:
    layer = an_adapter(TokenSelfAttention)
    assert not torch.allclose(layer(tokens, POSITION), layer(tokens, POSITION.flip(0)), atol=1e-3)


def test_self_attention_adds_to_its_tokens_and_mixes_them(tokens: Tensor) -> None:
    layer = an_adapter(TokenSelfAttention)
    tokens.requires_grad_()
    (gradient,) = torch.autograd.grad(layer(tokens, POSITION)[:, 0].sum(), tokens)
    assert gradient.any(dim=-1).all()
    nn.init.zeros_(layer.output_proj.weight)
    nn.init.zeros_(layer.output_proj.bias)
    assert torch.equal(layer(tokens, POSITION), tokens)


def test_drop_path_skips_the_feed_forward_of_whole_cases(tokens: Tensor, patches: Tensor) -> None:
    extractor = an_adapter(Extractor, replace(CONFIG, drop_path=0.5)).train()
    joined = tokens + extractor.attn(tokens, patches, target_position=POSITION)
    torch.manual_seed(0)
    outs = torch.stack([extractor(tokens, patches, POSITION) - joined for _ in range(20)])
    dropped = (outs.abs() < 1e-6).flatten(2).all(dim=-1)
    assert 0 < dropped.float().mean() < 1
    torch.testing.assert_close(outs[~dropped], (2 * extractor.ffn(joined)).expand(20, -1, -1, -1)[~dropped])


def test_only_the_last_group_extracts_several_times(patches: Tensor, tokens: Tensor) -> None:
    torch.manual_seed(0)
    middle = Interaction(WIDTH, CONFIG, last=False)
    last = Interaction(WIDTH, CONFIG, last=True).eval()
    assert middle.extra_extractors is None
    assert len(last.extra_extractors or ()) == CONFIG.extra_extractors == 2
    expected = tokens
    for extractor in (last.extractor, *(last.extra_extractors or ())):
        expected = extractor(expected, patches, POSITION)
    torch.testing.assert_close(last.extract(tokens, patches, POSITION, None), expected)


def test_initialisation_is_small_for_linear_layers_and_xavier_for_attention() -> None:
    torch.manual_seed(0)
    extractor = Extractor(64, replace(CONFIG, heads=4))
    init_adapters(extractor)
    assert extractor.ffn is not None
    for part in (extractor.ffn.linear1, extractor.ffn.linear2):
        assert float(part.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
        assert not part.bias.any()
    weight = extractor.attn.multihead_attn.q_proj_weight.detach()
    assert float(weight.abs().max()) <= (6 / sum(weight.shape)) ** 0.5
    assert float(weight.std()) == pytest.approx((2 / sum(weight.shape)) ** 0.5, rel=0.2)
    assert not extractor.attn.multihead_attn.in_proj_bias.any()
    assert (extractor.attn.norm.weight == 1).all()


@pytest.mark.parametrize("bottleneck", [True, False])
def test_without_a_bottleneck_attention_has_the_full_width(bottleneck: bool) -> None:
    attention = CrossAttention(WIDTH, replace(CONFIG, bottleneck=bottleneck, width_ratio=0.5))
    assert attention.multihead_attn.embed_dim == (WIDTH // 2 if bottleneck else WIDTH)
    assert isinstance(attention.q_proj, nn.Linear) == bottleneck


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width_ratio": 0.0}, r"width_ratio must be in \(0, 1\], got 0.0"),
        ({"width_ratio": 1.5}, "got 1.5"),
        ({"residual": "triple"}, "'triple' is unknown; choose from reference, single"),
        ({"groups": ((0, 1), (3, 4))}, "consecutive layer ranges"),
        ({"groups": ((0, 1), (1, 2))}, "consecutive layer ranges"),
        ({"groups": ((2, 1),)}, "consecutive layer ranges"),
    ],
)
def test_a_configuration_out_of_range_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdapterConfig(**values)  # type: ignore[arg-type]


def test_the_first_group_may_start_late() -> None:
    assert AdapterConfig(groups=((1, 2), (3, 3))).groups == ((1, 2), (3, 3))
