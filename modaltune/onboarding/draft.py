"""A commented ``site.toml`` for a folder: facts are filled in, guesses stand in comments for a person to confirm."""

from __future__ import annotations

import re
from pathlib import Path

import tomlkit

from modaltune.data.case_table import labelled, task_columns
from modaltune.data.column_names import REVERSED, named
from modaltune.data.site import SITE_FILE
from modaltune.errors import SiteFolderError
from modaltune.onboarding.columns import CHOICES, IN_DAYS, suggestions
from modaltune.onboarding.folder import Folder
from modaltune.storage import write_text

TASKS = ("diagnosis", "stage", "grade", "survival")
WARNINGS = {
    "event": "1 must mean death observed, 0 censored; anything else would train the model upside down",
    "time_months": "must be months, above 0, until death or last follow-up",
}
_LABELS = """# Local label codes are mapped by: modaltune labels SITE --study FILE --apply
# [labels.diagnosis]
# "C50-8500" = "invasive ductal carcinoma"
"""


def write_draft(folder: Folder) -> Path:
    """Write ``site.toml`` into the folder, unless there is one.

    Raises:
        SiteFolderError: the folder has a ``site.toml``.
    """
    path = folder.path / SITE_FILE
    if path.exists():
        raise SiteFolderError(f"{path}: exists and is not overwritten; edit it, or move it away first")
    write_text(path, draft(folder))
    return path


def draft(folder: Folder) -> str:
    """The text of ``site.toml`` for a folder."""
    policy = "[policy]\nmin_cell = 5  # smaller counts of cases and labels never leave\n"
    parts = [_head(folder), _paths(folder), _columns(folder), _expression(folder), _LABELS, policy]
    return "\n".join(part for part in parts if part)


def tasks_of(folder: Folder) -> list[str]:
    """Tasks whose columns have their canonical names and at least one label."""
    columns = set(folder.table.columns)
    return [task for task in TASKS if set(task_columns(task)) <= columns and labelled(folder.table, task).any()]


def _head(folder: Folder) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.path.resolve().name).strip("-_")[:64] or "SITE"
    tasks = tasks_of(folder)
    hint = "" if tasks else "  # name at least one once its columns are confirmed below: " + ", ".join(TASKS)
    return (
        "# Draft made by looking at this folder. Read it, correct it, then run: modaltune doctor SITE\n"
        "# Lines that begin with '# ?' are guesses: take the '# ?' away where the guess is right.\n\n"
        f"name = {_quoted(name)}  # as in the roster of the study\n"
        f"tasks = [{', '.join(map(_quoted, tasks))}]{hint}\n"
    )


def _quoted(text: str) -> str:
    """A TOML string."""
    return tomlkit.string(text).as_string()


def _paths(folder: Folder) -> str:
    lines = ["[paths]", f"cases = {_quoted(folder.cases[0])}"]
    lines += [f"# ? cases = {_quoted(other)}" for other in folder.cases[1:]]
    lines += _first("expression", folder.expression)
    if folder.slides and folder.features:
        lines += [*_first("slides", folder.slides), *_first("features", folder.features)]
    elif folder.features:
        lines += [
            f"# {folder.features[0]}/ has feature files but no table names them: write slides.csv with",
            "# slide_id, case_id and file, then:",
            '# ? slides = "slides.csv"',
            f"# ? features = {_quoted(folder.features[0])}",
        ]
    elif folder.slides:
        lines += [f"# {folder.slides[0]} names slides but no folder has feature files (*.h5)"]
    if folder.modalities:
        entries = ", ".join(f"{_quoted(name)} = {_quoted(file)}" for name, file in folder.modalities.items())
        lines += [f"# ? modalities = {{{entries}}}  # by the names that the study gives them"]
    if folder.ignored:
        lines += [f"# not recognised: {', '.join(map(_quoted, folder.ignored))}"]
    return "\n".join([*lines, ""])


def _expression(folder: Folder) -> str:
    if not set(folder.matrices) & set(folder.expression[:1]):
        return ""
    return '[expression]\n# ? unit = "log2"  # counts, tpm, fpkm, log2 or zscore: of a row a gene it is needed\n'


def _first(key: str, files: list[str]) -> list[str]:
    return [f"{'' if number == 0 else '# ? '}{key} = {_quoted(file)}" for number, file in enumerate(files)]


def _columns(folder: Folder) -> str:
    columns = [str(name) for name in folder.table.columns]
    lines = ["[columns]  # canonical name = local column, where they differ"]
    for canonical, found in suggestions(columns).items():
        lines += [f"# {canonical}: {WARNINGS[canonical]}"] if canonical in CHOICES else []
        lines += [f"# ? {canonical} = {_quoted(local)}" for local in found]
    lines += [
        f"# {_quoted(local)} looks like days: write a column time_months = days / 30.44"
        for local in named(columns, IN_DAYS)
        if "time_months" not in columns
    ]
    lines += [
        f"# {_quoted(local)} is not event: 1 there usually means censored; write a column event = 1 - it"
        for local in named(columns, REVERSED)
        if "event" not in columns
    ]
    return "\n".join([*lines, ""])
