"""Label vocabularies: which values a task has and which text stands for each (``configs/labels/*.toml``)."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from modaltune.errors import ConfigError
from modaltune.federation.study import first_problem
from modaltune.federation.task import TaskSpec

_PACKAGE = Path(__file__).resolve().parents[1]


def configs_folder() -> Path:
    """The shipped configuration files: inside the installed package or beside it in a checkout."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def vocabulary_file(name: str) -> Path:
    """The shipped vocabulary of a cohort, or ``words/COHORT``."""
    return configs_folder() / "labels" / f"{name.lower()}.toml"


def load_vocabulary(path: Path, tasks: Sequence[str] | None = None) -> tuple[TaskSpec, ...]:
    """Tasks of a vocabulary file.

    Args:
        path: TOML file with ``name`` and ``[tasks.<task>]`` tables.
        tasks: which tasks, None for all.
    """
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.toml"))) or "none"
        raise ConfigError(f"{path.name}: no such label vocabulary; known in {path.parent.name}/: {known}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"{path.name}: not UTF-8 text; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path.name}: not valid TOML: {error}") from error
    tables = content.get("tasks", {})
    if not isinstance(tables, dict):
        raise ConfigError(f"{path.name}: tasks must be tables [tasks.NAME], found a value")
    unknown = [task for task in tasks or () if task not in tables]
    if unknown:
        raise ConfigError(f"{path.name}: unknown task {unknown[0]!r}; this vocabulary has {', '.join(tables)}")
    return tuple(_task(path, name, tables[name]) for name in tables if tasks is None or name in tasks)


def _task(path: Path, name: str, table: object) -> TaskSpec:
    if not isinstance(table, dict):
        raise ConfigError(f"{path.name}: [tasks] {name} must be a table [tasks.{name}], found a value")
    labels = table.pop("labels", {})
    if not isinstance(labels, dict):
        raise ConfigError(f"{path.name}: [tasks.{name}.labels] must be a table of value = text")
    try:
        return TaskSpec.model_validate(
            {"name": name, **table, "labels": [{"value": value, "text": text} for value, text in labels.items()]}
        )
    except ValidationError as error:
        raise ConfigError(f"{path.name}: task {name}: {first_problem(error)}") from error
