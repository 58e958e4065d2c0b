from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modaltune.encoders.gene import (
    CompactGeneEncoder,
    GeneEncoderConfig,
    PaperGeneEncoder,
    build_gene_encoder,
    set_indices,
)
from modaltune.errors import ConfigError, ModelFileError

PANEL = [f"G{number}" for number in range(9)]
SETS = {"LATER": ("G5", "G0", "G2"), "EARLIER": ("G2",), "MIDDLE": ("G7", "G1")}
OUTSIDE = [3, 4, 6, 8]
WIDTH = 12
CONFIG = GeneEncoderConfig(latent=8, depth=2, tokens=4, dropout=0.0)


def an_encoder(genes: list[str] = PANEL, config: GeneEncoderConfig = CONFIG) -> nn.Module:
    torch.manual_seed(0)
    return build_gene_encoder(set_indices(SETS, genes), WIDTH, config).eval()


def some_expression(cases: int = 5) -> Tensor:
    return torch.randn(cases, len(PANEL), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["compact", "paper"])
def test_cases_become_tokens_independently_of_each_other(kind: str) -> None:
    encoder, expression = an_encoder(config=replace(CONFIG, kind=kind)), some_expression()
    tokens = encoder(expression)
    assert tokens.shape == (5, CONFIG.tokens, WIDTH)
    alone = torch.cat([encoder(expression[row : row + 1]) for row in range(5)])
    torch.testing.assert_close(tokens, alone)


@pytest.mark.parametrize("kind", ["compact", "paper"])
def test_only_genes_of_a_set_have_a_gradient(kind: str) -> None:
    expression = some_expression().requires_grad_()
    an_encoder(config=replace(CONFIG, kind=kind))(expression).square().sum().backward()
    assert expression.grad is not None
    touched = expression.grad.abs().sum(dim=0) > 0
    assert touched.tolist() == [gene not in OUTSIDE for gene in range(len(PANEL))]


@pytest.mark.parametrize("kind", ["compact", "paper"])
def test_the_order_of_genes_in_the_panel_does_not_matter(kind: str) -> None:
    order = torch.randperm(len(PANEL), generator=torch.Generator().manual_seed(3))
    config, expression = replace(CONFIG, kind=kind), some_expression()
    shuffled = an_encoder([PANEL[index] for index in order], config)
    torch.testing.assert_close(shuffled(expression[:, order]), an_encoder(config=config)(expression))


def test_indices_keep_the_order_of_sets_and_of_their_genes() -> None:
    assert set_indices(SETS, PANEL) == ((5, 0, 2), (2,), (7, 1))
    assert set_indices(dict(reversed(SETS.items())), PANEL) == ((7, 1), (2,), (5, 0, 2))


def test_a_set_with_a_gene_outside_the_panel_is_refused() -> None:
    with pytest.raises(ConfigError, match="'MIDDLE' names genes outside the panel"):
        set_indices(SETS, PANEL[:7])


