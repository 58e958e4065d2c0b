"""TCGA by hospital: every hospital of a cohort becomes a site folder of its own."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modaltune.data.case_table import labelled
from modaltune.data.cohort import Bag
from modaltune.data.genesets import restrict, write_gmt
from modaltune.data.tcga import PATHWAYS, HospitalTables, TcgaTables, hospital_tables, pathways_file, read_tcga
from modaltune.errors import ConfigError
from simulation.sites import check_overrides, class_and_event, draw_split, require_known, write_site
from simulation.words import in_own_words

GENE_SETS_FILE = "gene_sets.gmt"
MINIMUM_GENES = 3
"""Measured genes that a gene set needs."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    hospital: str
    tasks: tuple[str, ...]
    cases: pd.DataFrame
    expression: pd.DataFrame | None
    bags: Mapping[str, Bag]


def build_tcga(
    data: Path,
    cohort: str,
    out: Path,
    *,
    hospitals: Sequence[str] | None = None,
    seed: int = 0,
    tasks: Mapping[str, Collection[str]] | None = None,
    without: Mapping[str, Collection[str]] | None = None,
    expression: str = "rna",
    words: bool = False,
    gene_sets: bool = False,
) -> list[Path]:
    """Write one site folder a hospital, and ``gene_sets.gmt`` beside them.

    Args:
        data: folder of the TCGA tables.
        cohort: e.g. ``BRCA``.
        out: folder that receives the site folders.
        hospitals: which hospitals, default all with an eligible case.
        seed: draws the split, 65/10/25 inside each hospital, stratified by diagnosis and event; it depends on nothing
            else, so experiments that take tasks or modalities away share their splits.
        tasks: hospital -> tasks it labels, default all of the cohort that it has labels for.
        without: hospital -> modalities taken away, ``expression`` or ``slides``.
        expression: name of the expression table.
        words: the diagnosis in several wordings in place of all tasks, see :mod:`simulation.words`.
        gene_sets: where a hospital keeps its expression, there must be gene sets.
    Returns:
        The site folders, in the order of the hospitals.
    Raises:
        ConfigError: unknown cohort, hospital, task or modality, a hospital left without task or usable case, or gene
            sets that are absent or match no gene.
        DataError: the tables are absent or broken.
    """
    tables = read_tcga(data, cohort, expression=expression)
    tables = in_own_words(tables) if words else tables
    chosen = tuple(hospitals) if hospitals is not None else tables.hospitals
    require_known("hospital", chosen, tables.hospitals)
    tasks, without = tasks or {}, without or {}
    check_overrides(tables.hospitals, tables.tasks, tasks, without)
    plans = [_plan(tables, name, seed, tasks.get(name), without.get(name, ())) for name in chosen]
    sets = restrict(tables.gene_sets, list(tables.expression.columns), MINIMUM_GENES)
    if any(plan.expression is not None for plan in plans) and (gene_sets or tables.gene_sets):
        require_gene_sets(data, sets)
    if sets:
        write_gmt(out / GENE_SETS_FILE, sets)
    return [_write(plan, out, tables.cohort) for plan in plans]


def require_gene_sets(data: Path, sets: Collection[str]) -> None:
    """Refuse expression without gene sets: no model would read it.

    Args:
        data: folder of the TCGA tables.
        sets: gene sets that have enough measured genes.
    """
    path = pathways_file(data)
    if path is None:
        raise ConfigError(
            f"{data}: neither {' nor '.join(PATHWAYS)}, and models read expression by gene sets; put some there as"
            f" {PATHWAYS[-1]}, for instance MSigDB's Hallmark and Reactome as symbols (docs/data.md)"
        )
    if not sets:
        raise ConfigError(
            f"{path}: no gene set has {MINIMUM_GENES} genes of the expression table; name genes as that table does,"
            " by symbol in the tables of modaltune-simulate fetch"
        )


def _plan(
    tables: TcgaTables, hospital: str, seed: int, tasks: Collection[str] | None, without: Collection[str]
) -> _Plan:
    share = hospital_tables(tables, hospital)
    split = draw_split(class_and_event(share.cases), seed, tables.cohort, hospital)
    expression = None if "expression" in without else share.expression
    bags = {} if "slides" in without else share.bags
    usable = _usable(share, without)
    if not usable.any():
        raise ConfigError(
            f"{tables.cohort}: hospital {hospital} is left without a usable case "
            f"(it has {' and '.join(_modalities(share))}); leave it out or keep a modality"
        )
    cases = share.cases[usable].assign(split=split[usable])
    has = tuple(task for task in tables.tasks if labelled(cases, task).any())
    wanted = has if tasks is None else tuple(task for task in tables.tasks if task in tasks)
    lacking = [task for task in wanted if task not in has]
    if lacking or not wanted:
        raise ConfigError(
            f"{tables.cohort}: hospital {hospital} has no labelled case for {lacking[0] if lacking else 'any task'}; "
            f"it has labels for {', '.join(has) or 'none'}"
        )
    return _Plan(hospital=hospital, tasks=wanted, cases=cases, expression=expression, bags=bags)


def _usable(share: HospitalTables, without: Collection[str]) -> NDArray[np.bool_]:
    """Which cases keep a modality."""
    rows = () if "expression" in without or share.expression is None else share.expression.index
    usable: NDArray[np.bool_] = share.cases.index.isin([*(() if "slides" in without else share.bags), *rows])
    return usable


def left_out(tables: TcgaTables, without: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """A sentence for each hospital that loses cases with the modalities that are taken away."""
    lost = {name: int((~_usable(hospital_tables(tables, name), names)).sum()) for name, names in without.items()}
    return tuple(
        f"{count} cases: left out at {name}: nothing but {' and '.join(without[name])}, which is taken away."
        for name, count in lost.items()
        if count
    )


def _modalities(share: HospitalTables) -> list[str]:
    found = {"expression": share.expression is not None, "slides": bool(share.bags)}
    return [name for name, present in found.items() if present]


def _write(plan: _Plan, out: Path, cohort: str) -> Path:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", plan.hospital).strip("-")
    return write_site(
        out / name,
        name=name,
        tasks=plan.tasks,
        cases=plan.cases,
        expression=plan.expression,
        bags={case: [(f"{case}-IMG", bag)] for case, bag in plan.bags.items()},
        encoder=f"tcga-{cohort.lower()}-image-tokens",
    )
