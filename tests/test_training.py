from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modaltune import training
from modaltune.data.batch import CaseTensors
from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import ConfigError
from modaltune.evaluation.predictions import embed_cases
from modaltune.federation.settings import TrainingSpec
from modaltune.federation.study import Study
from modaltune.models.learner import Learner, build_learner
from modaltune.models.modaltune import trainable_state
from modaltune.seeds import numpy_generator
from modaltune.storage import digest_state
from modaltune.training import (
    batches,
    drop_modalities,
    epoch_steps,
    evaluation_loss,
    fit,
    fit_and_average,
    fit_and_select,
    labelled,
    learning_rate,
    make_optimiser,
    optimiser_state,
    restore_optimiser,
)

SPEC = TrainingSpec(batch_size=8, learning_rate=5e-3, modality_dropout=0.0, warmup=0.0)


@pytest.fixture
def other_learner(tiny_study: Study, tiny_preprocessing: Preprocessing, tiny_targets: dict[str, Tensor]) -> Learner:
    """A second model with the same initial weights."""
    return build_learner(tiny_study, tiny_preprocessing, tiny_targets)


def weights(learner: Learner) -> str:
    return digest_state(trainable_state(learner))


def test_one_seed_gives_identical_weights(
    tiny_learner: Learner, other_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    spec = SPEC.model_copy(update={"modality_dropout": 0.5})
    before = weights(tiny_learner)
    outcomes = []
    for learner, noise in ((tiny_learner, 1), (other_learner, 2)):
        torch.manual_seed(noise)
        outcomes.append(fit(learner, tiny_cases, spec, steps=4, seed=7))
    assert weights(tiny_learner) == weights(other_learner) != before
    assert outcomes[0] == outcomes[1]


def test_another_seed_gives_other_weights(
    tiny_learner: Learner, other_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    fit(tiny_learner, tiny_cases, SPEC, steps=2, seed=7)
    fit(other_learner, tiny_cases, SPEC, steps=2, seed=8)
    assert weights(tiny_learner) != weights(other_learner)


def test_training_leaves_the_frozen_encoder_alone(tiny_learner: Learner, tiny_cases: list[CaseTensors]) -> None:
    frozen = tiny_learner.modaltune.slide_encoder
    before = digest_state(frozen.state_dict())
    fit(tiny_learner, tiny_cases, SPEC, steps=2, seed=0)
    assert digest_state(frozen.state_dict()) == before
    assert not frozen.training


@pytest.mark.parametrize(("objective", "accuracy"), [("contrastive", 0.9), ("distillation", 0.6)])
def test_the_loss_falls_and_the_cases_are_told_apart(
    objective: str, accuracy: float, tiny_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    cases = [
        replace(case, targets={"diagnosis": case.targets["diagnosis"]})
        for case in tiny_cases
        if case.has_expression and "diagnosis" in case.targets
    ]
    spec = SPEC.model_copy(update={"objective": objective})
    before, count = evaluation_loss(tiny_learner, cases, objective)
    fit(tiny_learner, cases, spec, steps=60, seed=0)
    after, _ = evaluation_loss(tiny_learner, cases, objective)
    assert count == len(cases)
    assert after < 0.5 * before
    scores = tiny_learner.head(embed_cases(tiny_learner, cases)["diagnosis"], "diagnosis")
    right = scores.argmax(dim=-1) == torch.tensor([case.targets["diagnosis"][0] for case in cases])
    assert right.float().mean() > accuracy  # chance is a third


def test_the_outcome_counts_distinct_cases_per_parameter(tiny_learner: Learner, tiny_cases: list[CaseTensors]) -> None:
    usable = labelled(tiny_cases)
    steps = 2 * epoch_steps(len(usable), SPEC.batch_size)  # every case twice
    examples = fit(tiny_learner, tiny_cases, SPEC, steps=steps, seed=0).examples
    assert set(examples) == set(trainable_state(tiny_learner))
    expected = {
        "modaltune.gene_encoder.first.weight": sum(case.has_expression for case in usable),
        "modaltune.missing.expression": sum(not case.has_expression for case in usable),
        "modaltune.missing.slides": sum(len(case.patches) == 0 for case in usable),
        "modaltune.token_positions": len(usable),
        "modaltune.task_tokens.bias": len(usable),
        **{f"modaltune.task_tokens.vectors.{task}": holders(usable, task) for task in tiny_learner.kinds},
        **{f"head.scale.{task}": holders(usable, task) for task in tiny_learner.kinds},
    }
    assert {name: examples[name] for name in expected} == expected
    assert 0 < min(expected.values()) < max(expected.values()) == len(usable)


def holders(cases: Sequence[CaseTensors], task: str) -> int:
    return sum(task in case.targets for case in cases)


def test_a_parameter_that_no_case_reaches_counts_nothing(tiny_learner: Learner, tiny_cases: list[CaseTensors]) -> None:
    cases = [
        replace(case, targets={"stage": case.targets["stage"]})
        for case in tiny_cases
        if case.has_expression and len(case.patches) and "stage" in case.targets
    ]
    before = {name: value.clone() for name, value in trainable_state(tiny_learner).items()}
    examples = fit(tiny_learner, cases, SPEC, steps=2, seed=0).examples
    idle = {name for name, count in examples.items() if count == 0}
    assert {name.rsplit(".", 1)[0] for name in idle} == {
        "modaltune.missing",
        "modaltune.task_tokens.vectors",
        "head.scale",
    }
    assert all(torch.equal(trainable_state(tiny_learner)[name], before[name]) for name in idle)


def test_a_part_of_a_pass_counts_only_the_cases_it_showed(tiny_learner: Learner, tiny_cases: list[CaseTensors]) -> None:
    examples = fit(tiny_learner, tiny_cases, SPEC, steps=1, seed=0).examples
    assert examples["modaltune.token_positions"] == SPEC.batch_size


def test_the_learning_rate_warms_up_and_then_falls_to_zero() -> None:
    spec = TrainingSpec(learning_rate=2.0, warmup=0.2)
    rates = [learning_rate(spec, progress) for progress in np.linspace(0, 1, 51)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == max(rates) == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(0.0)
    assert all(low < high for low, high in pairwise(rates[:11]))
    assert all(high > low for high, low in pairwise(rates[10:]))


def test_without_warm_up_the_learning_rate_starts_at_its_peak() -> None:
    assert learning_rate(SPEC, 0.0) == SPEC.learning_rate
    assert learning_rate(SPEC, 0.5) == pytest.approx(SPEC.learning_rate / 2)


def test_a_round_covers_its_own_part_of_the_schedule(tiny_learner: Learner, tiny_cases: list[CaseTensors]) -> None:
    optimiser, seen = make_optimiser(tiny_learner, SPEC), []
    fit(
        tiny_learner,
        tiny_cases,
        SPEC,
        steps=4,
        seed=0,
        start=0.5,
        end=0.75,
        optimiser=optimiser,
        after_step=lambda step: seen.append((step, optimiser.param_groups[0]["lr"])),
    )
    expected = [learning_rate(SPEC, progress) for progress in (0.5, 0.5625, 0.625, 0.6875)]
    assert [step for step, _ in seen] == [1, 2, 3, 4]
    assert [rate for _, rate in seen] == pytest.approx(expected)


def test_weight_decay_shrinks_weight_matrices_only(tiny_learner: Learner, tiny_study: Study) -> None:
    spec = tiny_study.training.model_copy(update={"weight_decay": 0.5, "learning_rate": 0.1})
    before = {name: value.clone() for name, value in trainable_state(tiny_learner).items()}
    optimiser = training.make_optimiser(tiny_learner, spec)
    for parameter in tiny_learner.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimiser.step()
    for name, value in trainable_state(tiny_learner).items():
        shrinks = value.dim() > 1 and name.endswith("weight")
        torch.testing.assert_close(value, before[name] * (0.95 if shrinks else 1.0))
    kept = {"modaltune.token_positions", "modaltune.task_tokens.vectors.stage", "modaltune.missing.slides"}
    assert kept <= {name for name in before if not name.endswith("weight")}


def test_the_gradient_of_all_parameters_together_is_clipped(
    tiny_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    before = {name: value.clone() for name, value in trainable_state(tiny_learner).items()}
    plain = torch.optim.SGD([p for p in tiny_learner.parameters() if p.requires_grad])
    spec = SPEC.model_copy(update={"clip_norm": 0.01})
    fit(tiny_learner, tiny_cases, spec, steps=1, seed=0, optimiser=plain)
    moved = sum((value - before[name]).square().sum() for name, value in trainable_state(tiny_learner).items())
    assert float(moved) ** 0.5 == pytest.approx(0.01 * SPEC.learning_rate, rel=0.01)


@given(count=st.integers(1, 40), size=st.integers(1, 12), seed=st.integers(0, 5))
@settings(deadline=None)
def test_each_pass_visits_every_case_once(count: int, size: int, seed: int) -> None:
    steps = epoch_steps(count, size)
    order = batches(count, size, numpy_generator(seed))
    for _ in range(3):
        shown = list(islice(order, steps))
        assert sorted(case for batch in shown for case in batch) == list(range(count))
        assert all(len(batch) == size for batch in shown[:-1])


def test_passes_differ_in_their_order() -> None:
    first, second = islice(batches(30, 30, numpy_generator(0)), 2)
    assert first != second


@given(rate=st.floats(0, 0.99), seed=st.integers(0, 1000))
@settings(deadline=None)
def test_modality_dropout_never_hides_both(rate: float, seed: int, tiny_cases: list[CaseTensors]) -> None:
    generator = numpy_generator(seed)
    for case in tiny_cases:
        shown = drop_modalities(case, rate, generator)
        had = (len(case.patches) > 0) + case.has_expression
        has = (len(shown.patches) > 0) + shown.has_expression
        assert has >= min(had, 1)
        assert shown is case or (had, has) == (2, 1)
        assert shown.targets == case.targets


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_modality_dropout_respects_its_rate_and_hides_both_kinds(rate: float, tiny_cases: list[CaseTensors]) -> None:
    generator = numpy_generator(0)
    case = next(case for case in tiny_cases if case.has_expression and len(case.patches))
    shown = [drop_modalities(case, rate, generator) for _ in range(2000)]
    no_slides = sum(len(one.patches) == 0 for one in shown) / 2000
    no_genes = sum(not one.has_expression for one in shown) / 2000
    assert no_slides == pytest.approx(rate / 2, abs=0.03)
    assert no_genes == pytest.approx(rate / 2, abs=0.03)
    if rate == 0:
        assert all(one is case for one in shown)


def test_unlabelled_cases_are_neither_trained_on_nor_scored(
    tiny_learner: Learner, other_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    blank = [replace(case, targets={}) for case in tiny_cases[:5]]
    assert evaluation_loss(tiny_learner, blank, "contrastive") == (0.0, 0)
    known = labelled(tiny_cases[5:])
    fit(tiny_learner, [*blank, *known], SPEC, steps=2, seed=0)
    fit(other_learner, known, SPEC, steps=2, seed=0)
    assert weights(tiny_learner) == weights(other_learner)


class ScriptedValidation:
    """Stands for the validation loss: given values, and the weights that each was asked about."""

    def __init__(self, losses: Sequence[float]) -> None:
        self.losses, self.seen = list(losses), []

    def __call__(self, learner: Learner, cases: Sequence[CaseTensors], objective: str) -> tuple[float, int]:
        learner.eval()
        self.seen.append(weights(learner))
        return self.losses[len(self.seen) - 1] * len(cases), len(cases)


@pytest.mark.parametrize(("losses", "best"), [((3, 1, 2), 1), ((1, 2, 3), 0), ((3, 2, 1), 2), ((2, 1, 1), 1)])
def test_the_checkpoint_with_the_lowest_validation_loss_is_kept(
    losses: tuple[float, ...],
    best: int,
    tiny_learner: Learner,
    tiny_cases: list[CaseTensors],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = ScriptedValidation(losses)
    monkeypatch.setattr(training, "evaluation_loss", script)
    fit_and_select(tiny_learner, tiny_cases, tiny_cases[:4], SPEC, steps=6, seed=0, checks=3)
    assert len(set(script.seen)) == 3
    assert weights(tiny_learner) == script.seen[best]


def test_validation_does_not_disturb_training(
    tiny_learner: Learner, other_learner: Learner, tiny_cases: list[CaseTensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "evaluation_loss", ScriptedValidation((3, 2, 1)))
    spec = SPEC.model_copy(update={"modality_dropout": 0.5})
    selected = fit_and_select(tiny_learner, tiny_cases, tiny_cases[:4], spec, steps=6, seed=0, checks=3)
    assert fit(other_learner, tiny_cases, spec, steps=6, seed=0) == selected
    assert weights(tiny_learner) == weights(other_learner)


def test_without_validation_cases_the_last_weights_are_kept(
    tiny_learner: Learner, other_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    blank = [replace(case, targets={}) for case in tiny_cases[:3]]
    fit_and_select(tiny_learner, tiny_cases, blank, SPEC, steps=3, seed=0)
    fit(other_learner, tiny_cases, SPEC, steps=3, seed=0)
    assert weights(tiny_learner) == weights(other_learner)


def test_the_average_of_the_weights_follows_the_last_steps(
    tiny_learner: Learner, tiny_cases: list[CaseTensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scripted(learner: Learner, *_: object, after_step: Callable[[int], None], **__: object) -> None:
        for step in range(1, 11):
            training._put(learner, {name: torch.full_like(v, step) for name, v in trainable_state(learner).items()})
            after_step(step)

    monkeypatch.setattr(training, "fit", scripted)
    training._put(tiny_learner, {name: torch.zeros_like(v) for name, v in trainable_state(tiny_learner).items()})
    fit_and_average(tiny_learner, tiny_cases, SPEC, steps=10, seed=0, share=0.2)
    expected = 0.0
    for step in range(1, 11):
        expected += 0.5 * (step - expected)
    for value in trainable_state(tiny_learner).values():
        assert value.flatten()[0].item() == pytest.approx(expected, rel=1e-5)


def test_an_optimiser_goes_on_from_its_saved_averages(
    tiny_learner: Learner, other_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    first = make_optimiser(tiny_learner, SPEC)
    fit(tiny_learner, tiny_cases, SPEC, steps=2, seed=0, optimiser=first)
    fit(other_learner, tiny_cases, SPEC, steps=2, seed=0)
    second, saved = make_optimiser(other_learner, SPEC), optimiser_state(tiny_learner, first)
    restore_optimiser(other_learner, second, saved)
    assert optimiser_state(other_learner, second).keys() == saved.keys()
    fit(tiny_learner, tiny_cases, SPEC, steps=2, seed=1, optimiser=first)
    fit(other_learner, tiny_cases, SPEC, steps=2, seed=1, optimiser=second)
    assert weights(tiny_learner) == weights(other_learner)


def test_an_optimiser_that_starts_afresh_takes_other_steps(
    tiny_learner: Learner, other_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    kept = make_optimiser(tiny_learner, SPEC)
    fit(tiny_learner, tiny_cases, SPEC, steps=2, seed=0, optimiser=kept)
    fit(other_learner, tiny_cases, SPEC, steps=2, seed=0)
    fit(tiny_learner, tiny_cases, SPEC, steps=2, seed=1, optimiser=kept)
    fit(other_learner, tiny_cases, SPEC, steps=2, seed=1)
    assert weights(tiny_learner) != weights(other_learner)


def test_fedprox_keeps_the_weights_nearer_to_those_received(
    tiny_learner: Learner, other_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    start = {name: value.clone() for name, value in trainable_state(tiny_learner).items()}
    fit(tiny_learner, tiny_cases, SPEC, steps=6, seed=0)
    fit(other_learner, tiny_cases, SPEC.model_copy(update={"proximal": 50.0}), steps=6, seed=0, anchored=True)

    def distance(learner: Learner) -> float:
        return sum(float((value - start[name]).square().sum()) for name, value in trainable_state(learner).items())

    assert distance(other_learner) < 0.8 * distance(tiny_learner)


def test_local_training_ignores_fedprox(
    tiny_learner: Learner, other_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    fit(tiny_learner, tiny_cases, SPEC, steps=3, seed=0)
    fit(other_learner, tiny_cases, SPEC.model_copy(update={"proximal": 50.0}), steps=3, seed=0)
    assert weights(tiny_learner) == weights(other_learner)


def test_a_loss_that_is_no_number_stops_training_with_one_clear_line(
    tiny_learner: Learner, tiny_cases: list[CaseTensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "accumulate_gradients", lambda *_, **__: float("nan"))
    with pytest.raises(ConfigError, match="loss is not a number at step 1 of 3"):
        fit(tiny_learner, tiny_cases, SPEC, steps=3, seed=0)


def test_a_validation_loss_that_is_no_number_is_never_the_best(
    tiny_learner: Learner, tiny_cases: list[CaseTensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([float("nan"), 2.0, 3.0])
    states: list[dict[str, Tensor]] = []

    def scripted(learner: Learner, *_: object) -> tuple[float, int]:
        states.append({name: value.clone() for name, value in trainable_state(learner).items()})
        return next(losses), 1

    monkeypatch.setattr(training, "evaluation_loss", scripted)
    fit_and_select(tiny_learner, tiny_cases, tiny_cases, SPEC, steps=3, seed=0, checks=3)
    assert digest_state(trainable_state(tiny_learner)) == digest_state(states[1])
