from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from modaltune.data.batch import CaseTensors
from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import Preprocessing, TaskSpace
from modaltune.evaluation.metrics import binary_auc
from modaltune.evaluation.predictions import (
    COLUMNS,
    embed_cases,
    events_behind,
    expected_risk,
    metric_rows,
    metric_values,
    outcome_groups,
    predict,
    prediction_table,
    probabilities_of,
    score_models,
    scored,
)
from modaltune.evaluation.survival import Censoring
from modaltune.federation.study import Study
from modaltune.models.learner import Learner


@pytest.fixture
def table(
    tiny_learner: Learner,
    tiny_study: Study,
    tiny_preprocessing: Preprocessing,
    tiny_cohort: Cohort,
    tiny_cases: list[CaseTensors],
) -> pd.DataFrame:
    return predict(tiny_learner, tiny_study, tiny_preprocessing, tiny_cohort, tiny_cases)


def test_without_temperature_the_scale_of_a_task_says_nothing(
    tiny_learner: Learner, tiny_study: Study, tiny_cases: list[CaseTensors]
) -> None:
    embeddings = embed_cases(tiny_learner, tiny_cases)
    learnt, plain = (probabilities_of(tiny_learner, embeddings, "stage", temperature=t) for t in (True, False))
    scale = float(tiny_learner.head.scale["stage"].detach().exp())
    assert scale > 1
    np.testing.assert_allclose(
        np.log(learnt[:, 1:] / learnt[:, :1]), scale * np.log(plain[:, 1:] / plain[:, :1]), rtol=1e-4, atol=1e-5
    )
    assert (learnt.argmax(axis=1) == plain.argmax(axis=1)).all()


def labelled_test_cases(cohort: Cohort, task: str) -> pd.DataFrame:
    test = cohort.cases[cohort.cases["split"] == "test"]
    return test.dropna(subset=["time_months", "event"] if task == "survival" else [task])


def test_there_is_a_row_for_every_labelled_test_case_of_every_task(table: pd.DataFrame, tiny_cohort: Cohort) -> None:
    assert list(table.columns) == list(COLUMNS)
    assert list(table.index) == list(range(len(table)))
    for task in tiny_cohort.tasks:
        rows, expected = table[table["task"] == task], labelled_test_cases(tiny_cohort, task)
        assert 0 < len(expected) <= 6
        assert set(rows["hospital"]) == {"H1"}
        if task == "survival":
            assert rows["time_months"].tolist() == expected["time_months"].tolist()
            assert rows["event"].tolist() == expected["event"].tolist()
            assert rows["label"].isna().all()
        else:
            assert rows["label"].tolist() == expected[task].tolist()
            assert rows["risk"].isna().all()


def test_a_site_that_labels_no_task_of_the_study_has_no_predictions(
    tiny_learner: Learner,
    tiny_study: Study,
    tiny_preprocessing: Preprocessing,
    tiny_cohort: Cohort,
    tiny_cases: list[CaseTensors],
) -> None:
    elsewhere = replace(tiny_cohort, tasks=("grade",))
    found = predict(tiny_learner, tiny_study, tiny_preprocessing, elsewhere, tiny_cases)
    assert (len(found), tuple(found.columns)) == (0, COLUMNS)


def test_a_prediction_table_names_no_patient(table: pd.DataFrame) -> None:
    assert "PATIENT" not in table.to_csv()
    assert "case_id" not in (*table.columns, table.index.name)


def test_predictions_belong_to_their_cases(
    table: pd.DataFrame, tiny_learner: Learner, tiny_cohort: Cohort, tiny_cases: list[CaseTensors]
) -> None:
    for task in tiny_cohort.tasks:
        ids = labelled_test_cases(tiny_cohort, task).index
        rows = table[table["task"] == task]
        for case_id, found in zip(ids, rows["probabilities"], strict=True):
            case = tiny_cases[tiny_cohort.cases.index.get_loc(case_id)]
            alone = probabilities_of(tiny_learner, embed_cases(tiny_learner, [case]), task)[0]
            np.testing.assert_allclose(found, alone, atol=1e-5)
            assert sum(found) == pytest.approx(1, abs=1e-5)


