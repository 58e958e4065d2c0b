from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp
from sklearn.metrics import roc_auc_score

from modaltune.data.preprocessing import Preprocessing
from modaltune.data.site import HASH_SPLIT
from modaltune.evaluation.metrics import RESAMPLES
from modaltune.evaluation.paired import (
    Differences,
    Pairing,
    comparison_rows,
    headline_differences,
    paired_differences,
)
from modaltune.federation.study import Study

PAIRING = Pairing(a="federated", b="local", task="stage", metric="auc", hospital="all")


def stage_table(cases: int, seed: int, signal: float, noise: int = 0) -> pd.DataFrame:
    """Half the cases are stage IV; ``noise`` draws other scores for the same patients."""
    draw = np.random.default_rng([seed, noise])
    high = np.arange(cases) % 2 == 1
    chance = 1 / (1 + np.exp(-(draw.normal(size=cases) + signal * high)))
    return pd.DataFrame(
        {
            "hospital": "H1",
            "row": np.arange(cases),
            "task": "stage",
            "label": np.where(high, "IV", "I"),
            "probabilities": [np.array([1 - c, 0, 0, c]) for c in chance],
            "time_months": np.nan,
            "event": np.nan,
        }
    )


def compared(study: Study, preprocessing: Preprocessing, a: pd.DataFrame, b: pd.DataFrame, seed: int = 0) -> dict:
    spec = study.task("stage")
    space = preprocessing.tasks["stage"].model_copy(update={"candidates": ("I", "II", "III", "IV")})
    return paired_differences([a], [b], spec, (space, space), seed)


def row(values: dict[int, np.ndarray]) -> dict:
    found = [(seed, PAIRING, Differences(values=rows, cases=50)) for seed, rows in values.items()]
    (only,) = comparison_rows(found)
    return only


def test_the_difference_is_that_of_the_metrics_on_the_same_patients(
    tiny_study: Study, tiny_preprocessing: Preprocessing
) -> None:
    a, b = stage_table(80, 0, 2.0), stage_table(80, 0, 0.5, noise=1)
    found = compared(tiny_study, tiny_preprocessing, a, b)
    areas = [roc_auc_score(t["label"] == "IV", [p[3] for p in t["probabilities"]]) for t in (a, b)]
    assert found["auc"].values[0] == pytest.approx(areas[0] - areas[1])
    assert found["auc"].values.shape == (1 + RESAMPLES,)
    assert found["auc"].cases == 80
    assert set(found) == {"auc", "balanced_accuracy", "macro_f1", "brier", "ece"}


def test_a_method_is_never_different_from_itself(tiny_study: Study, tiny_preprocessing: Preprocessing) -> None:
    table = stage_table(40, 0, 1.0)
    found = compared(tiny_study, tiny_preprocessing, table, table)["auc"]
    only = row({0: found.values})
    assert (only["difference"], only["low"], only["high"], only["p"]) == (0, 0, 0, 1)


def test_pairing_is_tighter_than_two_intervals_when_methods_agree_on_patients(
    tiny_study: Study, tiny_preprocessing: Preprocessing
) -> None:
    a = stage_table(80, 0, 1.0)
    b = a.assign(probabilities=[p + 1e-3 * i * np.array([-1, 0, 0, 1]) for i, p in enumerate(a["probabilities"])])
    same = np.std(compared(tiny_study, tiny_preprocessing, a, b)["auc"].values)
    other = np.std(compared(tiny_study, tiny_preprocessing, a, stage_table(80, 0, 1.0, noise=1))["auc"].values)
    assert same < 0.5 * other


def test_methods_scored_on_other_patients_are_not_compared(
    tiny_study: Study, tiny_preprocessing: Preprocessing
) -> None:
    table = stage_table(40, 0, 1.0)
    upside_down = table.assign(label=table["label"].to_numpy()[::-1])
    assert compared(tiny_study, tiny_preprocessing, table, upside_down) == {}
    assert compared(tiny_study, tiny_preprocessing, table, table[:0]) == {}


def test_a_method_that_cannot_read_all_patients_is_compared_on_those_that_both_score(
    tiny_study: Study, tiny_preprocessing: Preprocessing
) -> None:
    a, b = stage_table(40, 0, 1.0), stage_table(40, 0, 1.0, noise=1)
    found = compared(tiny_study, tiny_preprocessing, a, b[10:])
    assert found["auc"].cases == 30
    same = compared(tiny_study, tiny_preprocessing, a[10:], b[10:])
    assert np.array_equal(found["auc"].values, same["auc"].values)


def test_equal_methods_look_different_about_as_often_as_p_says(
    tiny_study: Study, tiny_preprocessing: Preprocessing
) -> None:
    small = 0
    for seed in range(25):
        a, b = stage_table(60, seed, 1.0), stage_table(60, seed, 1.0, noise=1)
        only = row({0: compared(tiny_study, tiny_preprocessing, a, b, seed)["auc"].values})
        small += only["p"] < 0.05
        assert (only["low"] <= 0 <= only["high"]) == (only["p"] >= 0.05) or abs(only["p"] - 0.05) < 0.01
    assert small <= 5  # 1.25 expected; 6 or more happen once in 800 times


