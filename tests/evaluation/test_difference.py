from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modaltune.errors import ConfigError
from modaltune.evaluation.difference import events_behind, paired_difference
from modaltune.evaluation.metrics import binary_auc
from modaltune.federation.study import Label, TaskSpec

LABELS = tuple(Label(value=value, text=value) for value in ("a", "b", "c"))
NOMINAL = TaskSpec(name="diagnosis", kind="nominal", template="{text}", labels=LABELS)
ORDINAL = TaskSpec(name="stage", kind="ordinal", template="{text}", labels=LABELS, positive=("c",))
SURVIVAL = TaskSpec(name="survival", kind="survival", template="{text}", bins=("early", "late"))


def nominal(labels: list[str], chance: np.ndarray) -> pd.DataFrame:
    """Predictions of a two-class task; ``chance`` is the probability of the second class."""
    return pd.DataFrame(
        {
            "hospital": "H1",
            "task": "diagnosis",
            "label": labels,
            "probabilities": list(np.stack([1 - chance, chance], axis=1)),
            "time_months": np.nan,
            "event": np.nan,
            "risk": np.nan,
        }
    )


def survival(months: np.ndarray, event: np.ndarray, risk: np.ndarray) -> pd.DataFrame:
    columns = {"time_months": months, "event": event.astype(float), "risk": risk}
    return pd.DataFrame({"hospital": "H1", "task": "survival", "label": None, "probabilities": None, **columns})


def two_models(cases: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    draw = np.random.default_rng(seed)
    positive = np.arange(cases) % 2 == 1
    labels = ["ab"[int(value)] for value in positive]
    first, second = draw.random(cases), draw.random(cases)
    return nominal(labels, first), nominal(labels, second), positive


@given(st.integers(0, 50), st.integers(4, 30))
def test_the_difference_is_that_of_the_two_scores_and_changes_its_sign_with_the_order(seed: int, cases: int) -> None:
    first, second, positive = two_models(cases, seed)
    names = (("a", "b"), ("a", "b"))
    there = paired_difference(first, second, NOMINAL, names, "auc", 0)
    back = paired_difference(second, first, NOMINAL, names, "auc", 0)
    once = np.ones((1, cases))
    chances = [np.stack(table["probabilities"].to_list())[:, 1] for table in (first, second)]
    expected = [binary_auc(positive, chance, once)[0] for chance in chances]
    assert there.value == pytest.approx(expected[0] - expected[1])
    assert (there.value, there.low, there.high) == pytest.approx(tuple(-v for v in (back.value, back.high, back.low)))
    assert there.n == cases


def test_a_model_does_not_differ_from_itself() -> None:
    first, _, _ = two_models(40, 0)
    score = paired_difference(first, first, NOMINAL, (("a", "b"), ("a", "b")), "auc", 0)
    assert (score.value, score.low, score.high) == (0.0, 0.0, 0.0)


def test_pairing_finds_a_small_difference_that_two_separate_intervals_hide() -> None:
    draw = np.random.default_rng(0)
    months, event = draw.exponential(20, 150), draw.random(150) < 0.8
    risk = -np.log(months) + draw.normal(size=150)
    better = survival(months, event, risk - 0.25 * np.log(months))
    score = paired_difference(better, survival(months, event, risk), SURVIVAL, ((), ()), "c_index", 0)
    assert score.low is not None
    assert score.low > 0
    assert score.value is not None
    assert score.value < 0.1


def test_a_class_that_one_model_never_saw_is_left_out_for_both() -> None:
    labels = ["a", "b", "c"] * 10
    wide = nominal(labels, np.linspace(0, 1, 30))
    wide["probabilities"] = [np.full(3, 1 / 3)] * 30
    narrow = nominal(labels, np.linspace(0, 1, 30))
    score = paired_difference(wide, narrow, NOMINAL, (("a", "b", "c"), ("a", "b")), "balanced_accuracy", 0)
    assert score.n == 20


def test_predictions_of_other_cases_are_not_compared() -> None:
    first, second, _ = two_models(10, 0)
    with pytest.raises(ConfigError, match="of different cases"):
        paired_difference(first, second.iloc[::-1], NOMINAL, (("a", "b"), ("a", "b")), "auc", 0)


def test_events_are_deaths_or_the_cases_of_the_rarest_class() -> None:
    assert events_behind(nominal(["a"] * 5 + ["b"] * 2 + ["c"] * 3, np.zeros(10)), NOMINAL) == 2
    assert events_behind(nominal(["a"] * 5, np.zeros(5)), NOMINAL) == 0
    stages = nominal(["a"] * 5 + ["b"] * 2 + ["c"] * 3, np.zeros(10)).assign(task="stage")
    assert events_behind(stages, ORDINAL) == 3
    assert events_behind(survival(np.arange(1.0, 6.0), np.array([1, 0, 1, 0, 1]), np.zeros(5)), SURVIVAL) == 3
