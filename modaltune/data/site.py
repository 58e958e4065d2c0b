"""A hospital's folder: ``site.toml`` and the files that it names become one validated cohort."""

from __future__ import annotations

import hashlib
import logging
import os
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from modaltune.data.bags import BagFiles, SlideFile
from modaltune.data.case_table import CANONICAL, clean_cases, labelled, task_columns
from modaltune.data.clinical import IDENTIFIERS
from modaltune.data.cohort import Bag, Cohort
from modaltune.data.expression import ExpressionConfig, load_expression
from modaltune.data.follow_up import event_meaning, events_live_longer, follow_up_columns, is_survival
from modaltune.data.slide_table import absent_files, read_slides, shared_files
from modaltune.data.splits import SplitsConfig, load_splits
from modaltune.data.tables import clean_numbers, clean_texts, local_name, of_cases, read_table, rows
from modaltune.errors import CaseTableError, FeatureFileError, LabelError, ModalityError, SiteFolderError

SITE_FILE = "site.toml"
STATE_FOLDER = ".state"
"""Of a site folder: what the hospital's programs remember between rounds, unless they are told another place."""
HASH_SPLIT = {"train": 0.65, "val": 0.10, "test": 0.25}
NO_TASKS = {*CANONICAL} - {"diagnosis", "stage", "grade"}
"""Columns of the cases table whose meaning is fixed: survival is the task of ``time_months`` and ``event``."""
EVENT_NAMES = ("event", "death", "dead", "decease", "vital")

logger = logging.getLogger(__name__)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class SitePaths(BaseModel):
    """Files of a site, relative to its folder; an absent key is an absent modality.

    ``modalities`` names the tables of further ones: ``case_id`` and ``text``, or ``case_id`` and numeric columns.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cases: str = "cases.parquet"
    expression: str | None = None
    slides: str | None = None
    features: str | None = None
    modalities: dict[Name, str] = {}

    @model_validator(mode="after")
    def _slides_with_features(self) -> SitePaths:
        if (self.slides is None) != (self.features is None):
            raise ValueError("'slides' and 'features' go together: give both or neither")
        return self


class SitePolicy(BaseModel):
    """What a site allows to leave."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_cell: int = Field(default=5, ge=1)


class SiteFeatures(BaseModel):
    """What feature files do not state themselves.

    Attributes:
        patch_size_level0: patch edge in level-0 pixels, for ``.pt`` files and HDF5 without attributes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    patch_size_level0: int | None = Field(default=None, ge=1)


class SiteCompute(BaseModel):
    """Where this site trains.

    Attributes:
        device: ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda`` or ``cuda:NUMBER``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")


