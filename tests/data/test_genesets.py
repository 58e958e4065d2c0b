from __future__ import annotations

import json
from pathlib import Path

import pytest

from modaltune.data.genesets import read_gene_sets, restrict, write_gmt
from modaltune.errors import ConfigError

SETS = {"CELL CYCLE": ("CDK1", "CCNB1", "TP53"), "APOPTOSIS": ("TP53", "BAX", "BCL2")}


def test_gmt_survives_writing_and_reading(tmp_path: Path) -> None:
    write_gmt(tmp_path / "sets.gmt", SETS)
    assert read_gene_sets(tmp_path / "sets.gmt") == SETS
    assert list(read_gene_sets(tmp_path / "sets.gmt")) == list(SETS)


def test_json_and_gmt_give_the_same_sets(tmp_path: Path) -> None:
    (tmp_path / "sets.json").write_text(json.dumps(SETS))
    assert read_gene_sets(tmp_path / "sets.json") == SETS


def test_msigdb_json_gives_the_same_sets(tmp_path: Path) -> None:
    sets = {name: {"systematicName": "M1", "pmid": "", "geneSymbols": genes} for name, genes in SETS.items()}
    (tmp_path / "sets.json").write_text(json.dumps(sets))
    assert read_gene_sets(tmp_path / "sets.json") == SETS


def test_repeats_and_blanks_inside_a_set_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "sets.gmt").write_text("A\tsource\tX\t\tY\tX\n\nB\t\tZ\n")
    assert read_gene_sets(tmp_path / "sets.gmt") == {"A": ("X", "Y"), "B": ("Z",)}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("sets.csv", "A,B", "unknown gene-set format"),
        ("sets.gmt", "", "no gene set"),
        ("sets.gmt", "A\tonly a description\n", "line 1 has 2"),
        ("sets.gmt", "A\t\tX\nA\t\tY\n", "'A' occurs twice"),
        ("sets.gmt", "A\t\t\t\n", "'A' has no gene"),
        ("sets.json", "{", "not valid JSON"),
        ("sets.json", '["X"]', "one JSON object"),
        ("sets.json", "3", "one JSON object"),
        ("sets.json", '{"A": "X"}', "list of gene symbols"),
        ("sets.json", '{"A": {"X": 1}}', "list of gene symbols"),
        ("sets.json", '{"A": ["X"], "A": ["Y"]}', "occurs twice"),
        ("sets.json", "{}", "no gene set"),
    ],
)
def test_a_malformed_file_is_one_clear_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_gene_sets(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_an_absent_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such gene-set file"):
        read_gene_sets(tmp_path / "sets.gmt")
    (tmp_path / "sets.gmt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_gene_sets(tmp_path / "sets.gmt")


def test_restriction_keeps_set_order_and_panel_order() -> None:
    panel = ["BCL2", "TP53", "BAX", "CDK1"]
    assert restrict(SETS, panel, minimum=2) == {"CELL CYCLE": ("TP53", "CDK1"), "APOPTOSIS": ("BCL2", "TP53", "BAX")}
    assert list(restrict(SETS, panel, minimum=2)) == ["CELL CYCLE", "APOPTOSIS"]


def test_sets_with_too_few_measured_genes_are_dropped() -> None:
    assert list(restrict(SETS, ["BCL2", "TP53", "BAX", "CDK1"])) == ["APOPTOSIS"]
    assert restrict(SETS, []) == {}
