"""Properties that every baseline has, and those that tell them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modaltune.data.batch import CaseTensors, collate, readable, without_modality
from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import Preprocessing, prepare
from modaltune.errors import ConfigError, ModelFileError
from modaltune.evaluation.predictions import predict
from modaltune.federation.settings import NEEDS, Kind
from modaltune.federation.study import Study
from modaltune.models.baselines.base import Baseline, Inputs
from modaltune.models.baselines.registry import ROWS, baseline_study, build_baseline
from modaltune.models.learner import OPTIONAL_PREFIXES, Learner, build_learner, load_model, save_model
from modaltune.models.modaltune import trainable_state
from modaltune.models.prefix import with_cached_prefix
from modaltune.step import accumulate_gradients, loss_of
from modaltune.tasks.hazards import hazard_risk
from modaltune.tasks.head import HazardHeads
from modaltune.training import fit, labelled

Build = Callable[[str], Learner]
Narrow = Callable[[str], Study]
KINDS = sorted(ROWS)
READS_SLIDES = [kind for kind in KINDS if "slides" in NEEDS[kind]]
READS_GENES = [kind for kind in KINDS if "expression" in NEEDS[kind]]
TUNED = ("gigapath_tuned", "gigapath_cat", "titan_tuned", "titan_cat")
ORDER_MATTERS = ("transmil", "transmil_cat", *TUNED)  # squares, and dilated attention


def complete(cases: list[CaseTensors]) -> list[CaseTensors]:
    return [case.loaded() for case in cases if readable(case, ("slides", "expression"))]


def vectors(learner: Learner, cases: list[CaseTensors]) -> Tensor:
    with torch.no_grad():
        return learner.modaltune.embed(collate(cases), ["diagnosis"])[:, 0]


def test_a_study_may_name_exactly_the_models_that_exist() -> None:
    assert set(get_args(Kind)) == {"modaltune", *ROWS}
    assert set(get_args(Kind)) <= set(NEEDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_gets_the_same_vector_alone_and_beside_a_larger_bag(
    kind: str, build: Build, tiny_cases: list[CaseTensors]
) -> None:
    learner, cases = build(kind), complete(tiny_cases)
    assert len({case.patch_count for case in cases}) > 1
    alone = torch.cat([vectors(learner, [case]) for case in cases])
    torch.testing.assert_close(vectors(learner, cases), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", READS_SLIDES)
def test_the_order_of_patches_is_irrelevant_to_pooling_and_attention(
    kind: str, build: Build, tiny_cases: list[CaseTensors]
) -> None:
    learner = build(kind)
    case = max(complete(tiny_cases), key=lambda case: case.patch_count)
    turned = replace(case, patches=case.patches.flip(0), cells=case.cells.flip(0))
    same = torch.allclose(vectors(learner, [case]), vectors(learner, [turned]), rtol=1e-4, atol=1e-5)
    assert same == (kind not in ORDER_MATTERS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_reads_the_modalities_that_it_needs_and_no_other(
    kind: str, build: Build, tiny_cases: list[CaseTensors]
) -> None:
    learner, case = build(kind), complete(tiny_cases)[0]
    other_slides, other_genes = replace(case, patches=-case.patches), replace(case, expression=-case.expression)
    seen = {
        "slides": not torch.equal(vectors(learner, [case]), vectors(learner, [other_slides])),
        "expression": not torch.equal(vectors(learner, [case]), vectors(learner, [other_genes])),
    }
    assert [name for name, moved in seen.items() if moved] == list(NEEDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_reaches_every_trained_parameter(kind: str, build: Build, tiny_cases: list[CaseTensors]) -> None:
    learner, cases = build(kind), complete(tiny_cases)
    accumulate_gradients(learner, cases, "hazards")
    dead = [name for name, p in learner.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert [name for name in dead if not name.endswith(".score.bias")] == []  # a softmax does not see it


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_a_handful_of_cases_by_heart(
    kind: str, build: Build, narrow_study: Narrow, tiny_cases: list[CaseTensors]
) -> None:
    learner = build(kind)
    for part in learner.modules():
        if isinstance(part, nn.Dropout | nn.AlphaDropout):
            part.p = 0.0
    cases = [replace(case, targets={"diagnosis": case.targets["diagnosis"]}) for case in complete(tiny_cases)[:6]]
    before = loss_of(learner, cases, "hazards")
    spec = narrow_study(kind).training.model_copy(update={"learning_rate": 1.5e-2, "batch_size": 6})
    fit(learner, cases, spec, steps=40, seed=0)
    assert loss_of(learner.eval(), cases, "hazards") < 0.3 * before


@pytest.mark.parametrize("kind", ["abmil", "mlp", "survpath"])
def test_a_case_that_the_model_cannot_read_is_neither_trained_on_nor_scored(
    kind: str, build: Build, narrow_study: Narrow, tiny_cohort: Cohort, tiny_preprocessing: Preprocessing
) -> None:
    study = narrow_study(kind)
    cases = prepare(tiny_cohort, study, tiny_preprocessing)
    can = np.array([readable(case, study.model.needs) for case in cases])
    assert 0 < can.sum() < len(cases)
    assert all(readable(case, study.model.needs) for case in labelled(cases))
    table = predict(build(kind), study, tiny_preprocessing, tiny_cohort, cases, split=None)
    known = tiny_cohort.cases["diagnosis"].notna().to_numpy()
    inside = table[table["task"] == "diagnosis"]
    assert inside["row"].tolist() == np.flatnonzero(can & known).tolist()
    assert inside["label"].tolist() == tiny_cohort.cases["diagnosis"][can & known].tolist()


def test_examples_of_a_task_count_for_its_head_and_those_of_all_for_the_trunk(
    build: Build, narrow_study: Narrow, tiny_cohort: Cohort, tiny_preprocessing: Preprocessing
) -> None:
    learner, study = build("abmil"), narrow_study("abmil")
    cases = labelled(prepare(tiny_cohort, study, tiny_preprocessing))
    examples = fit(learner, cases, study.training, steps=4, seed=0).examples
    for name, count in examples.items():
        if name.startswith(OPTIONAL_PREFIXES):
            task = name.split(".")[2]
            assert count == sum(task in case.targets for case in cases), name
        else:
            assert count == len(cases), name


def test_probabilities_follow_the_hazards_and_risk_their_survival_curve(
    build: Build, narrow_study: Narrow, tiny_cohort: Cohort, tiny_preprocessing: Preprocessing
) -> None:
    learner, study = build("mlp"), narrow_study("mlp")
    cases = prepare(tiny_cohort, study, tiny_preprocessing)
    table = predict(learner, study, tiny_preprocessing, tiny_cohort, cases, split=None)
    table = table[table["task"] == "survival"]
    asked = [cases[row] for row in table["row"]]
    assert isinstance(learner.head, HazardHeads)
    with torch.no_grad():
        logits = learner.head.logits(vectors(learner, asked), "survival")
    np.testing.assert_allclose(table["risk"].astype(float), hazard_risk(logits).numpy(), rtol=1e-5)
    np.testing.assert_allclose(np.stack(table["probabilities"].to_list()).sum(axis=1), 1, rtol=1e-6)


def test_the_frozen_slide_encoder_of_others_stays_as_it_is_while_a_copy_is_tuned(build: Build) -> None:
    first, second = build("gigapath_tuned"), build("gigapath_tuned")
    with torch.no_grad():
        for parameter in trainable_state(first).values():
            parameter.add_(1)
    assert not any(
        torch.equal(a, b)
        for a, b in zip(trainable_state(first).values(), trainable_state(second).values(), strict=True)
    )
    assert any(name.startswith("modaltune.trunk.encoder.") for name in trainable_state(first))


def test_a_baseline_that_leaves_the_slide_encoder_alone_needs_no_weights_of_it(
    narrow_study: Narrow, tiny_preprocessing: Preprocessing
) -> None:
    build_learner(narrow_study("abmil"), tiny_preprocessing, frozen=False)
    with pytest.raises(ModelFileError, match="trains the slide encoder"):
        build_learner(narrow_study("gigapath_cat"), tiny_preprocessing, frozen=False)


def test_a_saved_baseline_scores_as_before(
    tmp_path: Path, build: Build, narrow_study: Narrow, tiny_preprocessing: Preprocessing, tiny_cases: list[CaseTensors]
) -> None:
    learner = build("mcat")
    with torch.no_grad():
        for parameter in trainable_state(learner).values():
            parameter.mul_(1.01)
    baseline = narrow_study("mcat")
    own = tiny_preprocessing.model_copy(update={"study": baseline.digest})
    save_model(tmp_path / "model", learner, baseline, own)
    loaded, study, _ = load_model(tmp_path / "model")
    assert study.model.kind == "mcat"
    cases = complete(tiny_cases)
    assert torch.equal(vectors(loaded, cases), vectors(learner, cases))


def test_patches_of_a_baseline_are_never_replaced_by_cached_tokens(
    tmp_path: Path, build: Build, tiny_cases: list[CaseTensors]
) -> None:
    assert with_cached_prefix(build("abmil").modaltune, "0", tiny_cases, tmp_path, embedding=True) == tiny_cases


def test_a_missing_modality_is_no_nan_in_the_vector(build: Build, tiny_cases: list[CaseTensors]) -> None:
    case = without_modality(complete(tiny_cases)[0], "slides")
    for kind in READS_SLIDES:
        assert torch.isfinite(vectors(build(kind), [case, *complete(tiny_cases)[:2]])).all(), kind


def test_a_study_without_expression_or_gene_sets_says_what_is_missing() -> None:
    def no_encoder() -> None:
        raise AssertionError

    inputs = Inputs(features=6, genes=0, gene_indices=(), slide_encoder=no_encoder)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="reads expression"):
        build_baseline("mlp", inputs)
    with pytest.raises(ConfigError, match="gene sets"):
        build_baseline("mcat", replace(inputs, genes=12))
    with pytest.raises(ConfigError, match="unknown model 'cnn'; choose from abmil"):
        build_baseline("cnn", inputs)


@pytest.mark.parametrize(
    "change", [{"objective": "hazards"}, {"kind": "abmil"}, {"kind": "abmil", "objective": "hazards"}]
)
def test_a_study_that_mixes_a_baseline_with_other_settings_is_refused(
    change: dict[str, str], tiny_study: Study
) -> None:
    content = tiny_study.model_dump()
    for name, value in change.items():
        content["model" if name == "kind" else "training"][name] = value
    with pytest.raises(ValueError, match="a baseline needs"):
        Study.model_validate(content)


def test_a_variant_keeps_everything_but_the_model_and_its_recipe(tiny_study: Study) -> None:
    variant = baseline_study(tiny_study, "transmil_cat")
    assert (variant.training.learning_rate, variant.training.weight_decay) == (2e-4, 1e-5)
    assert variant.training.rounds == tiny_study.training.rounds
    assert variant.tasks == tiny_study.tasks
    assert isinstance(variant.model.needs, tuple)
    assert variant.digest != tiny_study.digest


@pytest.mark.parametrize("way", ["tuned", "cat"])
def test_titans_rows_are_gigapaths_on_the_studys_encoder(
    way: str, build: Build, narrow_study: Narrow, tiny_cases: list[CaseTensors]
) -> None:
    ours, theirs = (narrow_study(f"{family}_{way}") for family in ("titan", "gigapath"))
    assert ours.training == theirs.training
    assert ours.model.needs == theirs.model.needs
    cases = complete(tiny_cases)
    assert torch.equal(vectors(build(f"titan_{way}"), cases), vectors(build(f"gigapath_{way}"), cases))


def test_only_baselines_count_as_such(build: Build, tiny_learner: Learner) -> None:
    assert isinstance(build("abmil").modaltune, Baseline)
    assert not isinstance(tiny_learner.modaltune, Baseline)