def test_the_compact_first_layer_is_one_linear_map_per_set() -> None:
    encoder, expression = an_encoder(), some_expression()
    assert isinstance(encoder, CompactGeneEncoder)
    weights = encoder.first.weight.split([len(members) for members in SETS.values()])
    rows = [
        expression[:, list(columns)] @ weight + bias
        for columns, weight, bias in zip(set_indices(SETS, PANEL), weights, encoder.first.bias, strict=True)
    ]
    z = encoder.mlp_mixer(encoder.shared(F.elu(torch.stack(rows, dim=1))))
    expected = encoder.pathway_compression(z.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(encoder(expression), expected)


def test_sets_of_every_size_start_at_the_same_scale() -> None:
    torch.manual_seed(0)
    sizes = (1, 100)
    indices = (tuple(range(1)), tuple(range(1, 101)))
    encoder = CompactGeneEncoder(indices, WIDTH, replace(CONFIG, latent=256))
    for size, weight in zip(sizes, encoder.first.weight.split(list(sizes)), strict=True):
        response = torch.randn(400, size, generator=torch.Generator().manual_seed(1)) @ weight.detach()
        assert float(response.std()) == pytest.approx(1, abs=0.15), size


def mixer_parameters(sets: int, config: GeneEncoderConfig) -> int:
    latent, inner, hidden = config.latent, int(sets * config.expand_sets), int(config.latent * config.expand_latent)
    along_sets = 2 * latent + (sets + 1) * inner + (inner + 1) * sets
    along_latent = 2 * latent + (latent + 1) * hidden + (hidden + 1) * latent
    project = 2 * latent + (latent + 1) * WIDTH + (sets + 1) * config.tokens
    return config.depth * (along_sets + along_latent) + project


def test_the_compact_encoder_has_one_row_per_membership_and_shares_the_rest() -> None:
    memberships, sets, latent = 6, 3, CONFIG.latent
    shared = 2 * latent + (latent + 1) * latent
    expected = memberships * latent + sets * latent + shared + mixer_parameters(sets, CONFIG)
    assert sum(p.numel() for p in an_encoder().parameters()) == expected


def test_the_paper_encoder_has_two_layers_per_set() -> None:
    memberships, sets, latent = 6, 3, CONFIG.latent
    own = memberships * latent + sets * latent + sets * (latent + 1) * latent
    encoder = an_encoder(config=replace(CONFIG, kind="paper"))
    assert sum(p.numel() for p in encoder.parameters()) == own + mixer_parameters(sets, CONFIG)


def test_the_columns_do_not_travel_with_the_weights() -> None:
    encoder = an_encoder()
    assert set(encoder.state_dict()) == {name for name, _ in encoder.named_parameters()}


def one_by_one(encoder: PaperGeneEncoder, expression: Tensor) -> Tensor:
    """The published way: a small network per set, from the published names."""
    state = encoder.state_dict(keep_vars=True)
    rows = []
    for row, members in enumerate(set_indices(SETS, PANEL)):
        x = expression[:, list(members)]
        for layer in (0, 1):
            name = f"gene_networks.{row}.{layer}.0"
            x = F.elu(F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"]))
        rows.append(x)
    return encoder.pathway_compression(encoder.mlp_mixer(torch.stack(rows, dim=1)).transpose(1, 2)).transpose(1, 2)


def test_the_paper_encoder_equals_its_networks_one_by_one() -> None:
    encoder, expression = an_encoder(config=replace(CONFIG, kind="paper")).double(), some_expression().double()
    assert isinstance(encoder, PaperGeneEncoder)
    together, apart = encoder(expression), one_by_one(encoder, expression)
    torch.testing.assert_close(together, apart)
    parameters = tuple(encoder.parameters())
    found, expected = (torch.autograd.grad(out.square().sum(), parameters) for out in (together, apart))
    torch.testing.assert_close(found, expected)


def test_the_paper_encoder_keeps_the_published_names() -> None:
    encoder, expression = an_encoder(config=replace(CONFIG, kind="paper")), some_expression()
    state = encoder.state_dict()
    assert state["gene_networks.0.0.0.weight"].shape == (CONFIG.latent, 3)
    assert state["gene_networks.2.1.0.weight"].shape == (CONFIG.latent, CONFIG.latent)
    torch.manual_seed(5)
    other = build_gene_encoder(set_indices(SETS, PANEL), WIDTH, replace(CONFIG, kind="paper")).eval()
    other.load_state_dict(state, strict=True)
    assert torch.equal(other(expression), encoder(expression))


def test_weights_for_other_gene_sets_are_refused() -> None:
    state = an_encoder(config=replace(CONFIG, kind="paper")).state_dict()
    state["gene_networks.1.0.0.weight"] = torch.zeros(CONFIG.latent, 4)
    with pytest.raises(ModelFileError, match=r"gene sets of other sizes \(first difference at set 1\)"):
        an_encoder(config=replace(CONFIG, kind="paper")).load_state_dict(state)


def test_missing_weights_of_a_gene_set_are_named() -> None:
    encoder = an_encoder(config=replace(CONFIG, kind="paper"))
    state = encoder.state_dict()
    del state["gene_networks.1.1.0.bias"]
    with pytest.raises(ModelFileError, match=r"lack 1 tensor\(s\), first gene_networks.1.1.0.bias"):
        encoder.load_state_dict(state)


def test_a_cls_token_joins_the_sets_of_the_paper_encoder() -> None:
    encoder = PaperGeneEncoder(set_indices(SETS, PANEL), WIDTH, replace(CONFIG, kind="paper", cls_token=True))
    assert encoder.pathway_compression.in_features == len(SETS) + 1
    encoder(some_expression()).square().sum().backward()
    assert encoder.cls_token is not None
    assert encoder.cls_token.grad is not None
    assert encoder.cls_token.grad.any()


def test_dropout_acts_in_training_only() -> None:
    encoder, expression = an_encoder(config=replace(CONFIG, dropout=0.5)), some_expression()
    assert torch.equal(encoder(expression), encoder(expression))
    encoder.train()
    assert not torch.equal(encoder(expression), encoder(expression))


def test_no_gene_set_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one gene set"):
        build_gene_encoder((), WIDTH, CONFIG)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"kind": "large"}, "'large' is unknown; choose from compact, paper"), ({"dropout": 1.0}, "1.0")],
)
def test_a_configuration_out_of_range_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GeneEncoderConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["compact", "paper"])
def test_single_genes_are_hidden_in_training_only(kind: str) -> None:
    config = GeneEncoderConfig(kind=kind, latent=8, tokens=4, dropout=0.0, input_dropout=0.5)
    encoder, expression = build_gene_encoder([[0, 1, 2], [2, 3, 4]], 8, config), torch.ones(2, 5)
    assert not torch.equal(encoder(expression), encoder(expression))
    encoder.eval()
    assert torch.equal(encoder(expression), encoder(expression))
