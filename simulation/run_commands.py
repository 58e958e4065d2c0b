"""Commands that ask finished runs something: nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modaltune.console import console, emit_json
from simulation.finished_runs import paired_rows, paired_table
from simulation.unlabelled import AGAINST, unlabelled_rows, unlabelled_table
from simulation.within import within_rows, within_table

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, the rest on stderr.")]


def unlabelled(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs with --tasks, each of other seeds.")],
    rule: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER: the shared model under another training rule, a seed of the runs (repeat)."),
    ] = None,
    against: Annotated[str, typer.Option(help="Method or rule that the others are held against.")] = AGAINST,
    json: Json = False,
) -> None:
    """Score runs with --tasks at the hospitals that labelled a task and at those that never did."""
    rules: dict[str, list[Path]] = {}
    for given in rule or ():
        name, equals, folder = given.partition("=")
        if not (name and equals and folder):
            raise typer.BadParameter(f"--rule {given}: expected NAME=FOLDER")
        rules.setdefault(name, []).append(Path(folder))
    rows = unlabelled_rows(runs, rules, against)
    if json:
        emit_json([vars(row) for row in rows])
    else:
        console.print(unlabelled_table(rows, against))


def within(
    run: Annotated[Path, typer.Argument(help="Finished run, or cell of a study.")],
    task: Annotated[str, typer.Option(help="Whose classes the other tasks may have learnt instead.")] = "diagnosis",
    json: Json = False,
) -> None:
    """Score a run's other tasks among cases of the same class: a survival score may only tell the cancers apart."""
    rows = within_rows(run, task)
    if json:
        emit_json([{**vars(row), "everyone": vars(row.everyone), "within": vars(row.within)} for row in rows])
    else:
        console.print(within_table(rows, task))


def compare(
    first: Annotated[Path, typer.Argument(help="Finished run, or cell of a study.")],
    second: Annotated[Path, typer.Argument(help="Another on the same patients, e.g. with another setting.")],
    method: Annotated[str, typer.Option(help="Which method of both.")] = "federated",
    json: Json = False,
) -> None:
    """Headline metrics of one run less those of another, the same patients resampled together."""
    rows = paired_rows(first, second, method)
    if json:
        emit_json(rows)
    else:
        console.print(paired_table(rows, method))
