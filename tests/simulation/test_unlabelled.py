from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import ConfigError
from modaltune.federation.study import Study
from modaltune.storage import write_json, write_text
from simulation.unlabelled import unlabelled_rows, unlabelled_table

LABELS = ("alpha", "beta", "gamma")
RIGHT_AT_H2 = {"federated": 0.9, "separate_heads": 0.6, "per_task": 0.5}


def predictions(method: str, seed: int, right: float) -> pd.DataFrame:
    """Thirty test cases each of H1 and H2; at H2 the share ``right`` of them is told apart."""
    rows = []
    for hospital, share in (("H1", 1.0), ("H2", right)):
        for number in range(30):
            label = LABELS[number % 3]
            guess = label if number < 30 * share else LABELS[(number + 1) % 3]
            chance = np.array([0.8 if guess == name else 0.1 for name in LABELS])
            rows.append({"hospital": hospital, "task": "diagnosis", "label": label, "probabilities": chance})
            level = np.roll([0.7, 0.1, 0.1, 0.1], number % 4)
            stage = ("I", "II", "III", "IV")[number % 4]
            rows.append({"hospital": hospital, "task": "stage", "label": stage, "probabilities": level})
    return pd.DataFrame(rows).assign(method=method, seed=seed, model="", time_months=np.nan, event=np.nan, risk=np.nan)


@pytest.fixture
def a_run(tmp_path: Path, tiny_study: Study, tiny_preprocessing: Preprocessing) -> Path:
    """Two seeds; H1 labels the diagnosis, H2 never does, and one federation a task serves H2 worse."""
    tables = [predictions(method, seed, right) for seed in (3, 4) for method, right in RIGHT_AT_H2.items()]
    for folder in (tmp_path, tmp_path / "seeds" / "4"):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "study.json", tiny_study.to_json())
        write_text(folder / "preprocessing.json", tiny_preprocessing.to_json())
    pd.concat(tables, ignore_index=True).to_parquet(tmp_path / "predictions.parquet")
    sites = {"H1": {"tasks": ["diagnosis"]}, "H2": {"tasks": ["stage"]}}
    write_json(tmp_path / "summary.json", {"seeds": [3, 4], "sites": sites})
    return tmp_path


def test_hospitals_that_never_labelled_a_task_are_scored_apart(a_run: Path) -> None:
    rows = {(row.where, row.method): row for row in unlabelled_rows([a_run]) if row.task == "diagnosis"}
    assert {where for where, _ in rows} == {"all", "labelled", "never labelled"}
    assert rows["labelled", "federated"].value == 1.0
    assert rows["never labelled", "federated"].value > rows["never labelled", "per_task"].value
    assert rows["never labelled", "federated"].seeds == 2
    low, high = rows["never labelled", "federated"].low, rows["never labelled", "federated"].high
    assert low is not None
    assert high is not None
    assert low < rows["never labelled", "federated"].value < high


def test_the_difference_to_one_federation_a_task_is_paired_by_seed(a_run: Path) -> None:
    for row in unlabelled_rows([a_run]):
        other = next(
            r for r in unlabelled_rows([a_run]) if (r.task, r.where, r.method) == (row.task, row.where, "per_task")
        )
        assert row.difference == pytest.approx(row.value - other.value)
        assert row.error == pytest.approx(0.0)  # both seeds are the same here


def test_the_mean_of_the_tasks_weighs_them_alike(a_run: Path) -> None:
    rows = [row for row in unlabelled_rows([a_run]) if (row.where, row.method) == ("all", "federated")]
    (mean,) = (row for row in rows if row.task == "mean of tasks")
    assert len(rows) == 3
    for what in ("value", "difference"):
        tasks = [getattr(row, what) for row in rows if row is not mean]
        assert getattr(mean, what) == pytest.approx(np.mean(tasks))


def test_the_table_names_every_group_of_hospitals(a_run: Path) -> None:
    console = Console(record=True, width=140)
    console.print(unlabelled_table(unlabelled_rows([a_run])))
    text = console.export_text()
    assert all(word in text for word in ("never labelled", "labelled", "all", *RIGHT_AT_H2))


