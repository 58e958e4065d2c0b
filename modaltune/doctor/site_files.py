"""The parts of a site folder, each read when a check first asks for it, so that one broken part hides no other."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import pandas as pd

from modaltune.data.case_table import canonical_cases, clean_columns, task_columns
from modaltune.data.follow_up import OVERALL
from modaltune.data.site import (
    SiteConfig,
    hash_split,
    read_cases,
    read_expression,
    read_site_config,
    slide_table,
    with_splits,
)
from modaltune.data.tables import identifiers, local_name, read_table
from modaltune.errors import CaseTableError, ModalityError
from modaltune.federation.study import Study
from modaltune.tasks.vocabulary import configs_folder, load_vocabulary


class SiteFiles:
    """A site folder as the doctor's checks see it.

    Every property raises the error of its own part only, as training would; rows are in the order of the files. Values
    of the cases table are checked column by column under row numbers in place of identifiers, so that neither a broken
    identifier nor another broken column hides them.

    Attributes:
        folder: the site folder.
        study: what it is held against, or None.
    """

    def __init__(self, folder: Path, study: Study | None = None) -> None:
        self.folder = folder
        self.study = study

    @cached_property
    def config(self) -> SiteConfig:
        """The content of ``site.toml``."""
        return read_site_config(self.folder)

    @property
    def minimum(self) -> int:
        """Counts below it do not leave."""
        of_study = self.study.privacy.min_cell if self.study is not None else 1
        return max(of_study, self.config.policy.min_cell)

    @cached_property
    def vocabulary(self) -> Mapping[str, tuple[str, ...]]:
        """Task -> its label values: the study's, or those of all shipped vocabularies."""
        if self.study is not None:
            tasks = self.study.tasks
        else:
            shipped = sorted((configs_folder() / "labels").glob("*.toml"))
            tasks = tuple(task for path in shipped for task in load_vocabulary(path))
        values: dict[str, dict[str, None]] = {}
        for task in tasks:
            if task.kind != "survival":
                values.setdefault(task.name, {}).update(dict.fromkeys(task.values))
        return {task: tuple(known) for task, known in values.items()}

    def where(self, file: str) -> str:
        """What findings call a file."""
        return f"site {self.config.name}: {file}"

    @cached_property
    def cases(self) -> pd.DataFrame:
        """The cases table with its local column names."""
        return read_cases(self.folder, self.config)

    @cached_property
    def case_ids(self) -> pd.Series:
        """Identifier of every case, unique; the index counts the rows of the file from 0."""
        return self._ids(unique=True)

    def values(self, *columns: str, task: str | None = None) -> pd.DataFrame:
        """Some canonical columns of the cases table, checked and mapped; those that the table lacks are left out.

        Args:
            columns: ``split``, ``age`` or ``sex``.
            task: a task whose labels are wanted; they are not held against the vocabulary.
        Returns:
            Index as of :attr:`case_ids`.
        """
        tasks = () if task is None else (task,)
        wanted = [*columns, *(column for task in tasks for column in task_columns(task))]
        table = self._canonical(*wanted, tasks=tasks)
        numbered = table[[name for name in wanted if name in table]].assign(
            case_id=pd.Series(range(len(table)), index=table.index, dtype="string")
        )
        config = self.config
        where = self.where(config.paths.cases)
        found = clean_columns(numbered, site=config.name, where=where, tasks=tasks, codes=config.labels, labels={})
        return found.drop(columns="case_id")

    @cached_property
    def split(self) -> pd.Series | None:
        """The split of every case, missing where a splits file does not list it.

        None when it is drawn by a study's digest and there is no study.
        """
        found = self.values("split")
        if self.config.splits is not None:
            found = found.set_axis(pd.Index(self.case_ids))
            return self.case_ids.map(with_splits(self.folder, self.config, found)["split"])
        if "split" in found:
            return found["split"]
        if self.study is None:
            return None
        salt = self.study.digest
        return self.case_ids.map(lambda case: hash_split(str(case), salt))

    @cached_property
    def expression(self) -> pd.DataFrame | None:
        """``[cases, genes]`` as training reads it, index ``case_id``; None when the site has none."""
        if self.config.paths.expression is None:
            return None
        ids = self._ids(unique=False)  # a repeated identifier is the finding of another check
        if self.config.splits is not None and self.split is not None:
            ids = ids[self.split.notna()]
        return read_expression(self.folder, self.config, pd.Index(ids.unique(), name="case_id"))

    @cached_property
    def slides(self) -> pd.DataFrame | None:
        """The slides table: ``slide_id`` (unique), ``case_id`` and ``file`` as text; None when the site has none."""
        return slide_table(self.folder, self.config)

    def modality(self, name: str) -> pd.DataFrame:
        """The table of a further modality as it is."""
        file = self.config.paths.modalities[name]
        local = self.config.columns.get("case_id", "case_id")
        text = ["case_id", local, "text"]
        return read_table(self.folder / file, where=self.where(file), error=ModalityError, text=text)

    @property
    def modality_names(self) -> list[str]:
        """The modalities that ``site.toml`` names a table for."""
        paths = self.config.paths
        own = {"expression": paths.expression, "slides": paths.slides}
        return [*(name for name, file in own.items() if file is not None), *paths.modalities]

    def cases_with(self, modality: str) -> pd.Series:
        """The case of every row of a modality's table."""
        if modality == "slides":
            return pd.Series(dtype="object") if self.slides is None else self.slides["case_id"]
        if modality == "expression":
            return pd.Series(dtype="object") if self.expression is None else self.expression.index.to_series()
        table, where = self.modality(modality), self.where(self.config.paths.modalities[modality])
        return identifiers(table, self.key(table), where=where, error=ModalityError, unique=True)

    def key(self, table: pd.DataFrame) -> str:
        """Name of the identifier column of a table."""
        return local_name("case_id", self.config.columns, table)

    def _canonical(self, *names: str, tasks: tuple[str, ...] = ()) -> pd.DataFrame:
        """One row a case, with these columns and the identifier under canonical names."""
        wanted = ("case_id", *names, *(["censorship"] if OVERALL in tasks else []))
        local = {name: column for name, column in self.config.columns.items() if name in wanted}
        local |= {name: self.config.columns[name] for name in ("slide_id",) if name in self.config.columns}
        columns = {name: column for name, column in local.items() if column in self.cases}
        return canonical_cases(self.cases, columns=columns, tasks=tasks, where=self.where(self.config.paths.cases))

    def _ids(self, *, unique: bool) -> pd.Series:
        where = self.where(self.config.paths.cases)
        return identifiers(self._canonical(), "case_id", where=where, error=CaseTableError, unique=unique)
