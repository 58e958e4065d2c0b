"""The parts of a site folder, each read when a check first asks for it, so that one broken part hides no other."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import pandas as pd

from modaltune.data.case_table import clean_cases, task_columns
from modaltune.data.site import SLIDE_COLUMNS, SiteConfig, hash_split, read_site_config
from modaltune.data.tables import identifiers, read_table
from modaltune.errors import CaseTableError, DataError, ExpressionError, FeatureFileError, ModalityError
from modaltune.federation.study import Study
from modaltune.tasks.vocabulary import configs_folder, load_vocabulary

ROW = "row number"


class SiteFiles:
    """A site folder as the doctor's checks see it.

    Every property raises the error of its own part only; rows are in the order of the files. Values of the cases table
    are checked column by column under row numbers in place of identifiers, so that neither a broken identifier nor
    another broken column hides them.

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
        config = self.config
        coded = ("case_id", *(column for task in config.tasks if task != "survival" for column in task_columns(task)))
        text = [config.columns.get(name, name) for name in coded]
        path = self.folder / config.paths.cases
        return read_table(path, where=self.where(config.paths.cases), error=CaseTableError, text=text)

    @cached_property
    def case_ids(self) -> pd.Series:
        """Identifier of every row of the cases table, unique."""
        return self._ids(self.cases, self.config.paths.cases, CaseTableError)

    def values(self, *columns: str, task: str | None = None) -> pd.DataFrame:
        """Some canonical columns of the cases table, checked and mapped; those that the table lacks are left out.

        Args:
            columns: ``split``, ``age`` or ``sex``.
            task: a task whose labels are wanted; they are not held against the vocabulary.
        """
        config = self.config
        wanted = (*columns, *(() if task is None else task_columns(task)))
        local = {name: config.columns.get(name, name) for name in wanted}
        local = {name: column for name, column in local.items() if column in self.cases}
        rows = pd.Series(range(len(self.cases)), index=self.cases.index, dtype="string")
        table = self.cases[list(local.values())].assign(**{ROW: rows})
        found = clean_cases(
            table,
            site=config.name,
            where=self.where(config.paths.cases),
            tasks=() if task is None else (task,),
            columns=local | {"case_id": ROW},
            codes=config.labels,
            labels={},
        )
        return found.set_axis(self.cases.index)

    @cached_property
    def split(self) -> pd.Series | None:
        """The split of every row; None when it is drawn by a study's digest and there is no study."""
        found = self.values("split")
        if "split" in found:
            return found["split"]
        if self.study is None:
            return None
        salt = self.study.digest
        return self.case_ids.map(lambda case: hash_split(str(case), salt))

    @cached_property
    def expression(self) -> pd.DataFrame | None:
        """The expression table as it is; None when the site has none."""
        return self._table(self.config.paths.expression, ExpressionError)

    @cached_property
    def slides(self) -> pd.DataFrame | None:
        """The slides table: ``slide_id`` (unique), ``case_id`` and ``file`` as text; None when the site has none."""
        file = self.config.paths.slides
        table = self._table(file, FeatureFileError, SLIDE_COLUMNS)
        if table is None:
            return None
        where = self.where(str(file))
        return pd.DataFrame(
            {
                name: identifiers(table, name, where=where, error=FeatureFileError, unique=name == "slide_id")
                for name in SLIDE_COLUMNS
            }
        )

    def modality(self, name: str) -> pd.DataFrame:
        """The table of a further modality as it is."""
        table = self._table(self.config.paths.modalities[name], ModalityError, ("text",))
        assert table is not None  # the path of a modality is never None
        return table

    @property
    def modality_names(self) -> list[str]:
        """The modalities that ``site.toml`` names a table for."""
        paths = self.config.paths
        own = {"expression": paths.expression, "slides": paths.slides}
        return [*(name for name, file in own.items() if file is not None), *paths.modalities]

    def cases_with(self, modality: str) -> pd.Series:
        """The case of every row of a modality's table."""
        paths = self.config.paths
        if modality == "slides":
            return pd.Series(dtype="object") if self.slides is None else self.slides["case_id"]
        if modality == "expression" and self.expression is not None:
            return self._ids(self.expression, str(paths.expression), ExpressionError)
        return self._ids(self.modality(modality), paths.modalities[modality], ModalityError)

    def key(self, table: pd.DataFrame) -> str:
        """Name of the identifier column of a table."""
        local = self.config.columns.get("case_id", "case_id")
        return local if local in table.columns else "case_id"

    def _table(self, file: str | None, error: type[DataError], text: tuple[str, ...] = ()) -> pd.DataFrame | None:
        if file is None:
            return None
        local = self.config.columns.get("case_id", "case_id")
        return read_table(self.folder / file, where=self.where(file), error=error, text=["case_id", local, *text])

    def _ids(self, table: pd.DataFrame, file: str, error: type[DataError]) -> pd.Series:
        key, where = self.key(table), self.where(file)
        if key not in table.columns:  # names of other columns are patients where somebody wrote genes x cases
            raise error(f"{where}: column {key!r} is missing; expected one row a case, with its identifier in {key!r}")
        return identifiers(table, key, where=where, error=error, unique=True)
