from __future__ import annotations

from pathlib import Path

import pytest

from modaltune.data.gene_names import GeneMap, approved_names, is_ensembl, read_gene_map, unknown_names
from tests.data import tool_files as tools


@pytest.fixture
def genes(tmp_path: Path) -> GeneMap:
    tools.hgnc(tmp_path / "hgnc_complete_set.txt")
    return read_gene_map(tmp_path / "hgnc_complete_set.txt", where="H1: hgnc_complete_set.txt")


@pytest.mark.parametrize(
    ("name", "symbol"),
    [
        ("TP53", "TP53"),
        ("p53", "TP53"),
        ("ESR", "ESR1"),
        ("ENSG00000141510", "TP53"),
        ("ENSG00000141510.18", "TP53"),
        ("ENSG00000141510.18_PAR_Y", None),  # its reads are counted on X
        ("ENSG00000999999", None),
        ("MLL2", "KMT2D"),  # a previous symbol of one gene, an alias of another: the previous one wins
        ("MLL4", "MLL4"),  # an alias of two genes says nothing
        ("LOC1001", "LOC1001"),
    ],
)
def test_names_become_approved_symbols(name: str, symbol: str | None, genes: GeneMap) -> None:
    assert approved_names([name], genes) == [symbol]


def test_a_former_symbol_stays_when_the_approved_one_is_measured_too(genes: GeneMap) -> None:
    assert approved_names(["p53", "TP53"], genes) == ["p53", "TP53"]


def test_names_that_hgnc_does_not_know_are_counted(genes: GeneMap) -> None:
    assert unknown_names(["TP53", "p53", "ENSG00000141510.3", "LOC1001", "ENSG00000999999"], genes) == 2


def test_only_human_gene_ids_are_ensembl_ids() -> None:
    names = ["ENSG00000141510", "ENSG00000141510.2", "ENSMUSG00000059552", "ENST00000269305", "TP53"]
    assert [is_ensembl(name) for name in names] == [True, True, False, False, False]
