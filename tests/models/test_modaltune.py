from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from modaltune.data.batch import CaseTensors, collate, without_modality
from modaltune.encoders.dilated_attention import DilatedConfig
from modaltune.encoders.gene import GeneEncoderConfig
from modaltune.encoders.longnet import LongNetConfig, LongNetViT
from modaltune.errors import ConfigError
from modaltune.models.adapters import AdapterConfig
from modaltune.models.learner import Learner
from modaltune.models.modaltune import ModalTune, ModalTuneConfig, trainable_state
from modaltune.step import accumulate_gradients

TASKS = ("one", "two", "three")
CONFIG = ModalTuneConfig(
    tasks=TASKS,
    gene_indices=((0, 3), (4, 1, 2)),
    clinical_width=2,
    output_width=8,
    adapter=AdapterConfig(groups=((0, 0), (1, 2)), heads=2, width_ratio=0.5, gamma=0.3, extra_extractors=1),
    gene_encoder=GeneEncoderConfig(latent=8, tokens=3, dropout=0.0),
)


def a_model(config: ModalTuneConfig = CONFIG) -> ModalTune:
    torch.manual_seed(0)
    sizes = {"in_width": 6, "width": 16, "depth": 3, "heads": 4, "ffn_width": 24}
    encoder = LongNetViT(LongNetConfig(**sizes, attention=DilatedConfig(segments=(4, 8), ratios=(1, 2))))
    return ModalTune(encoder, config).eval()


def a_case(patches: int, *, expression: bool = True, seed: int = 0) -> CaseTensors:
    generator = torch.Generator().manual_seed(100 * patches + seed)
    return CaseTensors(
        patches=torch.randn(patches, 6, generator=generator),
        cells=torch.randint(0, 50, (patches, 2), generator=generator),
        expression=torch.randn(6, generator=generator) * expression,
        has_expression=expression,
        clinical=torch.randn(2, generator=generator),
        targets={},
    )


MIXED = [a_case(5), a_case(0), a_case(11, expression=False), a_case(1), a_case(0, expression=False), a_case(8)]


