"""Every field of a study file with its default and meaning, read from the schemas themselves."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from modaltune.federation.inputs import ClinicalColumn, ModalitySpec, SlideSpec, TextSpec
from modaltune.federation.settings import Part
from modaltune.federation.study import Study
from modaltune.federation.task import Label, TaskSpec

_LISTS: dict[str, type[Part]] = {"tasks": TaskSpec, "tasks.labels": Label, "clinical": ClinicalColumn,
                                 "modalities": ModalitySpec}  # fmt: skip
_ENTRY = re.compile(r"^ {4}(\w[\w, ]*): (.*)$")


@dataclass(frozen=True, kw_only=True)
class StudyField:
    """A field of a study.

    Attributes:
        table: TOML table that it stands in; "" = the top, and ``[]`` marks one that repeats.
        default: as JSON; None = it has to be given.
        choices: what it may be, where that is a list of words.
    """

    table: str
    name: str
    default: str | None
    choices: tuple[str, ...]
    meaning: str


def study_fields() -> list[StudyField]:
    """All fields, those of the top first."""
    tables: dict[str, type[Part]] = {"slides": SlideSpec, "text": TextSpec}
    tables |= {
        name: type(field.default) for name, field in Study.model_fields.items() if isinstance(field.default, Part)
    }
    inner = {*tables, *_LISTS}
    found = [field for field in _fields("", Study) if field.name not in inner]
    for name, schema in tables.items():
        found += _fields(name, schema)
    for name, schema in _LISTS.items():
        found += [field for field in _fields(f"{name}[]", schema) if f"{name}.{field.name}" not in inner]
    return found


def field_table(fields: list[StudyField]) -> Table:
    """The fields for people."""
    table = Table("Field", "Default", "Meaning", box=None)
    for field in fields:
        name = f"{field.table}.{field.name}" if field.table else field.name
        choices = f"({', '.join(field.choices)}) " if field.choices else ""
        table.add_row(name, "required" if field.default is None else field.default, choices + field.meaning)
    return table


def _fields(table: str, schema: type[Part]) -> Iterator[StudyField]:
    meanings = _meanings(schema)
    shapes: dict[str, Any] = schema.model_json_schema()["properties"]
    for name, field in schema.model_fields.items():
        default = (
            None if field.is_required() else json.dumps(field.get_default(call_default_factory=True), default=list)
        )
        choices = tuple(str(choice) for choice in shapes[name].get("enum", ()))
        yield StudyField(table=table, name=name, default=default, choices=choices, meaning=meanings.get(name, ""))


def _meanings(schema: type[Part]) -> dict[str, str]:
    """Field -> what the ``Attributes`` of the schema's docstring say of it."""
    _, _, text = inspect.cleandoc(schema.__doc__ or "").partition("Attributes:\n")
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in text.splitlines():
        if entry := _ENTRY.match(line):
            names = [name.strip() for name in entry[1].split(",")]
            found |= {name: [entry[2]] for name in names}
        else:
            for name in names:
                found[name].append(line.strip())
    return {name: " ".join(parts).replace("``", "").strip() for name, parts in found.items()}