def test_predictions_are_made_for_the_tasks_of_the_site_and_the_split_asked_for(
    tiny_learner: Learner,
    tiny_study: Study,
    tiny_preprocessing: Preprocessing,
    tiny_cohort: Cohort,
    tiny_cases: list[CaseTensors],
) -> None:
    one_task = replace(tiny_cohort, tasks=("stage",))
    everything = predict(tiny_learner, tiny_study, tiny_preprocessing, one_task, tiny_cases, split=None)
    assert set(everything["task"]) == {"stage"}
    assert len(everything) == tiny_cohort.cases["stage"].notna().sum()


def test_embeddings_do_not_depend_on_how_cases_are_batched(
    tiny_learner: Learner, tiny_cases: list[CaseTensors]
) -> None:
    together = embed_cases(tiny_learner, tiny_cases * 3)  # more than one batch
    alone = embed_cases(tiny_learner, tiny_cases[:1])
    for task in together:
        assert together[task].shape == (90, 8)
        for row in (0, 30, 60):
            np.testing.assert_allclose(together[task][row], alone[task][0], atol=1e-5)


def test_without_cases_there_are_no_embeddings(tiny_learner: Learner) -> None:
    assert {task: tuple(rows.shape) for task, rows in embed_cases(tiny_learner, []).items()} == dict.fromkeys(
        ("diagnosis", "stage", "survival"), (0, 8)
    )


def test_the_risk_is_higher_when_death_is_expected_earlier() -> None:
    space = TaskSpace(candidates=("early", "late"), texts=("", ""), bin_edges=(10.0,), bin_times=(4.0, 40.0))
    risk = expected_risk(np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]), space)
    assert risk.tolist() == [-4, -22, -40]


def nominal_table(labels: list[str], probabilities: list[list[float]]) -> pd.DataFrame:
    return pd.DataFrame({"task": "diagnosis", "label": labels, "probabilities": [np.array(p) for p in probabilities]})


def test_a_nominal_label_that_is_no_candidate_is_left_out_of_n(tiny_study: Study) -> None:
    spec, candidates = tiny_study.task("diagnosis"), ("beta", "gamma")
    labels = ["beta", "alpha", "gamma", "gamma", "beta"]
    chances = [[0.9, 0.1], [0.0, 1.0], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]]
    full = nominal_table(labels, chances)
    known = full[full["label"] != "alpha"]
    score = score_models([full], spec, candidates, "auc", 0)
    assert score == score_models([known], spec, candidates, "auc", 0)
    assert (score.n, score.value) == (4, 1.0)


def test_a_nominal_prediction_is_the_most_probable_candidate(tiny_study: Study) -> None:
    spec, candidates = tiny_study.task("diagnosis"), ("alpha", "beta", "gamma")
    table = nominal_table(
        ["alpha", "alpha", "beta", "gamma"], [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4]]
    )
    score = score_models([table], spec, candidates, "balanced_accuracy", 0)
    assert score.value == pytest.approx((0.5 + 1 + 1) / 3)


def ordinal_table(labels: list[str], probabilities: list[list[float]]) -> pd.DataFrame:
    return nominal_table(labels, probabilities).assign(task="stage")


def test_an_ordinal_task_is_scored_as_its_positive_levels_against_the_others(tiny_study: Study) -> None:
    spec, candidates = tiny_study.task("stage"), ("I", "II", "III", "IV")
    labels = ["I", "II", "III", "IV", "II"]
    chances = [
        [0.6, 0.2, 0.1, 0.1],
        [0.1, 0.2, 0.3, 0.4],  # 0.7 positive: wrong
        [0.4, 0.05, 0.3, 0.25],  # 0.55 positive although I is the most probable level
        [0.1, 0.1, 0.1, 0.7],
        [0.3, 0.3, 0.2, 0.2],
    ]
    table = ordinal_table(labels, chances)
    positive = np.array([False, False, True, True, False])
    chance = np.array([p[2] + p[3] for p in chances])
    expected = binary_auc(positive, chance, np.ones((1, 5)))[0]
    assert metric_values(table, spec, candidates, "auc", np.ones((1, 5)))[0] == pytest.approx(expected)
    accuracy = metric_values(table, spec, candidates, "balanced_accuracy", np.ones((1, 5)))[0]
    assert accuracy == pytest.approx((1 + 2 / 3) / 2)


