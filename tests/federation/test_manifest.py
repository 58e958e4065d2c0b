from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from modaltune.data.cohort import Cohort
from modaltune.errors import FederationError, ReplyRefused
from modaltune.federation.manifest import (
    TRAIN_METRICS,
    Manifest,
    check_evaluation,
    check_examples,
    check_metrics,
    check_training,
    evaluation_metrics,
    statistics_manifest,
)
from modaltune.federation.settings import PrivacySpec
from modaltune.federation.statistics import site_statistics
from modaltune.federation.study import Study
from modaltune.models.learner import Learner
from modaltune.models.modaltune import trainable_state

MANIFEST = Manifest(shapes={"scale": (), "weight": (2, 3)}, norm_bound=10)


def some_arrays() -> dict[str, Any]:
    return {"scale": np.float32(1).reshape(()), "weight": np.ones((2, 3), dtype=np.float32)}


def a_weight(value: float) -> np.ndarray:
    weight = np.ones((2, 3), dtype=np.float32)
    weight[1, 2] = value
    return weight


def refused(arrays: dict[str, Any]) -> str | None:
    """Why the manifest refuses; None when it does not."""
    try:
        MANIFEST.check("H1", arrays)
    except ReplyRefused as refusal:
        return refusal.reason
    return None


def test_arrays_that_fit_pass() -> None:
    assert refused(some_arrays()) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patients": np.zeros(3), "names": np.zeros(3)}, r"2 array\(s\) outside the manifest"),
        ({"weight": None}, r"1 array\(s\) missing, first weight"),
        ({"weight": np.ones((3, 2), dtype=np.float32)}, r"weight is float32\(3, 2\), not float32\(2, 3\)"),
        ({"scale": np.ones(1, dtype=np.float32)}, r"scale is float32\(1,\), not float32\(\)"),
        ({"weight": np.ones((2, 3))}, r"weight is float64\(2, 3\), not float32"),
        ({"weight": np.ones((2, 3), dtype=object)}, r"weight is object"),
        ({"weight": a_weight(math.nan)}, "weight is not finite"),
        ({"weight": a_weight(-math.inf)}, "weight is not finite"),
        ({"weight": a_weight(10.0)}, "weight has a norm above 10"),
        ({"weight": a_weight(3e38)}, "weight has a norm above 10"),
    ],
)
def test_arrays_that_differ_are_refused_with_the_site_and_the_reason(change: dict[str, Any], message: str) -> None:
    arrays = {name: value for name, value in {**some_arrays(), **change}.items() if value is not None}
    with pytest.raises(ReplyRefused, match=message) as caught:
        MANIFEST.check("H1", arrays)
    assert caught.value.site == "H1"
    assert str(caught.value) == f"reply of H1 refused: {caught.value.reason}"
    assert isinstance(caught.value, FederationError)


def test_a_norm_at_the_bound_passes() -> None:
    just = 10 / 6**0.5
    assert refused({**some_arrays(), "weight": np.full((2, 3), just * 0.999, dtype=np.float32)}) is None
    assert refused({**some_arrays(), "weight": np.full((2, 3), just * 1.001, dtype=np.float32)}) is not None


def test_the_names_of_unexpected_arrays_are_not_repeated() -> None:
    with pytest.raises(ReplyRefused) as caught:
        MANIFEST.check("H1", {**some_arrays(), "PATIENT-01": np.zeros(1)})
    assert "PATIENT" not in str(caught.value)


def test_what_may_travel_is_what_the_module_trains(tiny_learner: Learner, tiny_study: Study) -> None:
    bound = tiny_study.model_copy(update={"privacy": PrivacySpec(norm_bound=50)})
    manifest = Manifest.of_training(tiny_learner, bound)
    state = {name: value.numpy() for name, value in trainable_state(tiny_learner).items()}
    manifest.check("H1", state)
    assert set(manifest.shapes) == set(state)
    assert manifest.norm_bound == 50
    assert manifest.megabytes == pytest.approx(sum(value.nbytes for value in state.values()) / 1e6)


def test_frozen_weights_may_not_travel(tiny_learner: Learner, tiny_study: Study) -> None:
    manifest = Manifest.of_training(tiny_learner, tiny_study)
    everything = {name: value.numpy() for name, value in tiny_learner.state_dict().items()}
    with pytest.raises(ReplyRefused, match="outside the manifest"):
        manifest.check("H1", everything)


