"""Attention: what is captured, and that capturing changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from modaltune.data.batch import CaseTensors, collate
from modaltune.data.preprocessing import Preprocessing
from modaltune.explain.attention import patch_attention, spread, times_even, watched
from modaltune.federation.study import Study
from modaltune.models.learner import Learner, build_learner


@pytest.fixture
def seen(tiny_cases: list[CaseTensors]) -> CaseTensors:
    """The case with two slides."""
    return tiny_cases[0].loaded()


@pytest.mark.parametrize("task", ["diagnosis", "stage", "survival"])
def test_every_head_of_every_extractor_spreads_one_over_the_patches(
    task: str, tiny_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    for case in tiny_cases:
        if case.patch_count:
            weights = patch_attention(tiny_learner, case.loaded(), task)
            assert weights.shape == (3, 2, case.patch_count)  # a group, a group, and one extra extractor; two heads
            assert (weights >= 0).all()
            np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)


def learner_with(
    task_pass: str, study: Study, preprocessing: Preprocessing, targets: dict[str, torch.Tensor]
) -> Learner:
    model = study.model.model_copy(update={"task_pass": task_pass})
    return build_learner(study.model_copy(update={"model": model}), preprocessing, targets).eval()


@pytest.mark.parametrize("task_pass", ["exact", "joint"])
def test_watching_changes_no_bit_of_what_the_model_says(
    task_pass: str, tiny_study: Study, tiny_preprocessing: Preprocessing, tiny_targets: dict[str, torch.Tensor],
    seen: CaseTensors,
) -> None:  # fmt: skip
    model = learner_with(task_pass, tiny_study, tiny_preprocessing, tiny_targets).modaltune
    with torch.no_grad():
        plain = model.embed(collate([seen]))
        with watched(model) as found:
            watching = model.embed(collate([seen]))
        after = model.embed(collate([seen]))
    assert torch.equal(plain, watching)
    assert torch.equal(plain, after)
    assert len(found) == 3, "the hooks are gone after the block"


def test_captured_weights_are_those_of_the_kernel(tiny_learner: Learner, seen: CaseTensors) -> None:
    """Weights times values, through the output projection, give what the layer gave without weights."""
    given: list[torch.Tensor] = []
    layer = tiny_learner.modaltune.interactions[0].extractor.attn.multihead_attn
    assert isinstance(layer, nn.MultiheadAttention)
    hook = layer.register_forward_hook(lambda _, inputs, out: given.extend([inputs[2], out[0]]))
    with torch.no_grad(), watched(tiny_learner.modaltune) as found:
        tiny_learner.modaltune.embed(collate([seen]), ["stage"])
    hook.remove()
    values, out = given
    heads, width = layer.num_heads, layer.head_dim
    _, _, bias = layer.in_proj_bias.chunk(3)
    projected = (values @ layer.v_proj_weight.T + bias).unflatten(-1, (heads, width)).transpose(1, 2)
    again = layer.out_proj((found[0] @ projected).transpose(1, 2).flatten(2))
    torch.testing.assert_close(again, out, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("task_pass", ["exact", "joint"])
def test_the_row_is_that_of_the_task(
    task_pass: str, tiny_study: Study, tiny_preprocessing: Preprocessing, tiny_targets: dict[str, torch.Tensor],
    seen: CaseTensors,
) -> None:  # fmt: skip
    """A changed task token changes the attention of its own task in the first extractor, and of no other."""
    learner = learner_with(task_pass, tiny_study, tiny_preprocessing, tiny_targets)
    for parameter in (learner.modaltune.interactions[0].injector.gamma,):  # tokens are not written into patches
        nn.init.zeros_(parameter)
    before = {task: patch_attention(learner, seen, task)[0] for task in learner.kinds}
    with torch.no_grad():
        learner.modaltune.task_tokens.vectors["stage"].copy_(torch.randn(16))
    after = {task: patch_attention(learner, seen, task)[0] for task in learner.kinds}
    changed = {task for task in learner.kinds if not np.allclose(before[task], after[task], atol=1e-7)}
    assert changed == {"stage"}


def test_attention_is_the_same_every_time(tiny_learner: Learner, seen: CaseTensors) -> None:
    first = patch_attention(tiny_learner, seen, "diagnosis")
    assert (patch_attention(tiny_learner, seen, "diagnosis") == first).all()


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=20))
def test_spread_lies_between_one_patch_and_all(values: list[float]) -> None:
    weights = np.array(values) / sum(values)
    assert 1 / len(values) - 1e-9 <= spread(weights) <= 1 + 1e-9
    assert times_even(weights).mean() == pytest.approx(1)


def test_spread_of_an_even_and_of_a_single_weight() -> None:
    assert spread(np.full(8, 1 / 8)) == pytest.approx(1)
    assert spread(np.eye(8)[0]) == pytest.approx(1 / 8)