class SiteConfig(BaseModel):
    """The content of ``site.toml``.

    Attributes:
        name: name of the site in the federation's roster.
        tasks: tasks that the site labels.
        paths: its files.
        columns: canonical column name -> local column name.
        expression: unit and naming of the expression file.
        splits: a splits file; without one the cases table or a hash decides.
        labels: per task, local code -> vocabulary value; ``""`` means unlabelled.
        policy: what may leave.
        features: what feature files do not state themselves.
        compute: where this site trains.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    tasks: tuple[Name, ...] = Field(min_length=1)
    paths: SitePaths = SitePaths()
    columns: dict[str, str] = {}
    expression: ExpressionConfig = ExpressionConfig()
    splits: SplitsConfig | None = None
    labels: dict[str, dict[str, str]] = {}
    policy: SitePolicy = SitePolicy()
    features: SiteFeatures = SiteFeatures()
    compute: SiteCompute = SiteCompute()

    @model_validator(mode="after")
    def _tasks_are_consistent(self) -> SiteConfig:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("'tasks' names a task twice")
        if inputs := sorted(set(self.tasks) & NO_TASKS):
            raise ValueError(f"'tasks' names {inputs[0]}, a column of its own meaning; expected such as diagnosis")
        strangers = sorted(set(self.labels) - set(self.tasks))
        if strangers:
            raise ValueError(f"[labels.{strangers[0]}] is for a task that 'tasks' does not list")
        return self

    @model_validator(mode="after")
    def _events_are_not_censorships(self) -> SiteConfig:
        event, censorship = self.columns.get("event", ""), self.columns.get("censorship", "")
        if event and censorship:
            raise ValueError("[columns] names both 'event' and 'censorship'; keep the one that the table has")
        if "censor" in event.lower():
            raise ValueError(
                f"[columns] event = {event!r}: expected 1 = death; if 1 means censored, write censorship = {event!r}"
            )
        if any(word in censorship.lower() for word in EVENT_NAMES):
            raise ValueError(
                f"[columns] censorship = {censorship!r}: expected 1 = censored; if 1 means death, "
                f"write event = {censorship!r}"
            )
        return self

    @model_validator(mode="after")
    def _expression_is_there(self) -> SiteConfig:
        if self.paths.expression is None and self.expression != ExpressionConfig():
            raise ValueError("[expression] is set but paths.expression is not; name the file or remove the section")
        return self


SECTIONS: dict[str, type[BaseModel]] = {
    "paths": SitePaths,
    "expression": ExpressionConfig,
    "features": SiteFeatures,
    "splits": SplitsConfig,
    "policy": SitePolicy,
    "compute": SiteCompute,
}


def state_folder(folder: Path) -> Path:
    """Where a site keeps what it computes: ``$MODALTUNE_STATE``, or ``.state`` in its folder."""
    return Path(os.environ.get("MODALTUNE_STATE") or folder / STATE_FOLDER)


def read_site_config(folder: Path) -> SiteConfig:
    """Read and check ``site.toml`` of a site folder.

    Raises:
        SiteFolderError: folder or file is absent, not TOML, or has an unknown, missing or wrong key.
    """
    if not os.path.isdir(folder):
        raise SiteFolderError(f"{folder}: no such site folder; make one as docs/data.md describes, or correct the path")
    path = folder / SITE_FILE
    if not path.is_file():
        raise SiteFolderError(f"{folder}: {SITE_FILE} is missing; draft one with: modaltune init {folder.name}")
    try:
        return SiteConfig.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SiteFolderError(f"{path}: not valid TOML ({error}); correct that line") from error
    except ValidationError as error:
        raise SiteFolderError(f"{path}: {_first_problem(error)}") from error


def load_site(
    folder: Path, *, split_salt: str, labels: Mapping[str, Collection[str]] | None = None, with_labels: bool = True
) -> Cohort:
    """Read and check everything in a site folder.

    Args:
        folder: folder with ``site.toml``.
        split_salt: salt of the hash split, used when the cases table has no ``split`` column.
        labels: per task, the vocabulary values; a task that is absent takes any text.
        with_labels: without them no label column is read, and the cohort has no task.
    Returns:
        The usable cases: those with at least one modality. Others are left out and counted in the log.
    Raises:
        DataError: one line that says what is wrong where, and how to correct it.
    """
    config = read_site_config(folder)
    if not with_labels:
        config = config.model_copy(update={"tasks": ()})
    every = load_cases(folder, config, labels or {})
    cases = split_cases(folder, config, every, split_salt)
    expression = read_expression(folder, config, cases.index)
    bags = _load_bags(folder, config, every.index, cases.index)
    modalities = {name: _load_modality(folder, config, name, cases.index) for name in config.paths.modalities}
    tables = [*modalities.values(), *([] if expression is None else [expression])]
    usable = cases.index.isin([*bags, *(case for table in tables for case in table.index)])
    if not usable.any():
        raise SiteFolderError(
            f"site {config.name}: none of {len(cases)} cases has a slide or a row of expression or another modality; "
            "set paths.expression or paths.slides and paths.features in site.toml"
        )
    if not usable.all():
        logger.warning(
            "site %s: %d of %d cases left out: no slide, expression or other modality",
            config.name,
            (~usable).sum(),
            len(usable),
        )
    cases = cases[usable]
    _require_labels(cases, config)
    return Cohort(
        site=config.name, tasks=config.tasks, cases=cases, expression=expression, bags=bags, modalities=modalities
    )


def hash_split(case_id: str, salt: str) -> str:
    """The split of a case: fixed for ever by its identifier and the salt, so new patients move nobody."""
    digest = hashlib.sha256(f"{salt}:{case_id}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    train, val = HASH_SPLIT["train"], HASH_SPLIT["train"] + HASH_SPLIT["val"]
    return "train" if place < train else "val" if place < val else "test"


def _where(config: SiteConfig, file: str) -> str:
    return f"site {config.name}: {file}"


def read_cases(folder: Path, config: SiteConfig) -> pd.DataFrame:
    """The cases table with its local column names."""
    coded = ("case_id", *(column for task in config.tasks if not is_survival(task) for column in task_columns(task)))
    text = [*IDENTIFIERS, *(config.columns.get(name, name) for name in coded)]
    where = _where(config, config.paths.cases)
    return read_table(folder / config.paths.cases, where=where, error=CaseTableError, text=text)


def load_cases(folder: Path, config: SiteConfig, labels: Mapping[str, Collection[str]]) -> pd.DataFrame:
    """The cases table in canonical form; arguments as of :func:`load_site`."""
    where = _where(config, config.paths.cases)
    cases = clean_cases(
        read_cases(folder, config),
        site=config.name,
        where=where,
        tasks=config.tasks,
        columns=config.columns,
        codes=config.labels,
        labels=labels,
    )
    for task in filter(is_survival, config.tasks):
        if events_live_longer(cases, task):
            column, meaning = follow_up_columns(task)[1], event_meaning(task)
            said = "%s: cases with an event live longer than censored ones; check that %s 1 means %s"
            logger.warning(said, where, column, meaning)
    return cases


def split_cases(folder: Path, config: SiteConfig, cases: pd.DataFrame, salt: str) -> pd.DataFrame:
    """The cases that are in a split, and which: as the splits file says, the cases table, or else a hash."""
    cases = with_splits(folder, config, cases)
    if "split" not in cases:
        cases.insert(0, "split", [hash_split(str(case), salt) for case in cases.index])
    return cases


def with_splits(folder: Path, config: SiteConfig, cases: pd.DataFrame) -> pd.DataFrame:
    """The cases that the splits file lists, with its splits."""
    if config.splits is None:
        return cases
    if "split" in cases:
        raise SiteFolderError(
            f"site {config.name}: {config.paths.cases} has a column 'split' and site.toml a section [splits]; "
            "remove one of them"
        )
    slides = slide_table(folder, config)
    owners = None if slides is None else dict(zip(slides["slide_id"], slides["case_id"], strict=True))
    splits = load_splits(
        folder, config.splits, cases=cases.index, slides=owners, columns=config.columns, site=config.name
    )
    listed = cases.index.isin(splits.index)
    if not listed.all():
        logger.warning("site %s: %d cases left out: not in %s", config.name, (~listed).sum(), config.splits.file)
    cases = cases[listed].copy()
    cases.insert(0, "split", splits[cases.index])
    return cases


def read_expression(folder: Path, config: SiteConfig, cases: pd.Index) -> pd.DataFrame | None:
    """The expression rows of known cases, in the order of the cases table."""
    if config.paths.expression is None:
        return None
    return load_expression(
        folder,
        config.paths.expression,
        config.expression,
        cases=cases,
        key=config.columns.get("case_id", "case_id"),
        site=config.name,
        cases_file=config.paths.cases,
    )


def _load_modality(folder: Path, config: SiteConfig, name: str, cases: pd.Index) -> pd.DataFrame:
    """A further modality's rows of known cases: one column ``text``, or numbers."""
    file = config.paths.modalities[name]
    where = _where(config, file)
    text = ["case_id", config.columns.get("case_id", "case_id"), "text"]
    table = read_table(folder / file, where=where, error=ModalityError, text=text)
    key = local_name("case_id", config.columns, table)
    if "text" in table.columns:
        found = clean_texts(table, key=key, where=where, error=ModalityError)
    else:
        found = clean_numbers(table, key=key, where=where, error=ModalityError, noun="measurement")
    return of_cases(found, cases, config.paths.cases, where, ModalityError)