def test_a_seed_counts_once(a_run: Path) -> None:
    with pytest.raises(ConfigError, match="one is there twice"):
        unlabelled_rows([a_run, a_run])


def test_a_run_without_the_ablation_is_refused_in_one_line(a_run: Path) -> None:
    table = pd.read_parquet(a_run / "predictions.parquet")
    table[table["method"] == "federated"].to_parquet(a_run / "predictions.parquet")
    with pytest.raises(ConfigError, match="run modaltune-simulate with --tasks"):
        unlabelled_rows([a_run])
    with pytest.raises(ConfigError, match="expected a run of modaltune-simulate"):
        unlabelled_rows([a_run / "seeds"])


def test_only_local_models_of_hospitals_that_label_a_task_count_for_it(a_run: Path) -> None:
    own = [
        predictions("local", seed, right).assign(model=name)
        for seed in (3, 4)
        for name, right in (("H1", 0.7), ("H2", 0.2))
    ]
    found = pd.concat([pd.read_parquet(a_run / "predictions.parquet"), *own], ignore_index=True)
    found.to_parquet(a_run / "predictions.parquet")
    values = {(row.task, row.method): row.value for row in unlabelled_rows([a_run]) if row.where == "never labelled"}
    assert values["diagnosis", "federated"] > values["diagnosis", "local"] > values["diagnosis", "separate_heads"]


@pytest.fixture
def another_rule(a_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared model alone, trained otherwise, with the same seeds: right about everything."""
    folder = tmp_path_factory.mktemp("rule")
    shutil.copytree(a_run, folder, dirs_exist_ok=True)
    pd.concat([predictions("federated", seed, 1.0) for seed in (3, 4)]).to_parquet(folder / "predictions.parquet")
    return folder


def test_another_training_rule_stands_beside_the_runs_of_its_seeds(a_run: Path, another_rule: Path) -> None:
    rows = unlabelled_rows([a_run], {"hints": [another_rule]})
    found = {(row.task, row.where): row for row in rows if row.method == "hints"}
    assert found["diagnosis", "never labelled"].value == 1.0
    assert {row.seeds for row in found.values()} == {2}
    tasks = [found[task, "never labelled"].difference for task in ("diagnosis", "stage")]
    assert found["mean of tasks", "never labelled"].difference == pytest.approx(np.mean(tasks))
    assert [row for row in rows if row.method != "hints"] == unlabelled_rows([a_run])


def test_the_others_can_be_held_against_another_method_or_rule(a_run: Path, another_rule: Path) -> None:
    for against in ("separate_heads", "hints"):
        rows = unlabelled_rows([a_run], {"hints": [another_rule]}, against)
        found = {row.method: row for row in rows if (row.task, row.where) == ("mean of tasks", "all")}
        assert sorted(found) == sorted([*RIGHT_AT_H2, "hints"])
        assert {found[name].difference for name in found} == {
            found[name].value - found[against].value for name in found
        }
    with pytest.raises(ConfigError, match="no predictions of per_task_same_cost"):
        unlabelled_rows([a_run], against="per_task_same_cost")


def test_a_rule_is_held_to_the_seeds_and_cases_of_the_runs(a_run: Path, another_rule: Path) -> None:
    with pytest.raises(ConfigError, match="--rule federated is the name of a method"):
        unlabelled_rows([a_run], {"federated": [another_rule]})
    table = pd.read_parquet(another_rule / "predictions.parquet")
    table.iloc[6:].to_parquet(another_rule / "predictions.parquet")
    with pytest.raises(ConfigError, match="hints, seed 3: 57 test cases of diagnosis, the other runs have 60"):
        unlabelled_rows([a_run], {"hints": [another_rule]})
    write_json(another_rule / "summary.json", {"seeds": [3], "sites": {}})
    with pytest.raises(ConfigError, match=r"has seeds \[3\], the runs have \[3, 4\]"):
        unlabelled_rows([a_run], {"hints": [another_rule]})
