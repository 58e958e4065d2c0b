"""Gene sets (pathways): named lists of gene symbols, read from GMT or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from modaltune.errors import ConfigError
from modaltune.storage import write_text


def read_gene_sets(path: Path) -> dict[str, tuple[str, ...]]:
    """Read gene sets in the order of the file.

    Args:
        path: ``.gmt`` (tab-separated: name, description, genes) or ``.json`` (``{name: [genes]}``, or MSigDB's
            ``{name: {"geneSymbols": [genes], ...}}``).
    Returns:
        Set name -> its genes, without repeats, in the order of the file.
    Raises:
        ConfigError: the file is absent, malformed, empty, or names a set twice.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such gene-set file; expected .gmt (name, description, genes) or .json")
    readers = {".gmt": _read_gmt, ".json": _read_json}
    if path.suffix.lower() not in readers:
        raise ConfigError(f"{path}: unknown gene-set format {path.suffix!r}; choose from {', '.join(sorted(readers))}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a UTF-8 text file; save the gene sets as UTF-8") from error
    sets: dict[str, tuple[str, ...]] = {}
    for name, genes in readers[path.suffix.lower()](path, text):
        if name in sets:
            raise ConfigError(f"{path}: gene set {name!r} occurs twice; keep one of them")
        if not genes:
            raise ConfigError(f"{path}: gene set {name!r} has no gene; remove it")
        sets[name] = genes
    if not sets:
        raise ConfigError(f"{path}: no gene set found; expected at least one")
    return sets


def write_gmt(path: Path, sets: Mapping[str, Iterable[str]]) -> None:
    """Write gene sets as GMT with an empty description, atomically, in the order given."""
    write_text(path, "".join("\t".join([name, "", *genes]) + "\n" for name, genes in sets.items()))


def restrict(sets: Mapping[str, Iterable[str]], genes: Sequence[str], minimum: int = 3) -> dict[str, tuple[str, ...]]:
    """Keep the measured genes of each set.

    Args:
        sets: set name -> genes.
        genes: the measured panel; its order becomes the order of genes in every set.
        minimum: sets with fewer measured genes are dropped.
    Returns:
        Set name -> measured genes, sets in the order given.
    """
    position = {gene: index for index, gene in enumerate(genes)}
    kept: dict[str, tuple[str, ...]] = {}
    for name, members in sets.items():
        measured = sorted({gene for gene in members if gene in position}, key=position.__getitem__)
        if len(measured) >= minimum:
            kept[name] = tuple(measured)
    return kept


def _read_gmt(path: Path, text: str) -> Iterable[tuple[str, tuple[str, ...]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        fields = [field.strip() for field in line.split("\t")]
        if not any(fields):
            continue
        if len(fields) < 3 or not fields[0]:
            raise ConfigError(
                f"{path}: line {number} has {len(fields)} tab-separated fields; expected name, description, then genes"
            )
        yield fields[0], _unique(fields[2:])


def _read_json(path: Path, text: str) -> Iterable[tuple[str, tuple[str, ...]]]:
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON at line {error.lineno}; expected {{name: [genes]}}") from error
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise ConfigError(f"{path}: expected one JSON object {{name: [genes]}}")
    for name, value in pairs:
        nested = isinstance(value, list) and bool(value) and all(isinstance(pair, tuple) for pair in value)
        genes = dict(value).get("geneSymbols") if nested else value
        if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
            raise ConfigError(f"{path}: gene set {name!r} must be a list of gene symbols")
        yield name, _unique(gene.strip() for gene in genes)


def _unique(genes: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(gene for gene in genes if gene))
