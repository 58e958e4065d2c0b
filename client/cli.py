"""modaltune-client: the hospital's commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from client import network
from modaltune.console import console, emit_json, run_app
from modaltune.doctor.command import Json, SiteFolder, StudyFile, examine, show, title
from modaltune.doctor.finding import run_checks
from modaltune.federation.study import Study

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.callback()
def _commands() -> None:
    """Commands of a hospital."""


@app.command()
def check(
    study: Annotated[Path, typer.Argument(help="study.toml or study.json")],
    site: Annotated[Path, typer.Option(help="Site folder with site.toml.")],
    json: Json = False,
) -> None:
    """Validate this hospital's data against a study and print what would leave, before anything does."""
    from client.runtime import Site
    from modaltune.federation.manifest import TRAIN_METRICS, evaluation_metrics, statistics_manifest

    asked = Study.load(study)
    here = Site(site, asked)
    capability = here.capability()
    genes = capability.pop("genes")
    named = {gene for members in asked.gene_sets.values() for gene in members}
    sums = statistics_manifest(asked, sorted(named & set(genes)))
    leaves = {
        "digest": asked.digest,
        "capability": capability | {"gene names": len(genes)},
        "statistics": {name: list(shape) for name, shape in sums.shapes.items()},
        "training metrics": list(TRAIN_METRICS),
        "evaluation metrics": list(evaluation_metrics(asked)),
        "counts below": here.minimum,
    }
    if json:
        emit_json(leaves)
        return
    table = Table("What would leave", "Content", title=f"Study {asked.name}, digest {asked.digest[:12]}")
    for name, value in leaves.items():
        table.add_row(name, str(value).replace("[", r"\["))
    table.add_row("training", "trained adapter and head weights only; frozen weights never")
    console.print(table)


@app.command()
def doctor(
    site: SiteFolder = None,
    study: StudyFile = None,
    coordinator: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Check the way to it as well.")] = None,
    root_certificates: Annotated[Path | None, typer.Option(help="PEM file that the coordinator gave out.")] = None,
    json: Json = False,
) -> None:
    """The checks of modaltune doctor, and those of the network: name, port, certificate, clock, health."""
    there = None if coordinator is None else network.Coordinator(coordinator, root_certificates)
    findings = examine(site, study)
    if there is not None:
        findings += run_checks(network.CHECKS, there)
    show(title(site), findings, json)


def main() -> None:
    """Entry point."""
    run_app(app)