def gradients(model: nn.Module, out: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Of a sum with fixed random weights; zeros where a parameter has no part in it."""
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad((out * weight).sum(), list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}


def reached(found: dict[str, Tensor]) -> set[str]:
    return {name for name, value in found.items() if value.any()}


@pytest.mark.parametrize("groups", [((0, 0), (1, 2)), ((1, 1), (2, 2))])
@pytest.mark.parametrize("kind", ["compact", "paper"])
def test_a_padded_batch_equals_case_by_case(kind: str, groups: tuple[tuple[int, int], ...]) -> None:
    adapter, genes = replace(CONFIG.adapter, groups=groups), replace(CONFIG.gene_encoder, kind=kind)
    model = a_model(replace(CONFIG, adapter=adapter, gene_encoder=genes))
    together = model.embed(collate(MIXED))
    alone = torch.cat([model.embed(collate([case])) for case in MIXED])
    assert together.shape == (len(MIXED), len(TASKS), CONFIG.output_width)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    ours, expected = gradients(model, together), gradients(model, alone)
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], atol=1e-4, rtol=1e-3, msg=name)


def test_pairs_may_come_in_any_order() -> None:
    model, batch = a_model(), collate(MIXED)
    cases, tasks = torch.tensor([3, 0, 3, 2]), ["two", "three", "one", "two"]
    expected = model.embed(batch)
    pairs = model(batch, cases, tasks)
    for row, (case, task) in enumerate(zip(cases.tolist(), tasks, strict=True)):
        torch.testing.assert_close(pairs[row], expected[case, TASKS.index(task)], atol=1e-5, rtol=1e-4)


def test_a_case_without_slides_trains_the_learnt_patch() -> None:
    model = a_model()
    with_slides = reached(gradients(model, model.embed(collate([a_case(4)]))))
    without = reached(gradients(model, model.embed(collate([a_case(0)]))))
    assert without - with_slides == {"missing.slides"}
    assert "gene_encoder.first.weight" in without


def test_a_case_without_expression_trains_the_learnt_tokens_and_not_the_gene_encoder() -> None:
    model = a_model()
    names = reached(gradients(model, model.embed(collate([a_case(4, expression=False)]))))
    assert "missing.expression" in names
    assert "missing.slides" not in names
    assert not any(name.startswith("gene_encoder.") for name in names)


def test_what_stands_in_the_expression_of_a_case_without_it_is_never_read() -> None:
    model, case = a_model(), a_case(4, expression=False)
    noise = replace(case, expression=torch.full_like(case.expression, 1e6))
    batch, other = collate([case, a_case(4)]), collate([noise, a_case(4)])
    assert torch.equal(model.embed(batch), model.embed(other))


@pytest.mark.parametrize("modality", ["slides", "expression"])
def test_taking_a_modality_away_changes_the_embedding(modality: str) -> None:
    model, case = a_model(), a_case(4)
    less = without_modality(case, modality)
    assert not torch.allclose(model.embed(collate([case])), model.embed(collate([less])), atol=1e-3)


def test_clinical_input_reaches_the_embedding() -> None:
    model, case = a_model(), a_case(4)
    other = replace(case, clinical=case.clinical + 1)
    assert not torch.allclose(model.embed(collate([case])), model.embed(collate([other])), atol=1e-3)


def test_tokens_of_other_tasks_get_no_gradient() -> None:
    model = a_model()
    names = reached(gradients(model, model.embed(collate(MIXED), ["two"])))
    assert {name for name in names if "vectors" in name} == {"task_tokens.vectors.two"}


def test_tasks_give_different_embeddings() -> None:
    embeddings = a_model().embed(collate([a_case(4)]))[0]
    assert torch.pdist(embeddings).min() > 1e-3


def test_only_what_is_trained_may_travel() -> None:
    model = a_model()
    state = trainable_state(model)
    assert set(state) == {name for name in model.state_dict() if not name.startswith("slide_encoder.")}
    assert not any(value.requires_grad for value in state.values())


@pytest.mark.parametrize("objective", ["contrastive", "distillation"])
def test_every_parameter_learns_when_all_kinds_of_cases_are_shown(
    objective: str, tiny_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    accumulate_gradients(tiny_learner, [case for case in tiny_cases if case.targets], objective)
    untouched = {
        name
        for name, p in tiny_learner.named_parameters()
        if p.requires_grad and (p.grad is None or p.grad.abs().max() < 1e-7)
    }
    # a constant along the width, which the norms behind it take away again
    allowed = {f"modaltune.gene_encoder.{name}" for name in ("pathway_compression.bias", "mlp_mixer.0.0.fn.3.bias")}
    if objective == "distillation":  # compares embeddings with texts directly
        allowed |= {f"head.scale.{task}" for task in tiny_learner.kinds}
    assert untouched <= allowed


def test_training_mode_leaves_the_frozen_encoder_deterministic() -> None:
    model = a_model().train()
    assert model.interactions.training
    assert not any(module.training for module in model.slide_encoder.modules())
    noisy, batch = a_model(replace(CONFIG, frozen_dropout=0.25)).train(), collate([a_case(6)])
    assert all(module.training for module in noisy.modules())
    assert not torch.equal(noisy.image_tokens(batch)[0], noisy.image_tokens(batch)[0])
    assert not any(module.training for module in model.eval().modules())


def image_vector(model: ModalTune, case: CaseTensors) -> Tensor:
    """The part of the joined tokens that comes from CLS (token_join = "cat" keeps it apart)."""
    seen: list[Tensor] = []
    handle = model.final_norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.embed(collate([case]), TASKS[:1])
    handle.remove()
    return seen[0][0, 0, : model.slide_encoder.width]


@pytest.mark.parametrize("groups", [((0, 0), (1, 2)), ((1, 1), (2, 2)), ((0, 2),)])
def test_with_gamma_zero_the_slide_encoder_is_the_frozen_one(groups: tuple[tuple[int, int], ...]) -> None:
    adapter = replace(CONFIG.adapter, gamma=0.0, groups=groups)
    model, case = a_model(replace(CONFIG, adapter=adapter, token_join="cat")), a_case(6)
    frozen = model.slide_encoder.hidden_states(case.patches[None], case.cells[None])[-1][0, 0]
    torch.testing.assert_close(image_vector(model, case), frozen)


def test_tokens_steer_the_slide_encoder_when_gamma_is_not_zero() -> None:
    model, case = a_model(replace(CONFIG, token_join="cat")), a_case(6)
    other = replace(case, expression=case.expression + 1)
    assert not torch.allclose(image_vector(model, case), image_vector(model, other), atol=1e-4)


@pytest.mark.parametrize(("genes", "clinical", "parts"), [(True, 2, 4), (True, 0, 3), (False, 2, 3), (False, 0, 2)])
def test_a_model_has_tokens_only_for_the_modalities_of_the_study(genes: bool, clinical: int, parts: int) -> None:
    indices = CONFIG.gene_indices if genes else ()
    model = a_model(replace(CONFIG, gene_indices=indices, clinical_width=clinical, token_join="cat"))
    assert model.final_norm.normalized_shape == (16 * parts,)
    assert len(model.token_positions) == 1 + 3 * genes + (clinical > 0)
    assert ("expression" in model.missing) == genes
    assert model.embed(collate([a_case(3), a_case(0)])).isfinite().all()


LATE = replace(CONFIG, adapter=replace(CONFIG.adapter, groups=((1, 1), (2, 2))))


def with_cached_prefix(model: ModalTune, case: CaseTensors) -> CaseTensors:
    if not case.patch_count:
        return case
    tokens, _ = model.image_tokens(collate([case]))
    return replace(case, tokens=tokens[0], patches=case.patches[:0], cells=case.cells[:0])


def test_a_cached_prefix_changes_nothing() -> None:
    model = a_model(LATE)
    cached = [with_cached_prefix(model, case) for case in MIXED]
    assert [case.patch_count for case in cached] == [case.patch_count for case in MIXED]
    full, short = model.embed(collate(MIXED)), model.embed(collate(cached))
    torch.testing.assert_close(short, full, atol=1e-5, rtol=1e-4)
    ours, expected = gradients(model, short), gradients(model, full)
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], atol=1e-4, rtol=1e-3, msg=name)


def test_a_joint_pass_of_one_task_is_the_exact_one() -> None:
    one = replace(CONFIG, tasks=TASKS[:1])
    exact, joint = a_model(one), a_model(replace(one, task_pass="joint"))
    torch.testing.assert_close(joint.embed(collate(MIXED)), exact.embed(collate(MIXED)))


def test_a_joint_pass_gives_each_pair_its_own_embedding() -> None:
    model, batch = a_model(replace(CONFIG, task_pass="joint")), collate(MIXED)
    expected = model.embed(batch)
    pairs = model(batch, torch.tensor([3, 0, 3]), ["two", "three", "one"])
    chosen = expected[torch.tensor([3, 0, 3]), torch.tensor([TASKS.index(task) for task in ("two", "three", "one")])]
    torch.testing.assert_close(pairs, chosen, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected[:, 0], expected[:, 1], atol=1e-3)


def test_in_a_joint_pass_the_order_of_tasks_does_not_matter() -> None:
    model = a_model(replace(CONFIG, task_pass="joint"))
    turned = a_model(replace(CONFIG, task_pass="joint", tasks=TASKS[::-1]))
    turned.load_state_dict(model.state_dict())
    torch.testing.assert_close(
        turned.embed(collate(MIXED), TASKS), model.embed(collate(MIXED), TASKS), atol=1e-5, rtol=1e-4
    )


def test_the_gene_summary_token_stands_for_the_genes() -> None:
    model = a_model(replace(CONFIG, gene_summary="cls"))
    assert model.gene_cls is not None
    assert len(model.token_positions) == len(a_model().token_positions) + 1
    out = model.embed(collate(MIXED))
    assert gradients(model, out)["gene_cls"].any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task_pass": "fast"}, "choose from exact, joint"),
        ({"gene_summary": "sum"}, "choose from cls, mean"),
        ({"frozen_dropout": 0.25, "adapter": LATE.adapter}, "a prefix is cached"),
        ({"frozen_dropout": 1.0}, r"must be in \[0, 1\)"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **values)  # type: ignore[arg-type]


def test_groups_must_end_at_the_last_layer() -> None:
    with pytest.raises(ConfigError, match="end at layer 1 but the slide encoder's last layer is 2"):
        a_model(replace(CONFIG, adapter=replace(CONFIG.adapter, groups=((0, 1),))))


@pytest.mark.parametrize(
    ("values", "message"), [({"tasks": ()}, "at least one task"), ({"token_join": "mean"}, "'mean'")]
)
def test_a_configuration_out_of_range_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModalTuneConfig(**{"tasks": TASKS, **values})  # type: ignore[arg-type]
