"""The command ``doctor``: which checks run, and how their findings are shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from modaltune.console import console, emit_json
from modaltune.doctor.finding import Finding, as_document, run_checks, worst
from modaltune.federation.study import Study

COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}
SiteFolder = Annotated[Path | None, typer.Argument(metavar="[SITE]", help="Site folder; without it, the installation.")]
StudyFile = Annotated[Path | None, typer.Option("--study", help="study.toml or study.json to hold the site against.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, the rest on stderr.")]


def doctor(folder: SiteFolder = None, study: StudyFile = None, json: Json = False) -> None:
    """Check this installation, or a site folder: status, finding and fix of every check; 2 if one is an error.

    Network checks are in modaltune-client doctor.
    """
    show(title(folder), examine(folder, study), json)


def title(folder: Path | None) -> str:
    """What the doctor looks at, in words."""
    return "installation" if folder is None else f"site {folder.name or folder.resolve().name}"


def examine(folder: Path | None, study: Path | None) -> list[Finding]:
    """Findings on a site folder, or on the installation; a study file that cannot be read is a usage error."""
    from modaltune.doctor import installation, site  # these load pandas, which takes as long as the other commands
    from modaltune.doctor.site_files import SiteFiles

    if folder is None:
        if study is not None:
            raise typer.BadParameter("--study needs a site folder to hold against it")
        return run_checks(installation.CHECKS, installation.Machine())
    return site.examine(SiteFiles(folder, None if study is None else Study.load(study)))


def show(subject: str, findings: Sequence[Finding], json: bool) -> None:
    """Show findings as a table or as JSON and end the command: status 2 if one is an error."""
    if json:
        emit_json(as_document(subject, findings))
    else:
        console.print(_table(subject, findings))
        counts = {status: sum(finding.status == status for finding in findings) for status in COLOURS}
        console.print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if worst(findings) == "error":
        raise typer.Exit(2)


def _table(subject: str, findings: Sequence[Finding]) -> Table:
    table = Table("Check", "Status", "Finding", "Fix", title=f"Doctor: {subject}", show_lines=True)
    for finding in findings:
        status = Text(finding.status, style=COLOURS[finding.status])
        table.add_row(Text(finding.check), status, Text(finding.finding), Text(finding.fix))
    return table
