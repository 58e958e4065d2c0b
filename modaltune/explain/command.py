"""The command ``explain``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import Progress

from modaltune.console import console, emit_json, progress_line
from modaltune.prediction.command import Json, Model, PublicKey, SiteFolder, cases_bar
from modaltune.trust.keys import read_public

if TYPE_CHECKING:
    from modaltune.prediction.site import ModelAtSite


def explain(
    model: Model,
    site: SiteFolder,
    case: Annotated[str | None, typer.Argument(help="case_id of the cases table; none with --cohort.")] = None,
    cohort: Annotated[bool, typer.Option("--cohort", help="Gene sets over all test cases.")] = False,
    task: Annotated[str | None, typer.Option(help="--cohort: one task of the model; default all.")] = None,
    split: Annotated[Literal["all", "test"] | None, typer.Option(help="--cohort: which cases; default test.")] = None,
    slides: Annotated[
        Path | None, typer.Option(help="CASE: folder with the slides, named by slide_id, for tiles.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the page; default in SITE/explanations.")] = None,
    public_key: PublicKey = None,
    json: Json = False,
) -> None:
    """Show what is behind a prediction: patch attention, tiles, gene sets. The page stays at the hospital."""
    if (case is None) != cohort:
        raise typer.BadParameter("give either a CASE or --cohort")
    if not cohort and (task is not None or split is not None):
        raise typer.BadParameter("--task and --split are for --cohort; the page of a CASE shows every task")
    from modaltune.prediction.site import model_at_site, require_extractors, require_task

    at = model_at_site(model, site, None if public_key is None else read_public(public_key))
    require_extractors(at.study)
    if task is not None:
        require_task(at.study, task)
    found = _cohort(at, split or "test", task, out) if case is None else _case(at, case, slides, out)
    for note in at.notes:
        progress_line(False)(note)
    if json:
        emit_json(found)
    else:
        console.print(f"{found['page']}: stays at the hospital; {found['use']}", markup=False, soft_wrap=True)


def _case(at: ModelAtSite, case_id: str, slides: Path | None, out: Path | None) -> dict[str, Any]:
    from modaltune.explain.case import explain_case, row_of, write_case

    row = row_of(at, case_id)
    folder = at.folder / "explanations" / f"row-{row + 1}" if out is None else out
    with Progress(console=console, disable=not console.is_terminal) as bar:
        sets = bar.add_task("gene sets", total=len(at.preprocessing.gene_sets))
        found = explain_case(at, row, slides, lambda done: bar.update(sets, completed=done))
    return _document(at, write_case(folder, at, found)) | {"slides": len(found.places), "patches": found.patches}


def _cohort(at: ModelAtSite, split: str, task: str | None, out: Path | None) -> dict[str, Any]:
    from modaltune.explain.cohort import explain_cohort, write_cohort

    folder = at.folder / "explanations" / "cohort" if out is None else out
    with cases_bar(sum(at.cases[row].has_expression for row in at.rows(split))) as step:
        found = explain_cohort(at, split, task, step)
    cases = found.targets[0].groups[0].cases
    return _document(at, write_cohort(folder, at, found)) | {"cases": cases, "gene_sets": len(found.names)}


def _document(at: ModelAtSite, page: Path) -> dict[str, Any]:
    from modaltune.prediction.site import RESEARCH_ONLY

    return {
        "page": str(page),
        "site": at.cohort.site,
        "study": at.study.digest,
        "model": at.model,
        "tasks": [task.name for task in at.study.tasks],
        "use": RESEARCH_ONLY,
    }