def test_an_ordinal_case_counts_even_when_its_level_is_no_candidate(tiny_study: Study) -> None:
    spec = tiny_study.task("stage")
    table = ordinal_table(["I", "III", "IV"], [[0.8, 0.1, 0.1], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7]])
    score = score_models([table], spec, ("I", "II", "III"), "auc", 0)
    assert (score.n, score.value) == (3, 1.0)


def test_an_ordinal_label_outside_the_vocabulary_is_not_scored(tiny_study: Study) -> None:
    spec, candidates = tiny_study.task("stage"), ("I", "II", "III")
    table = ordinal_table(["I", "III", "V"], [[0.8, 0.1, 0.1], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7]])
    assert len(scored(table, spec, candidates)) == 2
    assert outcome_groups(table, spec, candidates).tolist() == [1, 1]
    assert score_models([table], spec, candidates, "auc", 0).n == 2


def test_a_survival_task_is_scored_by_concordance_of_risk(tiny_study: Study) -> None:
    spec = tiny_study.task("survival")
    frame = pd.DataFrame({"time_months": [1.0, 2.0, 3.0, 4.0], "event": [1.0, 1.0, 0.0, 1.0]})
    space = TaskSpace(candidates=("early", "late"), texts=("", ""), bin_edges=(2.5,), bin_times=(1.0, 4.0))
    chances = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]])
    table = prediction_table(frame, "H1", spec, space, chances)
    assert score_models([table], spec, space.candidates, "c_index", 0).value == 1
    upside_down = prediction_table(frame, "H1", spec, space, chances[:, ::-1])
    assert score_models([upside_down], spec, space.candidates, "c_index", 0).value == 0


def test_survival_metrics_that_weigh_for_censoring_need_training_follow_up(tiny_study: Study) -> None:
    spec = tiny_study.task("survival")
    draw = np.random.default_rng(0)
    months, event = draw.exponential(30, 80), np.ones(80)
    early = np.clip(0.9 - months / 100, 0.05, 0.9)
    table = pd.DataFrame({"task": "survival", "label": None, "time_months": months, "event": event, "risk": early})
    table["probabilities"] = [np.array([p, 1 - p]) for p in early]
    censoring = Censoring.of(months, event > 0)
    for metric in ("c_index_ipcw", "auc_12m", "brier_12m"):
        known = score_models([table], spec, spec.bins, metric, 0, edges=(20.0,), censoring=censoring)
        assert known.value is not None
        assert 0 < known.value <= 1
        assert score_models([table], spec, spec.bins, metric, 0, edges=(20.0,)).value is None
    beyond = score_models([table], spec, spec.bins, "brier_36m", 0, edges=(20.0,), censoring=censoring)
    assert (beyond.value, beyond.n) == (None, 80)
    without = table.assign(probabilities=None)  # as of a linear model
    assert score_models([without], spec, spec.bins, "brier_12m", 0, edges=(20.0,), censoring=censoring).value is None


def test_cases_without_a_label_column_have_no_predictions(tiny_study: Study) -> None:
    frame = pd.DataFrame({"stage": ["I", "II"]})
    for task in ("diagnosis", "survival"):
        spec = tiny_study.task(task)
        space = TaskSpace(candidates=("a", "b"), texts=("", ""), bin_edges=(1.0,), bin_times=(0.5, 2.0))
        assert len(prediction_table(frame, "H1", spec, space, np.full((2, 2), 0.5))) == 0


def test_metric_rows_have_the_agreed_fields_and_are_json(
    table: pd.DataFrame, tiny_study: Study, tiny_preprocessing: Preprocessing, tiny_cohort: Cohort
) -> None:
    tables = {task.name: [table] for task in tiny_study.tasks}
    rows = metric_rows(tables, tiny_study, tiny_preprocessing, method="federated", hospital="all", seed=3)
    assert [(row["task"], row["metric"]) for row in rows] == [
        ("diagnosis", "auc"),
        ("diagnosis", "balanced_accuracy"),
        ("stage", "auc"),
        ("stage", "balanced_accuracy"),
        ("survival", "c_index"),
        *((task, metric) for task in ("diagnosis", "stage") for metric in ("macro_f1", "brier", "ece")),
        ("survival", "c_index_ipcw"),
        *(("survival", f"{metric}_{months}m") for metric in ("auc", "brier") for months in (12, 36, 60)),
    ]
    for row in rows:
        assert set(row) == {"method", "task", "metric", "hospital", "value", "low", "high", "n", "seed"}
        assert (row["method"], row["hospital"], row["seed"]) == ("federated", "all", 3)
        assert row["n"] == len(labelled_test_cases(tiny_cohort, row["task"]))
        assert row["value"] is None or row["low"] <= row["high"]
    json.dumps(rows, allow_nan=False)


