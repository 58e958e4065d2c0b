from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from markupsafe import escape

from modaltune.errors import ConfigError
from modaltune.storage import write_json
from server.report_context import method_meaning
from simulation.experiment import ABLATIONS, COMPARISONS, ON_REQUEST
from simulation.studies.cell import CELL_FILE, read_cell, write_cell
from simulation.studies.cells import Cell, expand, select
from simulation.studies.command import emit_rows
from simulation.studies.page import study_command, write_page
from simulation.studies.results import record, result_table, shown, tidy, write_table
from simulation.studies.runner import Failure, cell_folder, state_of
from simulation.studies.spec import ShowSpec, StudyFile
from simulation.studies.trackers import open_trackers

STUDY = StudyFile.model_validate(
    {
        "name": "grid",
        "note": "A <b>note</b>.",
        "seeds": [0, 1],
        "methods": ["local"],
        "data": {"kind": "synthetic"},
        "axes": [{"name": "data.sites", "values": [2, 5]}],
    }
)


def finish(out: Path, cell: Cell, value: float) -> None:
    """The files of a run folder that the results are made of."""
    folder = cell_folder(out, cell)
    folder.mkdir(parents=True)
    base: dict[str, Any] = {"task": "diagnosis", "metric": "auc", "n": 40, "seed": cell.seed}
    write_json(
        folder / "metrics.json",
        [
            base | {"method": "federated", "hospital": "all", "value": value, "low": value - 0.1, "high": value + 0.1},
            base | {"method": "federated", "hospital": "S1", "value": value, "low": value, "high": value},
            base | {"method": "federated", "hospital": "S2", "value": value + 0.1, "low": value, "high": value},
            base | {"method": "local", "hospital": "all", "value": None, "low": None, "high": None},
            base | {"method": "federated", "hospital": "all", "metric": "balanced_accuracy", "value": 0.5, "low": 0.4,
                    "high": 0.6},
        ],
    )  # fmt: skip
    write_json(folder / "summary.json", {"status": "OK", "seconds": 9.0, "budget": {"steps": 80}})
    line = {"phase": "train", "round": 1, "loss": 0.5, "seconds": 2, "bytes_down": 10**6, "bytes_up": 2 * 10**6}
    (folder / "rounds.jsonl").write_text(json.dumps(line) + "\n")
    write_cell(folder / CELL_FILE, cell)
    (folder / "DONE").write_text("")


@pytest.fixture
def cells() -> list[Cell]:
    return expand(STUDY)


@pytest.fixture
def out(tmp_path: Path, cells: list[Cell]) -> Path:
    for index, cell in enumerate(cells):
        finish(tmp_path, cell, 0.6 + 0.1 * index)
    return tmp_path


def test_a_cell_survives_its_file(tmp_path: Path, cells: list[Cell]) -> None:
    write_cell(tmp_path / "cell.json", cells[0])
    assert read_cell(tmp_path / "cell.json") == cells[0]
    assert read_cell(tmp_path / "cell.json").digest == cells[0].digest


def test_how_well_cohorts_are_told_apart_is_shown_beside_the_cohorts(out: Path, cells: list[Cell]) -> None:
    table = tidy(cells[:1], out)
    told = table.iloc[[0]].assign(task="cancer", metric="auc_probe")
    found = shown(pd.concat([table, told]), ["data.sites"], ShowSpec(hospitals=("S1",)))
    assert found[["hospital", "task"]].to_numpy().tolist() == [["S1", "diagnosis"], ["all", "cancer"]]


def test_a_cell_is_done_only_with_the_same_settings(out: Path, cells: list[Cell]) -> None:
    assert state_of(out, cells[0]) == "done"
    changed = expand(STUDY.model_copy(update={"training": {"rounds": 3}}))[0]
    assert changed.name == cells[0].name
    assert state_of(out, changed) == "changed"
    (cell_folder(out, cells[0]) / "DONE").unlink()
    assert state_of(out, cells[0]) == "open"


def test_the_results_have_one_row_per_metric_row_and_cell(out: Path, cells: list[Cell], tmp_path: Path) -> None:
    write_table(tmp_path / "results.parquet", tidy(cells, out))
    table = pd.read_parquet(tmp_path / "results.parquet")
    assert len(table) == 4 * 5
    assert table["data.sites"].tolist() == [2] * 10 + [5] * 10
    assert table["cell"].nunique() == 4
    assert set(table["megabytes"]) == {3.0}
    assert table["value"].isna().sum() == 4
    assert emit_rows(table)[3]["value"] is None


def test_shown_scores_are_means_over_seeds_and_bounds_are_averaged(out: Path, cells: list[Cell]) -> None:
    rows = shown(tidy(cells, out), ["data.sites"], ShowSpec())
    first = rows[(rows["method"] == "federated") & (rows["data.sites"] == 2)].iloc[0]
    assert first[["value", "low", "high"]].tolist() == pytest.approx([0.65, 0.55, 0.75])
    assert (first["setting"], first["seeds"], first["n"]) == ("sites 2", 2, 40)
    assert set(rows["metric"]) == {"auc"}


def add_probes(out: Path, cell: Cell) -> None:
    """Probes of the model at home, and on a cohort that it was not trained on."""
    path = cell_folder(out, cell) / "metrics.json"
    rows = json.loads(path.read_text())
    probe = rows[0] | {"metric": "auc_probe"}
    at = {"all": 0.9, "S1": 0.8, "BLCA": 0.55, "COADREAD": 0.7}
    write_json(path, rows + [probe | {"hospital": name, "value": value} for name, value in at.items()])


