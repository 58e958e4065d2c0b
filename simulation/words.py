"""The diagnosis in each hospital's own words: every wording is a task of its own, and its texts alone connect it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from modaltune.data.tcga import DIAGNOSES, TcgaTables
from modaltune.errors import ConfigError
from modaltune.tasks.vocabulary import load_vocabulary, vocabulary_file

OWN_WORDS = "own-words"


def words_vocabulary(cohort: str) -> str:
    """Name of the vocabulary that holds a cohort's wordings, each with its labels in the order of ``DIAGNOSES``."""
    return f"words/{cohort.lower()}"


def in_own_words(tables: TcgaTables) -> TcgaTables:
    """The same cases with the diagnosis in every wording, and no other task.

    Raises:
        ConfigError: nobody has worded the diagnoses of this cohort.
    """
    wordings = load_vocabulary(vocabulary_file(words_vocabulary(tables.cohort)))
    known = DIAGNOSES[tables.cohort]
    columns = {
        task.name: tables.cases["diagnosis"].map(dict(zip(known, task.values, strict=True))) for task in wordings
    }
    texts = {name: column.astype(object).where(column.notna(), None) for name, column in columns.items()}
    return replace(tables, cases=tables.cases.assign(**texts), tasks=tuple(columns))


def own_words(hospitals: Sequence[str], wordings: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Hospital -> its wording, in the order of both."""
    if len(hospitals) > len(wordings):
        raise ConfigError(f"{len(hospitals)} hospitals, but {len(wordings)} wordings; choose fewer with --hospitals")
    return {hospital: (wording,) for hospital, wording in zip(hospitals, wordings, strict=False)}
