"""The hospitals of one cell: drawn or read, changed as the cell says, and written as site folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modaltune.data.case_table import labelled, task_columns
from modaltune.data.cohort import Bag
from modaltune.data.genesets import restrict, write_gmt
from modaltune.data.tcga import LEVELS, cancer_task, hospital_tables, read_tcga, with_cancer_tasks, with_location
from modaltune.errors import ConfigError
from modaltune.federation.task import TaskSpec
from modaltune.seeds import numpy_generator
from modaltune.tasks.vocabulary import load_vocabulary, vocabulary_file
from simulation.sites import (
    Bags,
    check_overrides,
    class_and_event,
    disjoint_tasks,
    draw_split,
    even_places,
    require_known,
    write_site,
)
from simulation.studies.features import SlideFiles, slide_files
from simulation.studies.pancancer import pan_vocabulary
from simulation.studies.spec import DataSpec
from simulation.synthetic import HOSPITAL_SHARES, draw_hospitals, gene_sets
from simulation.tcga import GENE_SETS_FILE, MINIMUM_GENES, require_gene_sets

SYNTHETIC = "synthetic"
_FEWEST_CASES = 12  # of a site that cases are dealt to
_DRAWS = 200


@dataclass(frozen=True, kw_only=True)
class Share:
    """One hospital's cases.

    Attributes:
        cohort: it belongs to; ``synthetic`` has only one.
        cases: index ``case_id``; ``split``, labels, ``age``, ``sex``.
        expression: ``[cases, genes]``; None = none.
        bags: case_id -> slides in memory.
        files: case_id -> feature files of slides, in place of bags.
    """

    name: str
    cohort: str
    cases: pd.DataFrame
    expression: pd.DataFrame | None
    bags: Bags
    files: SlideFiles

    def labels(self, task: str) -> bool:
        """Whether a case has a label for a task."""
        return {*task_columns(task)} <= {*self.cases.columns} and bool(labelled(self.cases, task).any())

    def usable(self) -> Share:
        """Without the cases that have no modality left."""
        measured = [*self.bags, *self.files, *(() if self.expression is None else self.expression.index)]
        inside = self.cases.index.isin(measured)
        if not inside.any():
            raise ConfigError(f"hospital {self.name} is left without a usable case; leave it out or keep a modality")
        return self if inside.all() else self.only(inside)

    def only(self, inside: NDArray[np.bool_]) -> Share:
        """Some of its cases."""
        cases = self.cases[inside]
        expression = None if self.expression is None else self.expression[self.expression.index.isin(cases.index)]
        return replace(
            self,
            cases=cases,
            expression=None if expression is None or expression.empty else expression,
            bags={case: pairs for case, pairs in self.bags.items() if case in cases.index},
            files={case: pairs for case, pairs in self.files.items() if case in cases.index},
        )

    def with_labels(self, tasks: Sequence[TaskSpec], kept: float, seed: int) -> Share:
        """A share of its labels of each task, of every class and outcome; a smaller share is part of a larger one."""
        cases = self.cases.copy()
        for task in (task.name for task in tasks if self.labels(task.name)):
            known = cases[labelled(cases, task) & (cases["split"] != "test")]
            strata = known["split"] + "/" + known[task_columns(task)[-1]].astype(str)
            lost = known.index[even_places(strata, seed, "labels", self.name, task) >= kept]
            for column in task_columns(task):
                cases[column] = cases[column].mask(cases.index.isin(lost))
        return replace(self, cases=cases)

    def without(self, modalities: Sequence[str]) -> Share:
        """Some modalities taken away."""
        share = replace(self, expression=None) if "expression" in modalities else self
        return replace(share, bags={}, files={}) if "slides" in modalities else share


@dataclass(frozen=True, kw_only=True)
class SceneFolders:
    """Site folders of a cell.

    Attributes:
        sites: hospital -> folder it trains on.
        truth: hospital -> folder with every label; those that do not train too.
        cohorts: hospital -> its cohort.
        tasks: vocabulary of the federation.
        gene_sets: file.
    """

    sites: dict[str, Path]
    truth: dict[str, Path]
    cohorts: dict[str, str]
    tasks: tuple[TaskSpec, ...]
    gene_sets: Path

    @property
    def cancers(self) -> dict[str, str]:
        """``cohorts`` where there are several, else nothing."""
        return self.cohorts if len(set(self.cohorts.values())) > 1 else {}


def write_scene(spec: DataSpec, seed: int, data: Path | None, out: Path) -> SceneFolders:
    """Draw or read, change and write the hospitals of a cell.

    Args:
        data: folder of the TCGA tables.
        out: receives ``sites/`` and ``truth/``.
    Raises:
        ConfigError: hospitals, tasks or modalities that the data does not have.
        DataError: tables or feature files are absent or broken.
    """
    shares, sets = _synthetic(spec, seed) if spec.kind == "synthetic" else tcga_shares(spec, spec.cohorts, seed, data)
    apart = spec.cancers == "apart"
    tasks = vocabulary(spec.cohorts, shares, apart=apart)
    known = [share.name for share in shares]
    require_known("hospital", spec.leave_out, known)
    held = _disjoint(shares, tasks, apart) if isinstance(spec.tasks, str) else spec.tasks
    check_overrides(known, [task.name for task in tasks], held, spec.without)
    shares = [share.without(spec.without.get(share.name, ())).usable() for share in shares]
    shares = filled(shares, spec.leave_out) if spec.fill else shares
    if spec.sites is not None:
        shares = deal(shares, spec.sites, spec.skew, seed)
    if set(spec.leave_out) >= {share.name for share in shares}:
        raise ConfigError("leave_out names every hospital; nobody is left to train")
    trains = [share for share in shares if share.name not in spec.leave_out]
    if data is not None and spec.kind == "tcga" and any(share.expression is not None for share in trains):
        require_gene_sets(data, sets)
    truth = {share.name: write_share(share, tasks, None, out / "truth") for share in shares}
    path = out / GENE_SETS_FILE
    write_gmt(path, sets)
    whole = not held and spec.labelled == 1
    sites = {
        share.name: truth[share.name]
        if whole
        else write_share(share.with_labels(tasks, spec.labelled, seed), tasks, held.get(share.name), out / "sites")
        for share in trains
    }
    cohorts = {share.name: share.cohort for share in shares}
    return SceneFolders(sites=sites, truth=truth, cohorts=cohorts, tasks=tasks, gene_sets=path)


def _disjoint(shares: Sequence[Share], tasks: Sequence[TaskSpec], apart: bool) -> dict[str, tuple[str, ...]]:
    """The layout of disjoint tasks, in each cohort among its own hospitals."""
    cohorts = dict.fromkeys(share.cohort for share in shares)
    held: dict[str, tuple[str, ...]] = {}
    for cohort in cohorts:
        inside = [share for share in shares if share.cohort == cohort]
        prefix = f"{cohort}-" if len(cohorts) > 1 else ""
        known = {task.name for task in tasks if any(share.labels(task.name) for share in inside)}
        called = {name: cancer_task(cohort, name) if apart else name for name in ("diagnosis", *LEVELS, "survival")}
        has = tuple(name for name in called if called[name] in known)
        layout = disjoint_tasks([share.name.removeprefix(prefix) for share in inside], has)
        held |= {
            f"{prefix}{hospital}": tuple(called[name] for name in names)
            for hospital, names in layout.items()
            if names != has
        }
    return held


def vocabulary(cohorts: Sequence[str], shares: Sequence[Share], *, apart: bool = False) -> tuple[TaskSpec, ...]:
    """Tasks of synthetic data, of a cohort, or of several, as far as a hospital has labels for them."""
    if len(cohorts) > 1:
        known = pan_vocabulary(cohorts, apart=apart)
    else:
        known = load_vocabulary(vocabulary_file(cohorts[0] if cohorts else "synthetic"))
    return tuple(task for task in known if any(share.labels(task.name) for share in shares))


def _synthetic(spec: DataSpec, seed: int) -> tuple[list[Share], Mapping[str, Sequence[str]]]:
    require_known("hospital", spec.hospitals, tuple(HOSPITAL_SHARES))
    shares = [
        Share(
            name=name,
            cohort=SYNTHETIC,
            cases=drawn.cases,
            expression=drawn.expression if "expression" in spec.modalities else None,
            bags=drawn.bags if "slides" in spec.modalities else {},
            files={},
        )
        for name, drawn in draw_hospitals(seed, spec.cases).items()
        if not spec.hospitals or name in spec.hospitals
    ]
    return shares, gene_sets()


def tcga_shares(
    spec: DataSpec, cohorts: Sequence[str], seed: int, data: Path | None
) -> tuple[list[Share], Mapping[str, Sequence[str]]]:
    """Hospitals of some cohorts with their splits, and the gene sets that have enough genes in all of them."""
    if data is None:
        raise ConfigError("the study is about TCGA: --data names the folder with its tables (docs/data.md)")
    shares: list[Share] = []
    sets: Mapping[str, Sequence[str]] = {}
    genes: list[str] | None = None
    for cohort in cohorts:
        files = slide_files(data, cohort, spec.features) if spec.features else {}
        tables = read_tcga(data, cohort, slides=files)
        chosen = [name for name in tables.hospitals if not spec.hospitals or name in spec.hospitals]
        require_known("hospital", spec.hospitals, tables.hospitals)
        sets = tables.gene_sets
        genes = [gene for gene in tables.expression.columns if genes is None or gene in set(genes)]
        for hospital in chosen:
            share = hospital_tables(tables, hospital)
            cases = share.cases.assign(split=draw_split(class_and_event(share.cases), seed, cohort, hospital))
            bags: dict[str, tuple[tuple[str, Bag], ...]] = {
                case: ((f"{case}-IMG", bag),) for case, bag in share.bags.items()
            }
            whole = Share(
                name=f"{cohort}-{hospital}" if len(cohorts) > 1 else hospital,
                cohort=cohort,
                cases=_placed(cases, cohort, spec.cancers) if len(cohorts) > 1 else cases,
                expression=share.expression,
                bags={} if spec.features else bags,
                files={case: pairs for case, pairs in files.items() if case in cases.index},
            )
            absent = [name for name in ("expression", "slides") if name not in spec.modalities]
            shares.append(whole.without(absent).usable())
    return shares, restrict(sets, genes or [], MINIMUM_GENES) if sets else {}


def _placed(cases: pd.DataFrame, cohort: str, cancers: str) -> pd.DataFrame:
    """Cases of one of several cancers, their labels as the federation calls them."""
    return with_cancer_tasks(cases, cohort) if cancers == "apart" else with_location(cases, cohort)


def deal(shares: Sequence[Share], sites: int, skew: float | None, seed: int) -> list[Share]:
    """All cases dealt to ``S1`` ... ``Sn``; every case keeps its split, so test cases do not depend on the dealing.

    Args:
        skew: concentration of the Dirichlet draw of each diagnosis' shares; None = evenly inside each split.
    """
    whole = _joined(shares)
    draw = numpy_generator(seed, "deal", sites, skew)
    for _ in range(_DRAWS):
        owner = _owners(whole.cases, sites, skew, draw)
        if min(np.bincount(owner, minlength=sites)) >= _FEWEST_CASES:
            return [replace(whole.only(owner == site), name=f"S{site + 1}") for site in range(sites)]
    raise ConfigError(
        f"{len(whole.cases)} cases cannot be dealt to {sites} sites of at least {_FEWEST_CASES};"
        " take fewer sites or a larger skew"
    )


def _owners(cases: pd.DataFrame, sites: int, skew: float | None, draw: np.random.Generator) -> NDArray[np.int64]:
    owner = np.zeros(len(cases), dtype=np.int64)
    strata = cases["split"] if skew is None else cases["diagnosis"].fillna("none")
    for value in sorted(strata.unique()):
        rows = draw.permutation(np.flatnonzero((strata == value).to_numpy()))
        if skew is None:
            owner[rows] = (draw.integers(sites) + np.arange(len(rows))) % sites
        else:
            owner[rows] = draw.choice(sites, size=len(rows), p=draw.dirichlet([skew] * sites))
    return owner


def _joined(shares: Sequence[Share]) -> Share:
    tables = [share.expression for share in shares if share.expression is not None]
    return Share(
        name="all",
        cohort=shares[0].cohort,
        cases=pd.concat([share.cases for share in shares]),
        expression=pd.concat(tables) if tables else None,
        bags={case: pairs for share in shares for case, pairs in share.bags.items()},
        files={case: pairs for share in shares for case, pairs in share.files.items()},
    )


def filled(shares: Sequence[Share], leave_out: Sequence[str] = ()) -> list[Share]:
    """Cases that lack a modality are given its mean over the training cases that have it, of hospitals that train.

    After standardisation that is nearly zero: the zero filling that plain averaging needs. No real federation can do
    it before its sums are pooled; here it only stands for the comparison.
    """
    whole = _joined([share for share in shares if share.name not in leave_out] or shares)
    train = whole.cases.index[whole.cases["split"] == "train"]
    tables = whole.expression
    mean = None if tables is None else tables[tables.index.isin(train)].mean()
    bags = [bag for case, pairs in whole.bags.items() if case in train for _, bag in pairs]
    patch = _mean_bag(bags) if bags else None
    return [_fill(share, mean, patch) for share in shares]


def _fill(share: Share, mean: pd.Series | None, patch: Bag | None) -> Share:
    if mean is not None:
        known = share.expression if share.expression is not None else pd.DataFrame(columns=mean.index, dtype=np.float32)
        absent = share.cases.index.difference(known.index)
        rows = pd.DataFrame(np.tile(mean.to_numpy(np.float32), (len(absent), 1)), index=absent, columns=mean.index)
        share = replace(share, expression=pd.concat([table for table in (known, rows) if len(table)]))
    if patch is not None:
        more = {str(case): ((f"{case}-MEAN", patch),) for case in share.cases.index if case not in share.bags}
        share = replace(share, bags={**share.bags, **more})
    return share


def _mean_bag(bags: Sequence[Bag]) -> Bag:
    """Row by row when all bags have the same rows (image tokens), else one mean patch."""
    first = bags[0]
    if len({len(bag.features) for bag in bags}) == 1:
        return replace(first, features=np.mean([np.asarray(bag.features) for bag in bags], axis=0, dtype=np.float32))
    patches = np.concatenate([np.asarray(bag.features) for bag in bags])
    return replace(first, features=patches.mean(axis=0, keepdims=True, dtype=np.float32), coords=first.coords[:1])


def write_share(share: Share, tasks: Sequence[TaskSpec], held: Sequence[str] | None, out: Path) -> Path:
    """Write a hospital's site folder below ``out``, with the tasks ``held``, or all that it has labels for."""
    named = [task.name for task in tasks]
    has = [name for name in named if share.labels(name)]
    chosen = has if held is None else [name for name in named if name in held]
    if lacking := [name for name in chosen if name not in has] or ([] if has else ["any task"]):
        raise ConfigError(
            f"hospital {share.name} has no labelled case for {lacking[0]}; it has {', '.join(has) or '-'}"
        )
    return write_site(
        out / share.name,
        name=share.name,
        tasks=chosen,
        cases=share.cases,
        expression=share.expression,
        bags=share.bags,
        files=share.files,
        encoder=f"{share.cohort.lower()}-image",
    )
