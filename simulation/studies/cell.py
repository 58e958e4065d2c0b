"""One cell, in a process of its own: ``python -m simulation.studies.cell CELL.json OUT [DATA] [--command TEXT]``.

The process ends when its standard input does: a study that was killed leaves no cell behind.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from modaltune.console import progress_line, run_app
from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import Preprocessing
from modaltune.evaluation.metrics import Score
from modaltune.evaluation.predictions import metric_rows, row
from modaltune.evaluation.survival import Censoring
from modaltune.federation.study import Study
from modaltune.federation.task import HEADLINES
from modaltune.models.baselines.registry import baseline_study
from modaltune.storage import write_json, write_text
from modaltune.versions import installed_versions
from server.report import write_report
from simulation.baselines import baseline_methods, unreadable
from simulation.experiment import Experiment
from simulation.outcomes import Outcome, write_outcomes
from simulation.run_folder import files_of, remembered, run_folder, without_working_files
from simulation.studies.cells import Cell
from simulation.studies.data import SYNTHETIC, SceneFolders, write_scene
from simulation.studies.probe import probe_rows
from simulation.study import draft_study, read_sites

CELL_FILE, OWN = "cell.json", "modaltune"
_SECONDS_TO_END = 20.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def read_cell(path: Path) -> Cell:
    """The cell that a file describes."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content.pop("digest")
    return Cell(**content | {"methods": tuple(content["methods"])})


def write_cell(path: Path, cell: Cell) -> None:
    """A cell and its digest."""
    write_json(path, vars(cell) | {"methods": list(cell.methods), "digest": cell.digest})


def run_cell(cell: Cell, out: Path, data: Path | None, command: str = "") -> None:
    """Run a cell into its run folder, which appears when it is complete.

    Args:
        command: which runs the cell again, for its report.
    """
    say = progress_line(False)
    with run_folder(out, _begun(cell, data), say) as folder:
        with remembered(folder):
            scene = write_scene(cell.spec, cell.seed, data, folder)
        cohorts = read_sites(list(scene.sites.values()), scene.tasks, cell.study)
        study = _study(cell, cohorts, scene)
        chosen = _methods(cell, study)
        write_cell(folder / CELL_FILE, cell)
        if reason := unreadable(study.model.kind, cohorts.values()):
            say(f"{cell.name}: n/a, {reason}")
            _write_nothing(folder, study, chosen, reason)
            return
        say(f"{cell.name}: {len(scene.sites)} hospitals train, {len(scene.truth)} are tested")
        experiment = Experiment(study, scene.sites, scene.truth, folder, say, scene.cancers)
        outcome = experiment.run(comparisons=chosen)
        outcome.rows = [row for row in outcome.rows if row["method"] in chosen]
        outcome.rows += group_rows(outcome, study, scene, cohorts, folder)
        if cell.data["probe"]:
            say(f"probing on {', '.join(cell.data['probe'])}")
            outcome.rows += probe_rows(cell.spec, cell.seed, data, folder, study)
        without_working_files(folder)
        more = {
            "title": f"{cell.title}: {cell.name}",
            "simulated": True,
            "seeds": [cell.seed],
            "versions": installed_versions(),
            "command": command,
            "notes": outcome.notes,
        }
        write_outcomes(folder, [outcome], outcome.summary | more)
        write_report(folder)


def _begun(cell: Cell, data: Path | None) -> dict[str, Any]:
    """What decides a cell's results: its settings, and the tables and feature files of its cohorts."""
    folders = [] if data is None else [data / cohort for cohort in (*cell.spec.cohorts, *cell.spec.probe)]
    return {"cell": cell.digest, "versions": installed_versions(), "tables": files_of(*folders)}


def _study(cell: Cell, cohorts: Mapping[str, Cohort], scene: SceneFolders) -> Study:
    """The study of a cell; a baseline takes the recipe of its row."""
    model = cell.settings.get("model", {})
    kind, own = model.get("kind", OWN), {**cell.settings, "model": {**model, "kind": OWN}}
    study = draft_study(cell.study, cohorts, scene.tasks, scene.gene_sets, own, seed=cell.seed)
    return study if kind == OWN else baseline_study(study, kind)


