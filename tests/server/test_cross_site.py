from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from modaltune.storage import write_json
from server.cross_site import INFLUENCE, Cell, matrices, matrix_tables, read_matrices
from server.report import write_report
from server.report_data import load_run
from tests.server.run_folder import metrics_rows, write_run

SITES = ("H1", "H2", "H3")


def with_matrix(folder: Path) -> Path:
    """A run with three more federations; leaving H2 out costs H1 0.05."""
    run = write_run(folder)
    rows = metrics_rows()
    more = [row | {"method": f"without_{site}"} for site in SITES for row in rows if row["method"] == "federated"]
    write_json(run / "metrics.json", rows + more)
    write_json(run / INFLUENCE, [change(site, place) for site in SITES for place in ("all", *SITES)])
    return run


def change(site: str, hospital: str) -> dict[str, Any]:
    matters = (site, hospital) == ("H2", "H1")
    bounds = {"value": 0.05, "low": 0.01, "high": 0.09} if matters else {"value": 0.0, "low": -0.04, "high": 0.04}
    return {"site": site, "task": "diagnosis", "metric": "auc", "hospital": hospital, "n": 20, "seed": 0} | bounds


def cell(run: Path, task: str, model: str, place: str) -> Cell:
    matrix = next(matrix for matrix in read_matrices(run) if matrix.task == task)
    return dict(matrix.rows)[model][matrix.places.index(place)]


def test_a_matrix_has_a_row_for_each_federation_and_a_column_for_each_place(tmp_path: Path) -> None:
    run = with_matrix(tmp_path / "run")
    found = read_matrices(run)
    assert [(matrix.task, matrix.metric) for matrix in found] == [
        ("diagnosis", "AUC"),
        ("stage", "AUC"),
        ("survival", "C-index"),
    ]
    assert found[0].places == ("H1", "H2", "H3", "all")
    assert [title for title, _ in found[0].rows] == ["all", "without H1", "without H2", "without H3"]


def test_a_cell_says_what_leaving_a_hospital_out_changes_and_whether_it_was_ever_seen(tmp_path: Path) -> None:
    run = with_matrix(tmp_path / "run")
    assert cell(run, "diagnosis", "all", "H1") == Cell(value="0.85", interval="0.79-0.89")
    missed = cell(run, "diagnosis", "without H2", "H1")
    assert (missed.change, missed.matters, missed.unseen) == ("+0.05 (+0.01 to +0.09)", True, False)
    own = cell(run, "diagnosis", "without H2", "H2")
    assert (own.matters, own.unseen) == (False, True)
    assert cell(run, "survival", "without H2", "H3").value == "n/a"


def test_without_such_federations_there_is_no_matrix(tmp_path: Path) -> None:
    assert matrices(metrics_rows(), []) == []
    assert read_matrices(tmp_path) == []
    assert 'id="cross-site"' not in write_report(write_run(tmp_path / "run")).read_text()


def test_the_matrix_of_five_hospitals_fits_a_terminal(tmp_path: Path) -> None:
    run = with_matrix(tmp_path / "run")
    console = Console(width=80, record=True)
    for table in matrix_tables(read_matrices(run)):
        console.print(table)
    said = console.export_text()
    assert "0.85*" in said
    assert "0.79-0.89" in said


def test_the_report_shows_the_matrix_and_does_not_count_its_models_among_the_methods(tmp_path: Path) -> None:
    run = with_matrix(tmp_path / "run")
    page = write_report(run).read_text()
    assert 'href="#cross-site"' in page
    assert "<b>+0.05 (+0.01 to +0.09)</b>" in page
    assert "without H3" in page
    assert not [name for name in load_run(run).methods if name.startswith("without")]
