"""From a study file to its cells: one experiment each, with a name, complete settings and their digest."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from pydantic import ValidationError

from modaltune import __version__
from modaltune.errors import ConfigError
from modaltune.storage import canonical_json, digest_text
from modaltune.tasks.vocabulary import load_vocabulary, vocabulary_file
from simulation.studies.spec import Axis, DataSpec, StudyFile, Table
from simulation.study import TABLES, checked_settings, problem

_LONGEST_NAME = 120
_LATER = (("labelled", 1.0), ("cancers", "together"))
"""Keys that younger versions brought, with the value that they stand for: digests are as they were without them."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One experiment: a place in the grid and a seed.

    Attributes:
        study: name of the study.
        title: of the study.
        choices: axis -> what this cell takes there, as text or number.
        seed: of split, weights and batches.
        methods: what is scored.
        data: the checked :class:`DataSpec`, as plain values.
        settings: complete tables (``simulation.study.TABLES``), where given.
    """

    study: str
    title: str
    choices: Mapping[str, str | float]
    seed: int
    methods: tuple[str, ...]
    data: Mapping[str, Any]
    settings: Mapping[str, Table]

    @property
    def name(self) -> str:
        """Name of its folder: ``wire=int8,seed=0``."""
        words = {**{axis.rpartition(".")[2]: value for axis, value in self.choices.items()}, "seed": self.seed}
        whole = words if len(words) == len(self.choices) + 1 else {**self.choices, "seed": self.seed}
        return ",".join(f"{_word(axis)}={_word(value)}" for axis, value in whole.items())

    @property
    def digest(self) -> str:
        """SHA-256 of everything that its numbers depend on, but for the data itself."""
        about = {name: value for name, value in asdict(self).items() if name not in ("title", "choices")}
        about["data"] = {name: value for name, value in self.data.items() if (name, value) not in _LATER}
        cohorts = (*self.data["cohorts"], *self.data["probe"]) or ("synthetic",)
        labels = {name: [task.model_dump() for task in load_vocabulary(vocabulary_file(name))] for name in cohorts}
        return digest_text(canonical_json(about | {"version": __version__, "labels": labels}))

    @property
    def spec(self) -> DataSpec:
        """Its data."""
        return DataSpec.model_validate(self.data)


def expand(study: StudyFile) -> list[Cell]:
    """All cells, seeds innermost.

    Raises:
        ConfigError: a setting is unknown or out of range, or two cells have the same name.
    """
    cells = []
    for places in product(*(tuple(_places(axis)) for axis in study.axes)):
        tables: dict[str, Table] = {"data": dict(study.data)} | {name: dict(getattr(study, name)) for name in TABLES}
        for _, _, changes in places:
            for table, change in changes.items():
                if table not in tables:
                    raise ConfigError(f"axis sets {table!r}; the tables are {', '.join(tables)}")
                tables[table] |= copy.deepcopy(change)
        choices = {axis: label for axis, label, _ in places}
        where = f"study {study.name}" + "".join(f", {axis} = {label}" for axis, label in choices.items())
        data, settings = _checked(tables, where)
        cells += [
            Cell(
                study=study.name,
                title=study.title or study.name,
                choices=choices,
                seed=seed,
                methods=tuple(dict.fromkeys(("federated", *study.methods))),
                data=data,
                settings=settings,
            )
            for seed in study.seeds
        ]
    names = [cell.name for cell in cells]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"study {study.name}: two cells are called {twice[0]!r}; give the variants other labels")
    if long := [name for name in names if len(name) > _LONGEST_NAME]:
        raise ConfigError(
            f"study {study.name}: the name {long[0]!r} is too long for a folder; use variants with labels"
        )
    return cells


def select(cells: Sequence[Cell], pattern: str | None) -> list[Cell]:
    """The cells whose name matches a pattern with ``*``, or that have all the choices it names; None = all."""
    if pattern is None:
        return list(cells)
    named = {*pattern.split(",")}
    chosen = [cell for cell in cells if fnmatchcase(cell.name, pattern) or named <= {*cell.name.split(",")}]
    if not chosen:
        raise ConfigError(f"--only {pattern!r} matches no cell; the first of {len(cells)} is {cells[0].name!r}")
    return chosen


def _places(axis: Axis) -> Iterator[tuple[str, str | float, Mapping[str, Table]]]:
    """Axis name, label and changed settings of each place on an axis."""
    for label, changes in axis.variants.items():
        yield axis.name, label, changes
    table, _, key = axis.name.partition(".")
    for value in axis.values:
        yield axis.name, _label(value), {table: {key: value}}


def _label(value: Any) -> str | float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, list | tuple):
        return "-".join(str(_label(part)) for part in value) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _word(value: object) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(value)).strip("-") or "none"


def _checked(tables: Mapping[str, Table], where: str) -> tuple[dict[str, Any], dict[str, Table]]:
    """The data, checked, and the settings: those of the kind of data, changed by the study's."""
    try:
        data = DataSpec.model_validate(tables["data"])
    except ValidationError as error:
        raise ConfigError(f"{where}: [data] {problem(error, DataSpec)}") from error
    return data.model_dump(mode="json"), checked_settings(data.kind, tables, where)
