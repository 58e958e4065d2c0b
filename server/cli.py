"""modaltune-server: the coordinator's commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modaltune.console import console, emit_json, run_app
from modaltune.federation.study import Study
from server.report import write_report

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
study = typer.Typer(no_args_is_help=True, help="Check and name a study.")
app.add_typer(study, name="study")
File = Annotated[Path, typer.Argument(help="study.toml or study.json")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, the rest on stderr.")]


@study.command()
def check(file: File, json: Json = False) -> None:
    """Validate a study file and say what it asks of the sites."""
    found = Study.load(file)
    summary = {
        "name": found.name,
        "digest": found.digest,
        "roster": list(found.roster),
        "tasks": {task.name: task.kind for task in found.tasks},
        "rounds": found.training.rounds,
        "gene_sets": len(found.gene_sets),
        "patch_width": found.slides.in_width,
    }
    if json:
        emit_json(summary)
    else:
        for name, value in summary.items():
            console.print(f"{name}: {value}", markup=False)


@study.command()
def digest(file: File, json: Json = False) -> None:
    """Print the digest that names a study."""
    found = Study.load(file).digest
    emit_json({"digest": found}) if json else typer.echo(found)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of a run.")], json: Json = False) -> None:
    """Write report.html of a run folder anew."""
    path = write_report(run)
    emit_json({"report": str(path)}) if json else console.print(f"report: {path}", markup=False)


def main() -> None:
    """Entry point."""
    run_app(app)
