"""``modaltune-simulate study``: a grid of experiments from one file, resumable, with one table and one page."""

from __future__ import annotations

import json as jsons
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from modaltune.console import console, emit_json, progress_line
from modaltune.errors import ConfigError, RunFailed
from modaltune.storage import write_json
from simulation.engine import cores
from simulation.studies.cells import Cell, expand, select
from simulation.studies.page import study_command, write_page
from simulation.studies.results import record, result_table, shown, tidy, write_table
from simulation.studies.runner import Failure, cell_folder, run_cells, state_of
from simulation.studies.spec import StudyFile, load_study_file
from simulation.studies.trackers import Tracker, open_trackers

_TRACKED = "tracked.json"
_STUDY = "study-file.json"


def study(
    file: Annotated[Path, typer.Argument(help="Study file, or the name of a ready-made one (docs/studies.md).")],
    data: Annotated[Path | None, typer.Option(help="Folder with the TCGA tables, where the study needs them.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study; finished cells in it are kept.")] = None,
    only: Annotated[str | None, typer.Option(help="Only such cells, e.g. 'wire=int8*', or seed=0,wire=int8.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Cells at a time, each about 1.6 GB; they share the cores.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Run a grid of experiments; an interrupted study goes on where it stopped."""
    described = load_study_file(file)
    cells = expand(described)
    chosen = select(cells, only)
    folder = out or Path("runs") / described.name
    trackers = open_trackers(described.trackers, folder)
    say = progress_line(False)
    _claim(folder, described)
    say(f"study {described.name}: {len(chosen)} of {len(cells)} cells, {workers} at a time on {cores()} cores")
    failures = run_cells(
        chosen,
        folder,
        data,
        workers,
        say,
        lambda cell, _: _track(cell, folder, trackers),
        lambda cell: study_command(file, data, folder, cell.name),
    )
    done = [cell for cell in cells if state_of(folder, cell) == "done"]
    for cell in done:
        _track(cell, folder, trackers)
    if not done:
        raise RunFailed(f"study {described.name}: no cell has a result; the first failure: {failures[0].reason}")
    table = _write(described, done, folder, failures, study_command(file, data, folder))
    if json:
        rows = emit_rows(table)
        emit_json({"run": str(folder), "metrics": rows, "failed": {one.cell: one.reason for one in failures}})
    else:
        console.print(result_table(shown(table, _axes(described), described.show)))
    say(f"{len(done)} of {len(cells)} cells finished; page: {folder / 'study.html'}")
    if failures or (table["status"] != "OK").any():
        raise typer.Exit(3)


def emit_rows(table: pd.DataFrame) -> list[dict[str, object]]:
    """Rows of the results table for JSON: undefined values are null."""
    text = table.to_json(orient="records", double_precision=15)
    rows: list[dict[str, object]] = jsons.loads(text or "[]")
    return rows


def _axes(described: StudyFile) -> list[str]:
    return [axis.name for axis in described.axes]


def _claim(folder: Path, described: StudyFile) -> None:
    """Refuse a folder that belongs to something else, and note whose it is."""
    noted = folder / _STUDY
    if folder.exists() and not noted.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists and is not the folder of a study; choose another --out or remove it")
    if noted.is_file():
        name = jsons.loads(noted.read_text(encoding="utf-8"))["name"]
        if name != described.name:
            raise ConfigError(f"{folder}: holds study {name!r}, not {described.name!r}; choose another --out")
    write_json(noted, described.model_dump(mode="json"))


def _track(cell: Cell, folder: Path, trackers: dict[str, Tracker]) -> None:
    """Tell each tracker about a finished cell, once."""
    path = cell_folder(folder, cell) / _TRACKED
    told: list[str] = jsons.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    for name, tracker in trackers.items():
        if name not in told:
            tracker.record(record(cell, folder))
            told.append(name)
            write_json(path, told)


def _write(
    described: StudyFile, done: Sequence[Cell], folder: Path, failures: Sequence[Failure], command: str
) -> pd.DataFrame:
    table = tidy(done, folder)
    write_table(folder / "results.parquet", table)
    rows = shown(table, _axes(described), described.show)
    write_page(folder / "study.html", described, rows, table, failures, command)
    return table
