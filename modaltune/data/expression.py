"""Expression of a site: whatever file it has becomes ``[cases, genes]`` in one unit, by approved gene names."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from modaltune.data.expression_files import Measured, read_expression_table
from modaltune.data.gene_names import approved_names, is_ensembl, read_gene_map, unknown_names
from modaltune.data.sample_map import TCGA_SAMPLE, read_sample_map
from modaltune.data.star_counts import read_star_counts
from modaltune.data.tables import of_cases
from modaltune.errors import ExpressionError

LINEAR = ("counts", "tpm", "fpkm")
LARGEST_LOG2 = 40
"""No measured expression has a larger logarithm to base 2."""
SMALLEST_LINEAR = 25
"""The largest value of a table of counts, TPM or FPKM is above this; log2 of the largest is below it."""

logger = logging.getLogger(__name__)


class ExpressionConfig(BaseModel):
    """``[expression]`` of ``site.toml``: what the values are and whose they are.

    Attributes:
        unit: what the file holds; only the wide layout may leave it out.
        log: take log2(x + 1) of counts, TPM or FPKM.
        gene_map: HGNC's ``hgnc_complete_set.txt``; Ensembl ids need it, outdated symbols are brought up to date.
        samples: TCGA sample types to use: primary tumour (01), primary blood cancer (03), metastasis (06).
        sample_map: table of samples or files and their cases, where names are not TCGA barcodes.
        repeats: several samples of a case, or columns of a gene that cannot be summed: an error, or their mean.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    unit: Literal["counts", "tpm", "fpkm", "log2", "zscore"] | None = None
    log: bool = False
    gene_map: str | None = None
    samples: tuple[Literal["01", "03", "06"], ...] = Field(default=("01",), min_length=1)
    sample_map: str | None = None
    repeats: Literal["error", "mean"] = "error"

    @model_validator(mode="after")
    def _log_of_linear_values(self) -> ExpressionConfig:
        if self.log and self.unit not in LINEAR:
            raise ValueError(f"'log = true' is for unit {', '.join(LINEAR)}; declare that unit or remove 'log'")
        return self


def load_expression(
    folder: Path, file: str, config: ExpressionConfig, *, cases: pd.Index, key: str, site: str, cases_file: str
) -> pd.DataFrame:
    """Read a site's expression.

    Args:
        folder: the site folder.
        file: the table, or the folder of STAR counts, relative to it.
        config: ``[expression]``.
        cases: the known cases.
        key: the site's name of ``case_id``.
        site: name of the site, for messages.
        cases_file: what messages call the cases table.
    Returns:
        ``[cases, genes]`` float32, finite, in the order of the known cases; those without a sample are absent.
    """
    where = f"site {site}: {file}"
    samples = None
    if config.sample_map is not None:
        samples = read_sample_map(folder / config.sample_map, where=f"site {site}: {config.sample_map}")
    if os.path.isdir(folder / file):
        measured = _read_folder(folder / file, samples, config, where)
    else:
        by_id = config.gene_map is not None
        measured = read_expression_table(folder / file, key=key, by_id=by_id, where=where)
    if config.unit is None and not measured.wide:
        raise ExpressionError(
            f"{where}: the file does not say its unit; add [expression] unit = 'counts', 'tpm', 'fpkm', 'log2' or "
            "'zscore' to site.toml"
        )
    _check_unit(measured.values, config, where)
    owners = _owners(measured.samples, samples, config, cases, where)
    table = measured.values.set_axis(pd.Index(owners, name="case_id"))[owners.notna().to_numpy()]
    table = _one_row_a_case(of_cases(table, cases, cases_file, where, ExpressionError), config, where)
    table = _one_column_a_gene(table, folder, config, site, where)
    if config.log:
        table = pd.DataFrame(np.log2(table.to_numpy() + 1), index=table.index, columns=table.columns)
    return table


def _read_folder(path: Path, samples: pd.DataFrame | None, config: ExpressionConfig, where: str) -> Measured:
    if samples is None:
        raise ExpressionError(
            f"{where}: a folder of STAR counts needs [expression] sample_map in site.toml; name GDC's sample sheet or "
            "a table with columns sample (the file) and case_id"
        )
    values = read_star_counts(
        path,
        samples["sample"],
        unit=config.unit,
        by_id=config.gene_map is not None,
        where=where,
        listed=str(config.sample_map),
    )
    return Measured(values=values, samples=samples["sample"].tolist(), wide=False)