def test_probes_on_further_cohorts_are_shown_beside_all_and_no_row_comes_twice(out: Path, cells: list[Cell]) -> None:
    for cell in cells:
        add_probes(out, cell)
    rows = shown(tidy(cells, out), ["data.sites"], ShowSpec(metrics=("auc", "auc_probe")))
    probes = rows[(rows["metric"] == "auc_probe") & (rows["data.sites"] == 2)]
    assert dict(zip(probes["hospital"], probes["value"], strict=True)) == pytest.approx(
        {"all": 0.9, "BLCA": 0.55, "COADREAD": 0.7}
    )
    assert probes["seeds"].tolist() == [2, 2, 2]
    told = record(cells[0], out).scores
    assert (told["federated/diagnosis/auc_probe"], told["federated/diagnosis/auc_probe/COADREAD"]) == (0.9, 0.7)
    assert "federated/diagnosis/auc_probe/S1" not in told


def test_each_is_the_mean_over_hospitals_of_their_own_scores(out: Path, cells: list[Cell]) -> None:
    rows = shown(tidy(cells, out), ["data.sites"], ShowSpec(hospitals=("each",)))
    assert rows["value"].tolist() == pytest.approx([0.70, 0.90])


def test_an_axis_of_numbers_and_words_becomes_words(out: Path) -> None:
    cells = [cell for cell in expand(STUDY) if cell.choices["data.sites"] == 2]
    others = [Cell(**vars(cell) | {"choices": {"data.sites": "many"}}) for cell in cells]
    for cell in others:
        finish(out, cell, 0.5)
    table = tidy([*cells, *others], out)
    assert table["data.sites"].tolist() == ["2"] * 10 + ["many"] * 10


def test_the_table_says_where_nothing_is_defined(out: Path, cells: list[Cell]) -> None:
    table = result_table(shown(tidy(cells, out), ["data.sites"], ShowSpec()))
    columns = {str(column.header): list(map(str, column.cells)) for column in table.columns}
    assert columns["Setting"] == ["diagnosis, AUC, n = 40", "  sites 2", "  sites 5"]
    assert columns["Federated"] == ["", "0.650 (0.55-0.75)", "0.850 (0.75-0.95)"]
    assert columns["Local"] == ["", "n/a", "n/a"]


def test_the_page_escapes_what_people_wrote_and_names_failed_cells(out: Path, cells: list[Cell]) -> None:
    table = tidy(cells, out)
    rows = shown(table, ["data.sites"], ShowSpec())
    failures = [Failure(cell="sites=9,seed=0", reason="120 cases cannot be dealt")]
    write_page(out / "study.html", STUDY, rows, table, failures, "modaltune-simulate study FILE")
    page = (out / "study.html").read_text()
    assert "A &lt;b&gt;note&lt;/b&gt;." in page
    assert "sites=9,seed=0" in page
    for method in set(rows["method"]):
        assert escape(method_meaning(method)) in page
    assert method_meaning("pooled") not in page
    assert page.count("<svg") == 1
    assert "http" not in page.replace("http-equiv", "")


def test_the_command_of_a_cell_is_that_of_its_study_and_the_cell(cells: list[Cell]) -> None:
    whole = study_command(Path("a study.toml"), Path("tables"), Path("runs/grid"))
    assert whole == "modaltune-simulate study 'a study.toml' --data tables --out runs/grid"
    assert study_command(Path("a study.toml"), Path("tables"), Path("runs/grid"), cells[0].name) == (
        f"{whole} --only sites=2,seed=0"
    )
    assert select(cells, "sites=2,seed=0") == [cells[0]]


@pytest.mark.parametrize("name", [*COMPARISONS, *ABLATIONS, *ON_REQUEST, "federated", "untrained"])
def test_no_comparison_is_explained_as_a_baseline(name: str) -> None:
    assert not method_meaning(name).startswith("baseline")


def test_the_log_gets_one_line_a_cell_with_rounds_and_scores(out: Path, cells: list[Cell]) -> None:
    open_trackers((), out)["jsonl"].record(record(cells[0], out))
    line = json.loads((out / "log.jsonl").read_text())
    assert line["rounds"] == [{"round": 1, "loss": 0.5, "megabytes": 3.0, "seconds": 2.0}]
    assert line["scores"]["federated/diagnosis/auc"] == 0.6
    assert line["settings"]["data.sites"] == 2
    assert line["settings"]["slides.max_patches"] == 24


def test_an_unknown_tracker_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown tracker 'wandbs'; choose from jsonl, tensorboard, mlflow, wandb"):
        open_trackers(("wandbs",), tmp_path)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(__import__("sys").modules, module, None)  # as Python marks a module that cannot be imported
    with pytest.raises(ConfigError, match=rf"tracker '{name}' is not installed; pip install .*\[{name}\]"):
        open_trackers((name,), tmp_path)


def test_tensorboard_reads_what_its_tracker_wrote(out: Path, cells: list[Cell]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    open_trackers(("tensorboard",), out)["tensorboard"].record(record(cells[0], out))
    events = EventAccumulator(str(out / "tensorboard" / cells[0].name)).Reload()
    assert events.Scalars("score/federated/diagnosis/auc")[0].value == pytest.approx(0.6)
    assert events.Scalars("round/loss")[0].step == 1


def test_mlflow_keeps_what_its_tracker_was_told(out: Path, cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (out / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    open_trackers(("mlflow",), out)["mlflow"].record(record(cells[0], out))
    runs = mlflow.search_runs(experiment_names=["grid"], output_format="list")
    assert [run.info.run_name for run in runs] == [cells[0].name]
    assert runs[0].data.metrics["federated/diagnosis/auc"] == pytest.approx(0.6)
    assert runs[0].data.params["data.sites"] == "2"
