"""Gene names: Ensembl ids and outdated symbols become approved symbols by a local copy of HGNC's table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from modaltune.data.tables import read_table
from modaltune.errors import ExpressionError

HGNC_COLUMNS = ("symbol", "ensembl_gene_id", "prev_symbol", "alias_symbol")

_ENSEMBL = re.compile(r"(ENSG\d{11})(?:\.\d+)?(_PAR_Y)?")


@dataclass(frozen=True, kw_only=True)
class GeneMap:
    """HGNC's table as look-ups.

    Attributes:
        approved: approved symbols.
        ensembl: Ensembl id without version -> approved symbol.
        former: previous or alias symbol -> approved symbol, where that is one symbol and no approved one itself.
    """

    approved: frozenset[str]
    ensembl: Mapping[str, str]
    former: Mapping[str, str]


def read_gene_map(path: Path, *, where: str) -> GeneMap:
    """Read ``hgnc_complete_set.txt``; its columns beyond :data:`HGNC_COLUMNS` are not used."""
    table = read_table(path, where=where, error=ExpressionError, text=HGNC_COLUMNS)
    missing = [name for name in HGNC_COLUMNS if name not in table.columns]
    if missing:
        raise ExpressionError(
            f"{where}: column {missing[0]!r} is missing; expected HGNC's hgnc_complete_set.txt with columns "
            f"{', '.join(HGNC_COLUMNS)}"
        )
    table = table[list(HGNC_COLUMNS)].dropna(subset="symbol")
    approved = frozenset(table["symbol"])
    known = table.dropna(subset="ensembl_gene_id")
    previous = _former(table["symbol"], table["prev_symbol"], approved)
    alias = _former(table["symbol"], table["alias_symbol"], approved)
    return GeneMap(
        approved=approved,
        ensembl=dict(zip(known["ensembl_gene_id"], known["symbol"], strict=True)),
        former=alias | previous,
    )


def is_ensembl(name: str) -> bool:
    """Whether a gene name is a human Ensembl gene id, with or without a version."""
    return _ENSEMBL.fullmatch(name) is not None


def approved_names(names: Sequence[str], genes: GeneMap) -> list[str | None]:
    """The approved symbol of each gene; None for one to leave out.

    Left out are Ensembl ids that HGNC does not list, and the copies on Y of genes that X and Y share (``_PAR_Y``):
    their reads are counted on X. A symbol that HGNC does not know stays as it is. A former symbol whose approved one
    is measured too stays as well: it may mean another gene.
    """
    measured = set(names)

    def approved(name: str) -> str | None:
        if found := _ENSEMBL.fullmatch(name):
            return None if found[2] else genes.ensembl.get(found[1])
        now = genes.former.get(name, name)
        return name if now in measured else now

    return [approved(name) for name in names]


def unknown_names(names: Iterable[str], genes: GeneMap) -> int:
    """How many names HGNC knows neither as Ensembl id nor as present or former symbol."""
    known = genes.approved | genes.former.keys()
    return sum((_ensembl_id(name) or name) not in genes.ensembl and name not in known for name in names)


def _ensembl_id(name: str) -> str | None:
    found = _ENSEMBL.fullmatch(name)
    return found[1] if found else None


def _former(symbols: pd.Series, lists: pd.Series, approved: frozenset[str]) -> dict[str, str]:
    """Former symbol -> approved one, from ``A|B`` lists; those of several genes are left out."""
    pairs = pd.DataFrame({"symbol": symbols, "former": lists.str.split("|")}).explode("former").dropna()
    pairs["former"] = pairs["former"].str.strip()
    pairs = pairs[~pairs["former"].isin(approved)].drop_duplicates()
    single = pairs[~pairs["former"].duplicated(keep=False)]
    return dict(zip(single["former"], single["symbol"], strict=True))