def _check_unit(values: pd.DataFrame, config: ExpressionConfig, where: str) -> None:
    """Refuse values that the declared unit cannot have; question those that it should not have."""
    numbers = values.to_numpy()
    negative, largest = bool((numbers < 0).any()), float(numbers.max(initial=0.0))
    remedy = "declare the unit that the file has in [expression] of site.toml"
    if config.unit in LINEAR and negative:
        raise ExpressionError(f"{where}: negative values, but the unit is {config.unit!r}; {remedy}")
    if config.unit in LINEAR and largest <= SMALLEST_LINEAR:
        raise ExpressionError(
            f"{where}: no value is above {SMALLEST_LINEAR}, so these look like logarithms, but the unit is "
            f"{config.unit!r}; {remedy}"
        )
    if config.unit == "log2" and largest > LARGEST_LOG2:
        raise ExpressionError(f"{where}: values above {LARGEST_LOG2} cannot be of unit 'log2'; {remedy}")
    if config.unit == "zscore" and not negative:
        raise ExpressionError(f"{where}: no negative value, but the unit is 'zscore'; {remedy}")
    if config.unit in LINEAR and not config.log:
        logger.warning("%s: %s without logarithm; consider log = true in [expression]", where, config.unit)
    if config.unit is None and largest > LARGEST_LOG2 and not negative:
        logger.warning("%s: too large for logarithms or z-scores; declare unit and log in [expression]", where)


def _owners(
    names: Sequence[str], samples: pd.DataFrame | None, config: ExpressionConfig, cases: pd.Index, where: str
) -> pd.Series:
    """The case of each sample; None for one of another type, and for one that the sample map does not list."""
    given = pd.Series(list(names), dtype=object)
    if samples is None:
        # a hospital's own case ids may look like barcodes of samples
        barcodes = given.mask(given.isin(cases)).str.extract(f"^{TCGA_SAMPLE.pattern}$")
        owner, kind = barcodes[0].fillna(given), barcodes[1]
    else:
        row = samples.set_index("sample").reindex(given).reset_index(drop=True)
        owner, kind = row["case_id"], row["type"]
        if owner.isna().any():
            unlisted = int(owner.isna().sum())
            logger.warning("%s: %d of %d samples are not in the sample map: left out", where, unlisted, len(names))
    other = kind.notna() & ~kind.isin(config.samples)
    if other.any():
        logger.warning("%s: %d of %d samples are of another type: left out", where, other.sum(), len(names))
    wanted = " or ".join(config.samples)
    out = owner.where(~other)
    if out.isna().all():
        raise ExpressionError(
            f"{where}: none of {len(names)} samples is listed and of type {wanted}; take primary tumours, correct the "
            "sample map, or set [expression] samples in site.toml"
        )
    return out


def _one_row_a_case(table: pd.DataFrame, config: ExpressionConfig, where: str) -> pd.DataFrame:
    repeated = table.index[table.index.duplicated()].unique()
    if repeated.empty:
        return table
    if config.repeats == "error":
        raise ExpressionError(
            f"{where}: {len(repeated)} cases have several samples of type {' or '.join(config.samples)}; remove all "
            "but one, or set repeats = 'mean' in [expression] of site.toml"
        )
    logger.warning("%s: %d cases have several samples: their mean is used", where, len(repeated))
    return table.groupby(level=0, sort=False).mean()


def _one_column_a_gene(
    table: pd.DataFrame, folder: Path, config: ExpressionConfig, site: str, where: str
) -> pd.DataFrame:
    names: list[str | None] = [str(name) for name in table.columns]
    if config.gene_map is None:
        if 2 * sum(is_ensembl(str(name)) for name in names) > len(names):
            raise ExpressionError(
                f"{where}: genes are named by Ensembl ids; name HGNC's hgnc_complete_set.txt as gene_map in "
                "[expression] of site.toml"
            )
    else:
        genes = read_gene_map(folder / config.gene_map, where=f"site {site}: {config.gene_map}")
        unknown = unknown_names([str(name) for name in names], genes)
        if unknown:
            logger.warning("%s: %d of %d genes are unknown to HGNC", where, unknown, len(names))
        names = approved_names([str(name) for name in names], genes)
    kept = [name is not None for name in names]
    if not any(kept):
        raise ExpressionError(f"{where}: {config.gene_map} knows none of {len(names)} genes; use a human gene table")
    table = table.loc[:, kept].set_axis(pd.Index([name for name in names if name is not None]), axis=1)
    repeated = table.columns[table.columns.duplicated()].unique()
    if repeated.empty:
        return table
    if config.unit not in LINEAR and config.repeats == "error":
        raise ExpressionError(
            f"{where}: {len(repeated)} genes occur more than once; keep one of each, or set "
            "repeats = 'mean' in [expression] of site.toml"
        )
    logger.warning("%s: %d genes occur more than once", where, len(repeated))
    groups = table.T.groupby(level=0, sort=False)
    return (groups.sum() if config.unit in LINEAR else groups.mean()).T
