"""The command ``predict``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import Progress
from rich.table import Table

from modaltune.console import console, emit_json, progress_line
from modaltune.trust.keys import read_public

if TYPE_CHECKING:
    import pandas as pd

    from modaltune.prediction.site import ModelAtSite

Model = Annotated[Path, typer.Argument(help="model/ folder of a run, or a signed release.")]
SiteFolder = Annotated[Path, typer.Argument(help="Site folder (docs/data.md); its labels are not read.")]
PublicKey = Annotated[Path | None, typer.Option(help="Public key with which the model must be signed.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, the rest on stderr.")]


def predict(
    model: Model,
    site: SiteFolder,
    out: Annotated[
        Path | None, typer.Option(help="Table, .parquet or .csv; default predictions.parquet in the site folder.")
    ] = None,
    split: Annotated[Literal["all", "test"], typer.Option(help="Which cases.")] = "all",
    public_key: PublicKey = None,
    json: Json = False,
) -> None:
    """Write what a model says about each case of a site; the table names patients and stays at the hospital."""
    from modaltune.prediction.site import model_at_site
    from modaltune.prediction.table import prediction_rows, require_table_name, write_table

    path = site / "predictions.parquet" if out is None else out
    require_table_name(path)
    at = model_at_site(model, site, None if public_key is None else read_public(public_key))
    chosen = at.rows(split)
    with cases_bar(len(chosen)) as step:
        table = prediction_rows(at, chosen, step)
    write_table(path, table)
    for note in at.notes:
        progress_line(False)(note)
    if json:
        emit_json(summary(at, table, path))
    else:
        console.print(_summary_table(summary(at, table, path)))


@contextmanager
def cases_bar(cases: int, name: str = "cases") -> Iterator[Callable[[], None]]:
    """A progress bar over cases, quiet where nobody looks; yields what advances it."""
    with Progress(console=console, disable=not console.is_terminal) as bar:
        row = bar.add_task(name, total=cases)
        yield lambda: bar.advance(row)


def summary(at: ModelAtSite, table: pd.DataFrame, path: Path) -> dict[str, Any]:
    """Counts and the path; a group of fewer patients than the smallest that is reported is null."""
    from modaltune.prediction.site import RESEARCH_ONLY

    absent = table["missing"].str.split(",").explode().value_counts().drop("", errors="ignore")
    return {
        "path": str(path),
        "site": at.cohort.site,
        "study": at.study.digest,
        "model": at.model,
        "cases": len(table),
        "missing": {str(name): at.reported(int(count)) for name, count in sorted(absent.items())},
        "far": at.reported(int(table["far"].sum())),
        "genes": len(at.preprocessing.genes),
        "genes_absent": at.genes_absent,
        "use": RESEARCH_ONLY,
    }


def _summary_table(found: dict[str, Any]) -> Table:
    table = Table("", "", title=f"Predictions: {found['use']}", show_header=False)
    table.add_row("table (names patients, stays here)", found["path"])
    table.add_row("cases", str(found["cases"]))
    for name, count in found["missing"].items():
        table.add_row(f"without {name}", "few" if count is None else str(count))
    table.add_row("far from the training data", "few" if found["far"] is None else str(found["far"]))
    return table