def test_a_sites_statistics_fit_their_manifest(tiny_study: Study, tiny_cohort: Cohort) -> None:
    genes = ["G01", "G05"]
    manifest = statistics_manifest(tiny_study, genes)
    sums = site_statistics(tiny_cohort, tiny_study, genes)
    manifest.check("H1", sums)
    with pytest.raises(ReplyRefused, match="missing"):
        manifest.check("H1", site_statistics(tiny_cohort, tiny_study, []))
    with pytest.raises(ReplyRefused, match="float32"):
        manifest.check("H1", {name: value.astype(np.float32) for name, value in sums.items()})


def test_example_counts_that_fit_pass() -> None:
    assert check_examples("H1", {"a": 0, "b": 7}, {"a": (), "b": ()}, 7) == {"a": 0, "b": 7}


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({"a": 1}, "example counts for 1 keys, expected 2"),
        ({"a": 1, "b": 1, "c": 1}, "example counts for 3 keys, expected 2"),
        ({"a": 1, "c": 1}, "example counts for 2 keys, expected 2"),
        ({"a": 1, "b": 8}, r"example count of b is outside 0\.\.7"),
        ({"a": -1, "b": 1}, "example count of a is outside"),
        ({"a": 1.0, "b": 1}, "example count of a is outside"),
        ({"a": "1", "b": 1}, "example count of a is outside"),
    ],
)
def test_example_counts_that_differ_are_refused(examples: dict[str, object], message: str) -> None:
    with pytest.raises(ReplyRefused, match=message):
        check_examples("H1", examples, {"a": (), "b": ()}, 7)


def test_metrics_that_fit_pass_and_may_be_fewer() -> None:
    assert check_metrics("H1", {"loss": 0.5, "steps": 3}, TRAIN_METRICS) == {"loss": 0.5, "steps": 3.0}


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"loss": 0.5, "patient": 1.0, "age": 3.0}, r"2 metric\(s\) outside the manifest"),
        ({"loss": math.nan}, "metric loss is not a finite number"),
        ({"loss": math.inf}, "metric loss is not a finite number"),
        ({"loss": [0.1, 0.2]}, "metric loss is not a finite number"),
        ({"loss": "0.1"}, "metric loss is not a finite number"),
    ],
)
def test_metrics_that_differ_are_refused(metrics: dict[str, object], message: str) -> None:
    with pytest.raises(ReplyRefused, match=message):
        check_metrics("H1", metrics, TRAIN_METRICS)


def test_an_evaluation_may_report_each_metric_of_each_task_with_its_interval(tiny_study: Study) -> None:
    allowed = evaluation_metrics(tiny_study)
    assert {name.rsplit(".", 1)[0] for name in allowed} == {
        "diagnosis.auc",
        "diagnosis.balanced_accuracy",
        "stage.auc",
        "stage.balanced_accuracy",
        "survival.c_index",
        *(f"{task}.{metric}" for task in ("diagnosis", "stage") for metric in ("macro_f1", "brier", "ece")),
        "survival.c_index_ipcw",  # none at a horizon: it can rest on one death
    }
    assert len(allowed) == len(set(allowed)) == 12 * 5
    assert {name.rsplit(".", 1)[1] for name in allowed} == {"value", "low", "high", "n", "events"}


HONEST = {"loss": 0.7, "steps": 4.0, "train-cases": 12.0, "val-loss-sum": 2.1, "val-cases": 3.0}


def test_honest_training_metrics_pass() -> None:
    assert check_training("H2", HONEST, 12, 9) == HONEST


@pytest.mark.parametrize(
    "change",
    [
        {"loss": 1e308},
        {"loss": -1.0},
        {"steps": 1.7e308},
        {"steps": 1.5},
        {"train-cases": 13.0},
        {"val-cases": 1e9},
        {"val-loss-sum": 1e300},
        {"val-loss-sum": 1.0, "val-cases": 0.0},
    ],
)
def test_training_metrics_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ReplyRefused, match=rf"metric {next(iter(change))} is out of range"):
        check_training("H2", HONEST | change, 12, 9)


def test_a_missing_training_metric_is_refused() -> None:
    with pytest.raises(ReplyRefused, match="metric loss is missing"):
        check_training("H2", {name: value for name, value in HONEST.items() if name != "loss"}, 12, 9)


@pytest.mark.parametrize(("part", "value"), [("value", 1.2), ("low", -0.1), ("n", 9.0), ("n", 2.5)])
def test_evaluation_metrics_out_of_range_are_refused(part: str, value: float, tiny_study: Study) -> None:
    name = f"diagnosis.auc.{part}"
    assert check_evaluation("H2", {"diagnosis.auc.value": 0.9, "diagnosis.auc.n": 8.0}, tiny_study, 8)
    with pytest.raises(ReplyRefused, match=f"metric {name} is out of range"):
        check_evaluation("H2", {name: value}, tiny_study, 8)
