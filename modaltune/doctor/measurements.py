"""Checks of expression and further modalities: readable numbers, plausible unit, gene names, coverage of gene sets."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from modaltune.data.expression import LARGEST_LOG2, LINEAR
from modaltune.data.gene_names import is_ensembl
from modaltune.data.genesets import restrict
from modaltune.data.tables import clean_numbers, clean_texts, rows
from modaltune.doctor.finding import Finding, Found, error, ok, warning
from modaltune.doctor.site_files import SiteFiles
from modaltune.errors import DataError, ModalityError
from modaltune.federation.statistics import SMALLEST_SPREAD

SAMPLE = 1000
"""Genes, evenly spaced, by which the unit is judged."""
LOW_COVERAGE = 0.5
_DATE = re.compile(r"\d{1,2}-(Mar|Sep|Sept|Dec|Oct)|(MAR|SEP|DEC)\d{5}|[34]\d{4}", re.IGNORECASE)


def expression(site: SiteFiles) -> Iterator[Finding]:
    """Training can read it; no sample under two identifiers, no gene without differences."""
    genes = site.expression
    if genes is None:
        yield ok("the site has no expression")
        return
    twice = site.case_ids.isin(genes.index[genes.duplicated(keep=False)])
    if twice.any():
        text = f"the same measurements in {rows(twice)} of {site.config.paths.cases}"
        yield warning(text, "one sample under two identifiers? keep one of them")
    flat = int((genes.to_numpy().max(axis=0) == genes.to_numpy().min(axis=0)).sum())
    if flat and len(genes) > 1:
        yield warning(f"{flat} of {genes.shape[1]} genes have the same value in every case", "nothing, or remove them")
    yield ok(f"{len(genes)} cases x {genes.shape[1]} genes, every value a number")


def units(site: SiteFiles) -> Iterator[Finding]:
    """Whether values of no declared unit look like counts or a linear unit, and whether any are z-scores."""
    if site.expression is None:
        yield ok("the site has no expression")
        return
    config = site.config.expression
    if config.unit in LINEAR:
        yield ok(f"{config.unit} as declared, " + ("log2(x + 1) is taken" if config.log else "without logarithm"))
        return
    step = max(1, site.expression.shape[1] // SAMPLE)
    yield _unit(site.expression.iloc[:, ::step].to_numpy(np.float64))


def _unit(values: NDArray[np.float64]) -> Finding:
    low, high = values.min(), values.max()
    if low >= 0 and high > LARGEST_LOG2:
        whole = "raw counts" if np.array_equal(values, np.round(values)) else "TPM or FPKM without a logarithm"
        return warning(f"looks like {whole}", "declare unit and log under [expression] of site.toml")
    if low >= 0 and high <= 1:
        return warning("every value is between 0 and 1: ranks or scaled values", "use the unit that the study states")
    means, deviations = values.mean(axis=0), values.std(axis=0)
    centred = low < 0 and float(np.median(np.abs(means))) < 0.3
    if centred and 0.7 < float(np.median(deviations)) < 1.3:
        return warning(
            "looks like z-scores: each gene has mean 0 and deviation 1",
            "fine if all sites share the reference; z-scores within one site hide how sites differ, "
            "within one diagnosis or project they tell it",
        )
    if high - low > 2 * LARGEST_LOG2:
        return warning("a range too wide for logarithms, with values below 0", "check how the table was normalised")
    return ok("looks like logarithms" + (", centred per gene" if low < 0 else ""))


def genes(site: SiteFiles) -> Iterator[Finding]:
    """Gene names are symbols, and cover the study's gene sets."""
    if site.expression is None:
        yield ok("the site has no expression")
        return
    names = [str(name) for name in site.expression.columns]
    ensembl = sum(is_ensembl(name) for name in names)
    if ensembl:
        fix = "name HGNC's hgnc_complete_set.txt as gene_map under [expression] of site.toml"
        yield warning(f"{ensembl} of {len(names)} genes are Ensembl identifiers", fix)
    dates = sum(_DATE.fullmatch(name) is not None for name in names)
    if dates:
        yield warning(
            f"{dates} gene names look like dates or day numbers",
            "a spreadsheet changed SEPT1, MARCH1 and the like: export the matrix again",
        )
    sets = {} if site.study is None else dict(site.study.gene_sets)
    if site.study is None or not sets:
        why = "--study shows the coverage of its gene sets" if site.study is None else "the study has no gene sets"
        yield ok(f"{len(names)} genes; {why}")
        return
    yield from _coverage(sets, names, site.study.model.gene_minimum)


def _coverage(sets: dict[str, tuple[str, ...]], names: list[str], minimum: int) -> Iterator[Finding]:
    measured = restrict(sets, names, 0)
    shares = {name: len(measured[name]) / len(set(members)) for name, members in sets.items()}
    lost = [name for name in sets if len(measured[name]) < minimum]
    thin = [name for name, share in shares.items() if share < LOW_COVERAGE and name not in lost]
    named = {gene for members in sets.values() for gene in members}
    text = f"{len(named.intersection(names))} of {len(named)} genes of {len(sets)} gene sets measured"
    fix = "gene symbols of another release? rename them, or ask the coordinator"
    if len(lost) == len(sets):
        yield error(f"{text}: no set has {minimum} genes", fix)
    elif lost:
        yield warning(f"{text}; {len(lost)} sets with fewer than {minimum} are lost, first {lost[0]}", fix)
    if thin:
        yield warning(
            f"{len(thin)} gene sets measured by less than half, lowest {min(thin, key=shares.__getitem__)}", fix
        )
    if not lost and not thin:
        yield ok(f"{text}; every set by at least half")


def modalities(site: SiteFiles) -> Found:
    """Tables of further modalities."""
    if not site.config.paths.modalities:
        yield ok("the site has no further modality")
    for name in site.config.paths.modalities:
        try:
            yield from _modality(site, name)
        except DataError as problem:
            yield problem


def _modality(site: SiteFiles, name: str) -> Iterator[Finding]:
    table, where = site.modality(name), site.where(site.config.paths.modalities[name])
    site.cases_with(name)
    reads = None if site.study is None else next((m for m in site.study.modalities if m.name == name), None)
    if "text" in table.columns:
        found = clean_texts(table, key=site.key(table), where=where, error=ModalityError)
        yield ok(f"{name}: {len(found)} of {len(table)} rows have a text")
    else:
        found = clean_numbers(table, key=site.key(table), where=where, error=ModalityError, noun="measurement")
        yield ok(f"{name}: {len(found)} rows x {found.shape[1]} measurements")
        spread, size = found.std(ddof=0), found.mean().abs().clip(lower=1)
        if lost := [str(column) for column in found.columns[(spread > 0) & (spread < SMALLEST_SPREAD * size)]]:
            text = f"{name}: {len(lost)} measurements spread by less than {SMALLEST_SPREAD:g} and count as constant"
            yield warning(f"{text}, first {lost[0]}", "give them in a smaller unit, for instance umol/L for mol/L")
    if site.study is not None and reads is None:
        yield warning(f"{name}: the study does not use it", "nothing, or leave it out of site.toml")
    elif reads is not None and (absent := [column for column in reads.columns if column not in found.columns]):
        yield error(f"{name}: {len(absent)} columns of the study are missing, first {absent[0]!r}", "add them")
    elif reads is not None and reads.text is not None and "text" not in table.columns:
        yield error(f"{name}: the study reads a column 'text'", "add the texts, or leave the table out of site.toml")
