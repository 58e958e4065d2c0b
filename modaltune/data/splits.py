"""Splits from a file of their own: a table of cases, or ``splits_k.csv`` as CLAM, MCAT and SurvPath write it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict

from modaltune.data.cohort import SPLITS
from modaltune.data.tables import identifiers, local_name, numbers, read_table, rows
from modaltune.errors import SplitError

logger = logging.getLogger(__name__)


class SplitsConfig(BaseModel):
    """``[splits]`` of ``site.toml``.

    Attributes:
        file: a table with columns ``case_id``, ``split`` and perhaps ``fold``, or with columns ``train``, ``val`` and
            perhaps ``test`` of identifiers.
        ids: whether the identifiers are of cases or of slides.
        fold: the fold to use of a table with several.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    ids: Literal["case", "slide"] = "case"
    fold: int | None = None


def load_splits(
    folder: Path,
    config: SplitsConfig,
    *,
    cases: pd.Index,
    slides: Mapping[str, str] | None,
    columns: Mapping[str, str],
    site: str,
) -> pd.Series:
    """Read which case is in which split.

    Args:
        folder: the site folder.
        config: ``[splits]``.
        cases: the known cases.
        slides: slide -> case, needed where the identifiers are of slides.
        columns: ``[columns]``: canonical column name -> local one, of the identifiers.
        site: name of the site, for messages.
    Returns:
        ``train``, ``val`` or ``test`` of each known case that the file lists, index ``case_id``.
    Raises:
        SplitError: the file is of neither layout, or a case is in two splits.
    """
    where = f"site {site}: {config.file}"
    key = f"{config.ids}_id"
    text = (key, columns.get(key, key), "split", *SPLITS)
    table = read_table(folder / config.file, where=where, error=SplitError, text=text)
    key = local_name(key, columns, table)
    listed = _columns(table, where) if {"train", "val"} <= set(table.columns) else _rows(table, key, config, where)
    if config.ids == "slide":
        if slides is None:
            raise SplitError(f"{where}: ids = 'slide' needs paths.slides in site.toml, which says whose a slide is")
        owner = {slide.removesuffix(".svs"): case for slide, case in slides.items()}
        listed["id"] = listed["id"].str.removesuffix(".svs").map(owner)
    known = listed["id"].isin(cases)
    if not known.any():
        raise SplitError(
            f"{where}: none of {len(listed)} identifiers is a {config.ids} of this site; correct the file, or set "
            "[splits] ids to 'case' or 'slide'"
        )
    if not known.all():
        logger.warning("%s: %d of %d identifiers are not of this site: ignored", where, (~known).sum(), len(known))
    return _one_split_a_case(listed[known], config, where)


def _columns(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """One row an identifier of the columns ``train``, ``val`` and ``test``; ``row`` counts the rows of the file."""
    parts = []
    for split in SPLITS:
        if split in table.columns:
            ids = table[split].astype("string").str.strip()
            given = ids[ids.notna() & (ids != "")]
            parts.append(pd.DataFrame({"id": given.astype(object), "split": split, "row": given.index + 1}))
    listed = pd.concat(parts, ignore_index=True)
    if set(listed["id"].str.lower()) <= {"true", "false"}:
        raise SplitError(f"{where}: columns hold true and false; expected identifiers, as in CLAM's splits_k.csv")
    return listed


def _rows(table: pd.DataFrame, key: str, config: SplitsConfig, where: str) -> pd.DataFrame:
    """One row an identifier of a table with columns ``case_id`` (or ``slide_id``), ``split`` and perhaps ``fold``."""
    if key not in table.columns or "split" not in table.columns:
        raise SplitError(f"{where}: expected columns {key!r} and 'split', or 'train', 'val' and 'test'; rename them")
    if "fold" in table.columns:
        folds = numbers(table["fold"], "fold", where)
        if config.fold is None and folds.nunique() > 1:
            raise SplitError(f"{where}: {folds.nunique()} folds; say which one to use as fold in [splits] of site.toml")
        table = table[folds == config.fold] if config.fold is not None else table
    elif config.fold is not None:
        raise SplitError(f"{where}: no column 'fold', but [splits] of site.toml names one; remove it there")
    if table.empty:
        raise SplitError(f"{where}: no row of fold {config.fold}; correct fold in [splits] of site.toml")
    split = table["split"].astype("string").str.strip()
    unknown = ~split.isin(SPLITS)
    if unknown.any():
        raise SplitError(f"{where}: 'split' is not one of {', '.join(SPLITS)} in {rows(unknown)}; correct it")
    ids = identifiers(table, key, where=where, error=SplitError, unique=False)
    return pd.DataFrame({"id": ids, "split": split.astype(object), "row": table.index + 1})


def _one_split_a_case(listed: pd.DataFrame, config: SplitsConfig, where: str) -> pd.Series:
    first = listed.drop_duplicates("id").set_index("id")
    mixed = listed[listed["split"] != listed["id"].map(first["split"])]
    if not mixed.empty:
        again = mixed.iloc[0]
        begun = first.loc[again["id"]]
        noun = "a case is" if config.ids == "case" else "slides of a case are"
        raise SplitError(
            f"{where}: {noun} in two splits: {begun['split']} in row {begun['row']} and {again['split']} in row "
            f"{again['row']} ({mixed['id'].nunique()} cases in all); keep each case in one"
        )
    return first["split"].rename_axis("case_id")