def slide_table(folder: Path, config: SiteConfig) -> pd.DataFrame | None:
    """The slides table: ``slide_id`` (unique), ``case_id`` and ``file`` as text; None when the site has none."""
    if config.paths.slides is None:
        return None
    where = _where(config, config.paths.slides)
    features = folder / str(config.paths.features)
    return read_slides(folder / config.paths.slides, where=where, columns=config.columns, features=features)


def _load_bags(folder: Path, config: SiteConfig, known: pd.Index, cases: pd.Index) -> Mapping[str, tuple[Bag, ...]]:
    """The bags of ``cases``; a slide of a case that is not even ``known`` is an error."""
    text = slide_table(folder, config)
    if text is None or config.paths.features is None:
        return {}
    where = _where(config, str(config.paths.slides))
    features = folder / config.paths.features
    if not os.path.isdir(features):
        raise SiteFolderError(f"site {config.name}: paths.features is not a folder; correct it in site.toml")
    strangers = ~text["case_id"].isin(known)
    if strangers.any():
        raise FeatureFileError(
            f"{where}: case_id is not in {config.paths.cases} in {rows(strangers)}; add the cases or remove the rows"
        )
    absent = absent_files(text["file"], features)
    if absent.any():
        raise FeatureFileError(
            f"{where}: the feature file is absent in {rows(absent)}; expected it inside {config.paths.features}/"
        )
    shared = shared_files(text["file"], features)
    if shared.any():
        raise FeatureFileError(
            f"{where}: one feature file stands for several slides in {rows(shared)}; name each slide's own file"
        )
    files: dict[str, list[SlideFile]] = {}
    for row in text["slide_id"].sort_values().index:
        slide = SlideFile(features / text["file"][row], f"{where}, file of row {row + 1}")
        files.setdefault(text["case_id"][row], []).append(slide)
    wanted = {case: files[case] for case in cases if case in files}
    return BagFiles(wanted, patch_size_level0=config.features.patch_size_level0)


def _require_labels(cases: pd.DataFrame, config: SiteConfig) -> None:
    for task in config.tasks:
        if not labelled(cases, task).any():
            raise LabelError(
                f"site {config.name}: task {task!r} is listed but none of {len(cases)} usable cases has a label; "
                f"fill in {' and '.join(task_columns(task))}, or take {task!r} out of 'tasks' in {SITE_FILE}"
            )


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        known = ", ".join(_known_keys(problem["loc"]))
        return f"unknown key {place!r}; known keys: {known}. Correct its spelling or remove it"
    if problem["type"] == "missing":
        return f"key {place!r} is missing; add it"
    if problem["type"] == "value_error":  # ours: names the keys and the remedy
        message = str(problem["msg"]).removeprefix("Value error, ")
        return f"{place}: {message}" if place else message
    return f"{place}: {problem['msg']}; correct the value"


def _known_keys(place: tuple[int | str, ...]) -> list[str]:
    model = SECTIONS[str(place[0])] if len(place) > 1 else SiteConfig
    return list(model.model_fields)