def test_a_task_without_a_model_has_undefined_rows(tiny_study: Study, tiny_preprocessing: Preprocessing) -> None:
    rows = metric_rows({}, tiny_study, tiny_preprocessing, method="local", hospital="H1", seed=0)
    assert len(rows) == 18
    assert all((row["value"], row["low"], row["high"], row["n"]) == (None, None, None, 0) for row in rows)


def test_a_model_that_could_not_be_fitted_is_left_out_of_the_mean(tiny_study: Study) -> None:
    spec = tiny_study.task("survival")
    known = pd.DataFrame(
        {"task": "survival", "label": None, "time_months": [1.0, 2.0, 3.0], "event": [1.0, 1.0, 0.0], "risk": [3, 1, 2]}
    )
    absent = pd.DataFrame(columns=list(COLUMNS))
    with_absent = score_models([known, absent], spec, spec.bins, "c_index", 0)
    assert with_absent == score_models([known], spec, spec.bins, "c_index", 0)
    assert with_absent.n == 3
    assert score_models([absent], spec, spec.bins, "c_index", 0).value is None


def test_several_models_are_scored_on_the_same_cases_and_averaged(tiny_study: Study) -> None:
    spec, candidates = tiny_study.task("diagnosis"), ("alpha", "beta")
    labels, chances = ["alpha", "beta", "beta", "alpha"], np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]])
    right, wrong = nominal_table(labels, chances.tolist()), nominal_table(labels, chances[:, ::-1].tolist())
    score = score_models([right, wrong], spec, candidates, "auc", 0)
    assert (score.value, score.n) == (0.5, 4)
    assert score.low == score.high == pytest.approx(0.5)  # what one model wins in a resample the other loses


def test_events_are_deaths_or_the_cases_of_the_rarest_class(tiny_study: Study) -> None:
    diagnosis, stage, survival = (tiny_study.task(name) for name in ("diagnosis", "stage", "survival"))
    labels = pd.DataFrame({"task": "diagnosis", "label": ["alpha"] * 5 + ["beta"] * 2 + ["gamma"] * 3 + ["unknown"]})
    classes = ("alpha", "beta", "gamma", "delta")
    assert outcome_groups(labels, diagnosis, classes).tolist() == [5, 2, 3, 0]
    assert events_behind(outcome_groups(labels, diagnosis, classes), diagnosis) == 2
    assert events_behind(outcome_groups(labels[:5], diagnosis, classes), diagnosis) == 0
    stages = pd.DataFrame({"task": "stage", "label": ["I"] * 5 + ["II"] * 2 + ["IV"] * 3})
    assert outcome_groups(stages, stage, stage.labels).tolist() == [7, 3]
    assert events_behind(outcome_groups(stages, stage, stage.labels), stage) == 3
    deaths = pd.DataFrame({"task": "survival", "event": [1.0, 0, 1, 0, 1]})
    assert outcome_groups(deaths, survival, survival.bins).tolist() == [2, 3]
    assert events_behind(outcome_groups(deaths, survival, survival.bins), survival) == 3


def test_a_score_that_is_not_a_number_is_no_metric(tiny_study: Study) -> None:
    task = next(task for task in tiny_study.tasks if task.kind == "ordinal")
    known = pd.DataFrame(
        {
            "task": task.name,
            "label": [task.values[0], task.values[-1]],
            "probabilities": [np.eye(len(task.values))[0], np.full(len(task.values), np.nan)],
        }
    )
    for metric in ("auc", "balanced_accuracy", "ece"):
        assert np.isnan(metric_values(known, task, task.values, metric, np.ones((3, 2)))).all()
