"""The commands ``init`` and ``labels``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from rich.table import Table
from rich.text import Text

from modaltune.console import console, emit_json, progress_line
from modaltune.data.site import SITE_FILE
from modaltune.doctor.site_files import SiteFiles
from modaltune.federation.study import Study
from modaltune.federation.task import TaskSpec
from modaltune.onboarding.draft import tasks_of, write_draft
from modaltune.onboarding.folder import survey
from modaltune.onboarding.labels import LocalCode, Mapped, accepted, asked, local_codes, ranked, store
from modaltune.tasks.vocabulary import configs_folder, load_vocabulary

if TYPE_CHECKING:
    from modaltune.encoders.text import TextEncoder

SiteFolder = Annotated[Path, typer.Argument(metavar="SITE", help="The hospital's folder.")]
StudyFile = Annotated[Path | None, typer.Option("--study", help="study.toml or study.json with the vocabulary.")]
Cohort = Annotated[str | None, typer.Option(help="A shipped vocabulary instead, e.g. BRCA.")]
Accept = Annotated[list[str] | None, typer.Option(metavar="CODE=VALUE", help="Confirm one code; repeatable.")]
Apply = Annotated[bool, typer.Option("--apply", help=f"Write what is confirmed into {SITE_FILE}.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, the rest on stderr.")]


def init(folder: SiteFolder, json: Json = False) -> None:
    """Write a commented site.toml by looking at the files of a folder; guesses stand in comments."""
    found = survey(folder)
    path = write_draft(found)
    if json:
        emit_json({"file": str(path), "cases": found.cases[0], "tasks": tasks_of(found), "ignored": found.ignored})
    else:
        console.print(
            f"{path}: read it, confirm what is marked '# ?', then: modaltune doctor {folder}",
            markup=False,
            soft_wrap=True,
        )


def labels(
    folder: SiteFolder,
    study: StudyFile = None,
    cohort: Cohort = None,
    accept: Accept = None,
    apply: Apply = False,
    json: Json = False,
) -> None:
    """Map local label codes to a vocabulary: equal ones at once, similar ones after you confirm each.

    Shows local codes on this screen. Nothing is written without --apply.
    """
    asks = Study.load(study) if study is not None else None
    tasks = _tasks(asks, cohort)
    site = SiteFiles(folder, asks)
    codes = local_codes(site, tasks)
    confirmed = accepted(accept or (), codes, tasks)
    for code in codes:
        if code.match is not None:
            confirmed.setdefault(code.task, {}).setdefault(code.code, code.match)
    open_codes = [code for code in codes if code.code not in confirmed.get(code.task, {})]
    if open_codes:
        open_codes = ranked(open_codes, tasks, _encoder(asks))
    if not json:
        console.print(_table(codes, open_codes, confirmed))
    if apply and not json and sys.stdin.isatty():
        for task, answers in asked(open_codes, _reply).items():
            confirmed.setdefault(task, {}).update(answers)
    if apply and confirmed:
        store(site, confirmed)
    left = sum(code.code not in confirmed.get(code.task, {}) for code in codes)
    if json:
        rows = [asdict(code) for code in (*(code for code in codes if code.match is not None), *open_codes)]
        emit_json({"codes": rows, "confirmed": confirmed, "stored": apply and bool(confirmed), "unmapped": left})
    else:
        progress_line(False)(summary(confirmed, left, apply))


def _tasks(study: Study | None, cohort: str | None) -> Sequence[TaskSpec]:
    if (study is None) == (cohort is None):
        raise typer.BadParameter("give either --study FILE or --cohort NAME")
    if study is not None:
        return study.tasks
    return load_vocabulary(configs_folder() / "labels" / f"{str(cohort).lower()}.toml")


def _encoder(study: Study | None) -> TextEncoder:
    from modaltune.encoders.text import text_encoder, verified_text_encoder

    return text_encoder() if study is None else verified_text_encoder(study.text)


def _reply(question: str) -> str:
    choice = click.Choice(["y", "n", "s", "u"])
    return str(typer.prompt(f"{question} yes, no, skip, unlabelled", type=choice, default="s", err=True))


def _table(codes: Sequence[LocalCode], open_codes: Sequence[LocalCode], confirmed: Mapped) -> Table:
    table = Table("Task", "Local code", "Cases", "Becomes", "Suggestions", title="Local label codes")
    nearest = {(code.task, code.code): code.suggestions for code in open_codes}
    for code in codes:
        value = confirmed.get(code.task, {}).get(code.code)
        becomes = "?" if value is None else value or "unlabelled"
        near = ", ".join(f"{name} ({score:.2f})" for name, score in nearest.get((code.task, code.code), ()))
        table.add_row(*map(Text, (code.task, code.code, str(code.cases), becomes, near)))
    return table


def summary(confirmed: Mapping[str, Mapping[str, str]], left: int, apply: bool) -> str:
    """The last line of the command."""
    count = sum(len(codes) for codes in confirmed.values())
    codes = "1 code" if count == 1 else f"{count} codes"
    if not count and not left:
        return "nothing to map: no code of the site's tasks is outside the vocabulary"
    done = f"{codes} written to {SITE_FILE}" if apply else f"{codes} to write: run again with --apply"
    done = done if count else "nothing to write"
    return f"{done}; {left} not mapped" + (": --accept CODE=VALUE, or --apply at a terminal" if left else "")
