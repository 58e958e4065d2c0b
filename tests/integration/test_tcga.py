"""The real cohort from the command line: one round, every comparison, then the model on all cases."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import modaltune.cli
from modaltune.data.tcga import cohort_tasks, read_tcga
from modaltune.federation.task import HEADLINES, METRICS
from tests.integration.helpers import Ran, read_rounds, run_script

pytestmark = [pytest.mark.integration, pytest.mark.tcga]
COHORT = "BLCA"
METHODS = ("local", "federated", "pooled", "linear", "linear_local")
KINDS = {"diagnosis": "nominal", "stage": "ordinal", "survival": "survival"}
Key = tuple[str, str, str, str]


@pytest.fixture(scope="module")
def run(tcga_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    out = tmp_path_factory.mktemp("tcga") / "run"
    options = ("--data", tcga_dir, "--cohort", COHORT, "--rounds", 1, "--json", "--out", out)
    return out, run_script("modaltune-simulate", "tcga", *options)


@pytest.fixture(scope="module")
def rows(run: tuple[Path, Ran]) -> list[dict[str, Any]]:
    assert run[1].code == 0, run[1].err
    return list(json.loads(run[1].out)["metrics"])


@pytest.fixture(scope="module")
def places(tcga_dir: Path) -> tuple[str, ...]:
    return (*read_tcga(tcga_dir, COHORT).hospitals, "all")


def key(row: dict[str, Any]) -> Key:
    return row["method"], row["task"], row["metric"], row["hospital"]


def expected(methods: tuple[str, ...], places: tuple[str, ...]) -> set[Key]:
    pairs = [(task, metric) for task in cohort_tasks(COHORT) for metric in METRICS[KINDS[task]]]
    return {(method, task, metric, place) for method in methods for task, metric in pairs for place in places}


def assert_sound(row: dict[str, Any]) -> None:
    numbers = [row[name] for name in ("value", "low", "high") if row[name] is not None]
    assert all(math.isfinite(number) and 0 <= number <= 1 for number in numbers)
    assert isinstance(row["n"], int)
    assert row["n"] >= 0
    if row["value"] is None:
        assert not numbers
    elif row["low"] is not None and row["metric"] != "ece":  # resamples of few cases are less calibrated
        assert row["low"] <= row["value"] <= row["high"]


def headlines(methods: tuple[str, ...], places: tuple[str, ...], suffix: str) -> set[tuple[str, str, str, str]]:
    """Keys of the first metrics of each task under another name."""
    return {(m, t, f"{c}{suffix}", p) for m, t, c, p in expected(methods, places) if c in HEADLINES[KINDS[t]]}


def test_there_is_one_row_for_every_method_task_metric_and_hospital(
    rows: list[dict[str, Any]], places: tuple[str, ...]
) -> None:
    assert len(places) > 2
    keys = [key(row) for row in rows]
    probes = headlines(("local", "federated", "pooled"), places, "_probe")
    assert set(keys) == expected(METHODS, places) | probes | headlines(("federated",), places, "_cosine")
    assert len(keys) == len(set(keys))
    assert {row["seed"] for row in rows} == {0}


def test_every_row_is_a_number_or_null(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert_sound(row)
    headlines = [name for names in HEADLINES.values() for name in names]
    together = [row for row in rows if row["hospital"] == "all"]
    assert all(row["value"] is not None for row in together if row["metric"] in headlines)


def test_the_federated_model_is_compared_with_every_other_method(
    run: tuple[Path, Ran], places: tuple[str, ...]
) -> None:
    found = json.loads((run[0] / "comparisons.json").read_text())
    assert {row["a"] for row in found} == {"federated"}
    assert {row["b"] for row in found if row["hospital"] == "all"} == set(METHODS) - {"federated"}
    assert {row["hospital"] for row in found if row["b"] == "local"} <= set(places)
    assert all(row["low"] <= row["high"] and 0 < row["p"] <= 1 for row in found if row["low"] is not None)


def test_all_hospitals_together_hold_every_test_case(rows: list[dict[str, Any]]) -> None:
    cases = {key(row): row["n"] for row in rows}
    for method, task, metric, place in cases:
        if place == "all":
            parts = [n for (m, t, c, p), n in cases.items() if (m, t, c) == (method, task, metric) and p != "all"]
            assert cases[method, task, metric, "all"] == sum(parts)


def test_every_hospital_took_part(run: tuple[Path, Ran], places: tuple[str, ...]) -> None:
    rounds = read_rounds(run[0])
    assert [row["phase"] for row in rounds] == ["capability", "preprocess", "train", "evaluate"]
    assert all((row["status"], row["contributors"]) == ("OK", list(places[:-1])) for row in rounds)


def test_exclusions_are_counted_and_printed(run: tuple[Path, Ran], tcga_dir: Path) -> None:
    for reason, count in read_tcga(tcga_dir, COHORT).counts.items():
        assert f"{count} cases: {reason}" in run[1].err


def test_no_patient_is_named_in_anything_written(run: tuple[Path, Ran], tcga_dir: Path) -> None:
    names = [str(case).encode() for case in read_tcga(tcga_dir, COHORT).cases.index]
    for path in run[0].rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not [name for name in names if name in data], path.name


def test_the_model_scores_every_eligible_case(
    run: tuple[Path, Ran], tcga_dir: Path, places: tuple[str, ...], command: Callable[..., Ran]
) -> None:
    options = ("--model", run[0] / "model", "--data", tcga_dir, "--cohort", COHORT)
    ran = command(modaltune.cli.main, "evaluate", *options, "--json")
    assert ran.code == 0
    assert ran.out.count("\n") == 1
    assert [note for note in read_tcga(tcga_dir, COHORT).notes if note not in ran.err] == []
    rows = json.loads(ran.out)
    assert {key(row) for row in rows} == expected(("federated",), places) | headlines(("federated",), places, "_cosine")
    for row in rows:
        assert_sound(row)
    survival = next(row for row in rows if (row["task"], row["hospital"]) == ("survival", "all"))
    assert survival["n"] == read_tcga(tcga_dir, COHORT).cases["time_months"].notna().sum()


def test_stage_and_survival_are_scored_within_one_diagnosis(run: tuple[Path, Ran]) -> None:
    ran = run_script("modaltune-simulate", "within", run[0], "--json")
    assert ran.code == 0, ran.err
    rows = json.loads(ran.out)
    assert {row["task"] for row in rows} == {"stage", "survival"}
    assert {row["method"] for row in rows} <= {*METHODS}
    for row in rows:
        assert row["everyone"]["n"] == row["within"]["n"] > 0
        assert row["within"]["low"] <= row["within"]["value"] <= row["within"]["high"]


def test_hospitals_may_label_the_diagnosis_in_their_own_words(tcga_dir: Path, tmp_path: Path) -> None:
    methods = ("separate_heads", "per_task", "texts_alone")
    options = ("--cohort", "RCC", "--hospitals", "H4,H5", "--tasks", "own-words", "--rounds", 1)
    options += ("--methods", ",".join(methods))
    out = tmp_path / "run"
    ran = run_script("modaltune-simulate", "tcga", "--data", tcga_dir, *options, "--json", "--out", out)
    assert ran.code == 0, ran.err
    sites = json.loads((out / "summary.json").read_text())["sites"]
    assert {name: site["tasks"] for name, site in sites.items()} == {"H4": ["diagnosis"], "H5": ["morphology"]}
    rows = [row for row in json.loads(ran.out)["metrics"] if row["metric"] == "auc"]
    places = {(task, place) for task in ("diagnosis", "morphology") for place in ("H4", "H5", "all")}
    for method in ("federated", *methods):
        assert {(row["task"], row["hospital"]) for row in rows if row["method"] == method} == places
    assert "federating without H5, which alone labels morphology" in ran.err
    for name in ("H4", "H5"):
        study = json.loads((out / "variants" / f"tcga-rcc-without-{name}" / "study.json").read_text())
        assert study["roster"] == [{"H4": "H5", "H5": "H4"}[name]]
        assert [task["name"] for task in study["tasks"]] == [{"H4": "morphology", "H5": "diagnosis"}[name]]