def test_a_clear_gain_is_found_and_p_is_never_zero(tiny_study: Study, tiny_preprocessing: Preprocessing) -> None:
    a, b = stage_table(200, 0, 3.0), stage_table(200, 0, 0.2, noise=1)
    only = row({0: compared(tiny_study, tiny_preprocessing, a, b)["auc"].values})
    assert only["low"] > 0.1
    assert only["p"] == pytest.approx(2 / (RESAMPLES + 1))


def test_more_seeds_narrow_the_spread_between_runs_and_are_not_more_patients() -> None:
    patients = np.concatenate([[0.0], np.random.default_rng(0).normal(0, 0.02, RESAMPLES)])
    runs = np.random.default_rng(1).normal(0.05, 0.001, 30)
    one = row({0: patients + 0.05})
    many = row({seed: patients + shift for seed, shift in enumerate(runs)})
    share = (HASH_SPLIT["test"] / HASH_SPLIT["train"]) ** 0.5
    assert many["high"] - many["low"] == pytest.approx(share * (one["high"] - one["low"]), rel=0.1)
    apart = {seed: np.zeros(RESAMPLES + 1) + shift for seed, shift in enumerate((0.0, 0.2))}
    wide = row(apart)
    narrow = row({8 * i + s: v for s, v in apart.items() for i in range(8)})
    assert narrow["high"] - narrow["low"] < 0.6 * (wide["high"] - wide["low"])
    assert wide["difference"] == pytest.approx(0.1)


@pytest.mark.parametrize("unstable", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_over_several_splits_of_the_same_patients_chance_is_seldom_taken_for_a_difference(
    seeds: int, unstable: float
) -> None:
    """Also where a training ends elsewhere with every seed, by so many standard errors of a test."""
    draw, found = np.random.default_rng(seeds), 0
    for _ in range(200):
        patients, runs = draw.normal(size=200), {}  # of each the difference of two equal methods
        for seed in range(seeds):
            test = draw.permutation(patients)[:50]
            weights = np.vstack([np.ones(50), draw.multinomial(50, [1 / 50] * 50, size=200)]) / 50
            runs[seed] = weights @ test + unstable * draw.normal() / 50**0.5
        found += row(runs)["p"] < 0.05
    assert found <= 0.08 * 200


@pytest.mark.parametrize("differences", [(0.10, 0.12), (0.10, 0.14), (0.05, 0.07, 0.08), (0.1, 0.0, 0.2, 0.1, 0.05)])
def test_without_patients_between_them_seeds_are_compared_as_student_does(differences: tuple[float, ...]) -> None:
    found = row({seed: np.full(RESAMPLES + 1, value) for seed, value in enumerate(differences)})
    expected = ttest_1samp(differences, 0.0)
    low, high = expected.confidence_interval(0.95)
    assert found["high"] - found["low"] == pytest.approx(high - low, rel=0.3)
    assert found["p"] == pytest.approx(expected.pvalue, abs=0.03)


def test_seeds_in_which_a_difference_is_undefined_are_left_out_and_not_listed() -> None:
    undefined = np.full(RESAMPLES + 1, np.nan)
    only = row({0: undefined, 1: np.full(RESAMPLES + 1, 0.1)})
    assert (only["difference"], only["seeds"]) == (pytest.approx(0.1), [1])
    nothing = row({0: undefined})
    assert nothing == vars(PAIRING) | {"difference": None, "low": None, "high": None, "p": None, "n": 50, "seeds": [0]}
    json.dumps([only, nothing], allow_nan=False)


def test_a_class_that_one_model_never_saw_is_left_out_for_both(
    tiny_study: Study, tiny_preprocessing: Preprocessing
) -> None:
    labels = ["alpha", "beta", "gamma"] * 10
    about = {"hospital": "H1", "row": np.arange(30), "task": "diagnosis", "label": labels}
    outcome = {"time_months": np.nan, "event": np.nan, "risk": np.nan}
    wide = pd.DataFrame(about | {"probabilities": [np.full(3, 1 / 3)] * 30} | outcome)
    narrow = wide.assign(probabilities=[np.array([0.2, 0.8])] * 30)
    space = tiny_preprocessing.tasks["diagnosis"]
    spaces = [space.model_copy(update={"candidates": ("alpha", "beta", "gamma")[:count]}) for count in (3, 2)]
    found = headline_differences(wide, narrow, tiny_study.task("diagnosis"), (spaces[0], spaces[1]), 0)
    assert set(found) == {"auc", "balanced_accuracy"}
    assert found["balanced_accuracy"].n == 20
    assert found["balanced_accuracy"].value == 0


def test_the_difference_changes_its_sign_with_the_order_and_is_nothing_between_other_patients(
    tiny_study: Study, tiny_preprocessing: Preprocessing
) -> None:
    a, b = stage_table(60, 0, 1.5), stage_table(60, 0, 0.5, noise=1)
    spec = tiny_study.task("stage")
    space = tiny_preprocessing.tasks["stage"].model_copy(update={"candidates": ("I", "II", "III", "IV")})
    there = headline_differences(a, b, spec, (space, space), 0)["auc"]
    back = headline_differences(b, a, spec, (space, space), 0)["auc"]
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    other = headline_differences(a, b.assign(hospital="H2"), spec, (space, space), 0)["auc"]
    assert (other.value, other.low, other.high, other.n) == (None, None, None, 0)