def _methods(cell: Cell, study: Study) -> tuple[str, ...]:
    """What is scored; what does not depend on the model is scored in ModalTune's cell only."""
    if study.model.kind != OWN:
        return tuple(name for name in cell.methods if name in ("federated", "local", "pooled"))
    return tuple(row for name in cell.methods for row in (baseline_methods(name) or (name,)))


def _write_nothing(folder: Path, study: Study, methods: Sequence[str], reason: str) -> None:
    """A cell whose model nobody has the cases for: rows without a value, and why."""
    nothing = Score(value=None, low=None, high=None, n=0)
    rows = [
        row(method, task.name, metric, "all", nothing, study.seed)
        for method in methods
        for task in study.tasks
        for metric in HEADLINES[task.kind]
    ]
    without_working_files(folder)
    write_json(folder / "metrics.json", rows)
    write_text(folder / "rounds.jsonl", "")
    write_json(folder / "summary.json", {"status": "OK", "seconds": 0.0, "budget": {"steps": 0}, "notes": [reason]})


def group_rows(
    outcome: Outcome, study: Study, scene: SceneFolders, cohorts: Mapping[str, Cohort], folder: Path
) -> list[dict[str, Any]]:
    """Rows of each cohort, and of each hospital that did not train; models of other cohorts' hospitals do not count.

    Args:
        cohorts: of the hospitals that train. Censoring is that of those in the group, or of all where none trains.
    """
    groups = {site: [site] for site in scene.truth if site not in scene.sites}
    for cohort in sorted(set(scene.cohorts.values()) - {SYNTHETIC}):
        groups[cohort] = [site for site in scene.truth if scene.cohorts[site] == cohort]
    if not groups:
        return []
    preprocessing = Preprocessing.from_json((folder / "preprocessing.json").read_text(encoding="utf-8"))
    tables = pd.concat(outcome.predictions, ignore_index=True)
    rows = []
    for method, found in tables.groupby("method", sort=False):
        if method not in {row["method"] for row in outcome.rows}:
            continue
        for group, sites in groups.items():
            trained = [cohorts[site].cases for site in sites if site in cohorts]
            known = trained or [cohort.cases for cohort in cohorts.values()]
            censoring = Censoring.of_training(known, study.endpoints)
            parts = models_at(found, sites, scene.cohorts)
            by_task = {task.name: [p for p in parts if (p["task"] == task.name).any()] for task in study.tasks}
            rows += metric_rows(
                by_task,
                study,
                preprocessing,
                method=str(method),
                hospital=group,
                seed=study.seed,
                censoring=censoring,
            )
    return [row for row in rows if row["n"]]


def models_at(found: pd.DataFrame, sites: Sequence[str], cohorts: Mapping[str, str]) -> list[pd.DataFrame]:
    """Predictions for cases of some hospitals, by each model that is everybody's or of a hospital of their cohort."""
    here = {cohorts[site] for site in sites}
    return [
        table[table["hospital"].isin(sites)]
        for owner, table in found.groupby("model", sort=False)
        if not owner or cohorts[str(owner)] in here
    ]


@app.command()
def main(
    cell: Annotated[Path, typer.Argument(help="Cell as JSON.")],
    out: Annotated[Path, typer.Argument(help="Its run folder.")],
    data: Annotated[Path | None, typer.Argument(help="TCGA tables.")] = None,
    command: Annotated[str, typer.Option(help="What its report prints as the command.")] = "",
) -> None:
    """Run one cell of a study."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background commands inherit that it is ignored
    threading.Thread(target=_end_with_parent, daemon=True).start()
    run_cell(read_cell(cell), out, data, command)


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing is ever sent; not sys.stdin, whose lock a thread may not hold when Python ends
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(_SECONDS_TO_END)
    os._exit(1)


if __name__ == "__main__":
    run_app(app, "the cell's log in logs/ shows where; report it", traced=True)
