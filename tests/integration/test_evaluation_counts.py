"""Metrics of everybody's test cases, from the counts of hospitals behind the real client app."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from modaltune.evaluation.predictions import metric_rows as rows_of
from modaltune.federation.settings import EvaluationSpec
from modaltune.federation.study import Study
from modaltune.federation.wire import unseal
from server.finish import finish
from server.report_counts import binned_curves, sides_of
from server.report_data import RunData, Task, load_run
from server.rounds import Federation, Result
from simulation.compare import Hospitals, Scene, everybodys_test_cases, predict_site
from tests.client.conversation import sealed
from tests.integration.grids import LocalGrid, Passed, RecordingGrid
from tests.integration.helpers import SITES, read_rounds

SAME = 1e-9
EXACT = {"balanced_accuracy", "macro_f1"}
ROUNDED = {"brier", "ece"}
Rows = dict[tuple[str, str], dict[str, Any]]


def task_of(run: RunData, name: str) -> Task:
    return next(task for task in run.tasks if task.name == name)


@pytest.fixture(scope="module")
def counting(study: Study) -> Study:
    """One round; nothing is held back, so that everything can be compared."""
    changes = {
        "roster": SITES,
        "training": study.training.model_copy(update={"rounds": 1}),
        "privacy": study.privacy.model_copy(update={"min_cell": 1}),
        "evaluation": EvaluationSpec(counts=True, bins=64),
        "deadline_seconds": 20.0,
    }
    return study.model_copy(update=changes)


@pytest.fixture(scope="module")
def finished(
    counting: Study, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Result, Path]:
    out = tmp_path_factory.mktemp("counted")
    result = Federation(LocalGrid(folders), counting, out).run()
    finish(result, counting, out)
    return result, out


@pytest.fixture(scope="module")
def together(finished: tuple[Result, Path]) -> Rows:
    rows = json.loads((finished[1] / "metrics.json").read_text(encoding="utf-8"))
    return {(row["task"], row["metric"]): row for row in rows if row["hospital"] == "all"}


@pytest.fixture(scope="module")
def pooled(finished: tuple[Result, Path], counting: Study, folders: dict[str, Path]) -> Rows:
    """The same metrics with all test cases in one table, as a simulation computes them."""
    result = finished[0]
    preprocessing = result.preprocessing
    scene = Scene(sites=folders, truth=folders, study=counting.to_json(), preprocessing=preprocessing.to_json())
    data = Hospitals(scene)
    table = everybodys_test_cases(data, lambda site: predict_site(data, result.learner, site))
    by_task = {task: [table] for task in set(table["task"])}
    rows = rows_of(by_task, counting, preprocessing, method="federated", hospital="all", seed=counting.seed)
    return {(row["task"], row["metric"]): row for row in rows}


def test_the_coordinator_learns_the_metrics_of_all_test_cases_together(together: Rows, pooled: Rows) -> None:
    assert together
    for (task, metric), row in together.items():
        assert (row["method"], row["hospital"]) == ("federated", "all")
        if metric in EXACT:
            assert row["value"] == pytest.approx(pooled[task, metric]["value"], abs=SAME)
            assert (row["n"], row["error"]) == (pooled[task, metric]["n"], 0)
        if metric in ROUNDED:
            assert 0 < row["error"] < 0.05
            assert abs(row["value"] - pooled[task, metric]["value"]) <= row["error"] + SAME
        if metric == "auc_binned":
            assert abs(row["value"] - pooled[task, "auc"]["value"]) <= row["error"] + SAME
        if metric not in ("ece",):
            assert row["low"] <= row["value"] <= row["high"]
    assert {metric for _, metric in together} == EXACT | ROUNDED | {"auc_binned", "c_index_stratified"}


def test_each_hospital_still_reports_its_own(finished: tuple[Result, Path], counting: Study) -> None:
    rows = json.loads((finished[1] / "metrics.json").read_text(encoding="utf-8"))
    assert {row["hospital"] for row in rows} == {*SITES, "all"}
    (row,) = (row for row in read_rounds(finished[1]) if row["phase"] == "evaluate")
    assert set(row["counted"]) == {task.name for task in counting.tasks}
    assert row["counted"]["diagnosis"] == list(SITES)
    report = (finished[1] / "report.html").read_text(encoding="utf-8")
    assert "AUC, from counts" in report
    assert "<code>modaltune-server run RUN_FOLDER/study.json</code>" in report
    assert "torch " in report
    assert "come from counts that hospitals sent: diagnosis of H1, H2 and H5;" in report


def test_the_run_folder_keeps_sums_over_hospitals_and_the_report_draws_them(
    finished: tuple[Result, Path], counting: Study, together: Rows
) -> None:
    result, out = finished
    kept, counts = json.loads((out / "counts.json").read_text(encoding="utf-8")), result.evaluation.counts
    told = [task.name for task in counting.tasks if task.kind != "survival"]
    assert [name for name in told if name in kept] == list(kept) != []
    for name, found in kept.items():
        assert set(found) == {"hospitals", "counts"}
        assert len(found["hospitals"]) > 1
        assert np.sum(found["counts"][0]) == together[name, "brier"]["n"]
        assert found["counts"] == np.sum([counts[site][f"{name}.scores"] for site in SITES], axis=0).tolist()
    run = load_run(out)
    for name in kept:
        areas = [np.trapezoid(true, false) for false, true in binned_curves(sides_of(run, task_of(run, name)))]
        assert np.mean(areas) == pytest.approx(together[name, "auc_binned"]["value"])
    report = (out / "report.html").read_text(encoding="utf-8")
    assert f"± {np.ceil(1000 * together['diagnosis', 'brier']['error']) / 1000:.3f}" in report
    assert "ROC curves, by method (federated) and task: diagnosis" in report
    assert "Drawn from the steps of probability" in report
    assert report.count("They never leave a hospital") == 2  # survival by risk, embedding map


@pytest.mark.parametrize(("least", "sites"), [(1, 1), (3, 2)])
def test_counts_of_too_few_hospitals_are_not_kept(
    finished: tuple[Result, Path], counting: Study, least: int, sites: int
) -> None:
    """Their sum would be the counts of one, or of fewer than the study wants in any sum."""
    found, privacy = finished[0].evaluation, counting.privacy.model_copy(update={"min_contributors": least})
    counts = {site: found.counts[site] for site in SITES[:sites]}
    study = counting.model_copy(update={"privacy": privacy})
    assert replace(found, counts=counts, study=study).summed == {}


def test_a_site_whose_counts_are_none_of_cases_is_refused(
    counting: Study, folders: dict[str, Path], tmp_path: Path
) -> None:
    def tamper(site: str, reply: Message) -> list[Message]:
        if site == "H2" and "counts" in reply.content:
            arrays: dict[str, Any] = dict(unseal(reply.content.array_records["counts"], site))
            arrays["diagnosis.confusion"] = np.full_like(arrays["diagnosis.confusion"], 10.0**6)
            reply.content["counts"] = sealed(arrays)
        return [reply]

    result = Federation(LocalGrid(folders, tamper), counting, tmp_path).run()
    (row,) = (row for row in read_rounds(tmp_path) if row["phase"] == "evaluate")
    assert "counts of diagnosis tell of" in row["refused"]["H2"]
    assert set(result.evaluation.metrics) == {"H1", "H5"}
    assert result.status == "DEGRADED"


def test_without_the_setting_nothing_of_it_is_sent(counting: Study, folders: dict[str, Path], tmp_path: Path) -> None:
    silent = counting.model_copy(update={"evaluation": EvaluationSpec()})
    passed = list[Passed]()
    result = Federation(RecordingGrid(LocalGrid(folders), passed), silent, tmp_path).run()
    answers = [message.content for message in passed if not message.down and message.kind == "evaluate"]
    assert [set(content) for content in answers] == [{"metrics"}] * len(SITES)
    assert result.evaluation.together == []
