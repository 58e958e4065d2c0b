"""What a site says about itself before the first round, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import combinations
from typing import Any

from modaltune import __version__
from modaltune.data.genesets import restrict
from modaltune.data.slide_settings import SlideSettings, difference
from modaltune.errors import ExpressionError, FederationError, ReplyRefused
from modaltune.federation.manifest import MOST_CASES
from modaltune.federation.study import Study

_VERSION = re.compile(r"[0-9A-Za-z.+_-]{1,40}")
_COUNTS = ("cases-train", "cases-val", "cases-test")


@dataclass(frozen=True, kw_only=True)
class Capability:
    """Tasks, modalities, gene names, counts (0 when held back), versions and kind of patches of one site."""

    site: str
    tasks: tuple[str, ...]
    modalities: tuple[str, ...]
    genes: tuple[str, ...]
    train_cases: int
    val_cases: int
    test_cases: int
    versions: Mapping[str, str]
    patches: SlideSettings = field(default_factory=SlideSettings)

    @classmethod
    def parse(cls, record: Mapping[str, Any], study: Study) -> Capability:
        """Check a reply's fields; refuse sites outside the roster and unknown tasks."""
        site = record.get("site")
        if not isinstance(site, str) or site not in study.roster:
            raise ReplyRefused("a node", "it names no site of the roster")
        known = {task.name for task in study.tasks}
        tasks, modalities, genes = (_texts(record, name, site) for name in ("tasks", "modalities", "genes"))
        if not set(tasks) <= known:
            raise ReplyRefused(site, "it names a task outside the study")
        counts = [record.get(name) for name in _COUNTS]
        if not all(isinstance(count, int) and 0 <= count <= MOST_CASES for count in counts):
            raise ReplyRefused(site, "its case counts are not whole numbers")
        most = study.site_cases.get(site, MOST_CASES)
        for what, count in zip(("training", "validation", "test"), counts, strict=True):
            if int(count) > most:  # type: ignore[arg-type]
                raise ReplyRefused(site, f"it claims {count} {what} cases and the study allows it {most}")
        try:
            patches = SlideSettings.parse(record)
        except ValueError as error:
            raise ReplyRefused(site, str(error)) from None
        named = {gene for members in study.gene_sets.values() for gene in members}
        inputs = {"slides", "expression", "clinical", *(modality.name for modality in study.modalities)}
        return cls(
            site=site,
            tasks=tuple(tasks),
            modalities=tuple(name for name in modalities if name in inputs),
            genes=tuple(gene for gene in genes if gene in named),
            train_cases=int(counts[0]),  # type: ignore[arg-type]
            val_cases=int(counts[1]),  # type: ignore[arg-type]
            test_cases=int(counts[2]),  # type: ignore[arg-type]
            versions={
                name: text for name in versions() if _VERSION.fullmatch(text := str(record.get(f"version-{name}", "")))
            },
            patches=patches,
        )


def _texts(record: Mapping[str, Any], name: str, site: str) -> list[str]:
    values = record.get(name, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ReplyRefused(site, f"its {name} are not a list of names")
    return values


def gene_panel(capabilities: Mapping[str, Capability], study: Study) -> list[str]:
    """Genes that every site with expression (or any, as the study says) measures and a gene set names, sorted."""
    holders = {site: found for site, found in capabilities.items() if "expression" in found.modalities}
    if not holders or not study.gene_sets:
        return []
    named = {gene for members in study.gene_sets.values() for gene in members}
    measured = [set(found.genes) for found in holders.values()]
    shared = set.union(*measured) if study.gene_panel == "union" else set.intersection(*measured)
    panel = sorted(shared & named)
    if _too_few(panel, study):
        known = ", ".join(f"{site} {len(found.genes)}" for site, found in holders.items())
        raise FederationError(
            f"the sites with expression share {len(panel)} genes of the study's gene sets, too few for any set"
            f" (model.gene_minimum = {study.model.gene_minimum}); measured by site: {known}; check that all use gene"
            ' symbols, leave out the site that measures least, or set gene_panel = "union"'
        )
    return panel


def check_coverage(site: str, genes: Sequence[str], study: Study) -> None:
    """Whether a site's expression fills any gene set of the study.

    Raises:
        ExpressionError: it fills none; in a federation it would end the study for everybody.
    """
    named = {gene for members in study.gene_sets.values() for gene in members}
    if named and _too_few(genes, study):
        raise ExpressionError(
            f"site {site}: expression has {len(named.intersection(genes))} of the {len(named)} genes of the study's"
            f" gene sets, too few for any set (model.gene_minimum = {study.model.gene_minimum}); name its genes as the"
            " study does, or take expression out of site.toml"
        )


def check_panel(capability: Capability, panel: Sequence[str], study: Study) -> None:
    """Refuse expression of a latecomer that lacks genes which all the others measure, and the study has agreed on."""
    lacking = set(panel) - set(capability.genes)
    strict = study.gene_panel == "intersection" and reads_expression(study)
    if strict and "expression" in capability.modalities and lacking:
        raise ReplyRefused(
            capability.site,
            f"it lacks {len(lacking)} of the {len(panel)} genes that the study began with; it can take part without"
            " expression, or in a study that begins with it",
        )


def check_alike(capabilities: Mapping[str, Capability]) -> None:
    """Whether the patches of all sites were made alike, as far as their files say it.

    Raises:
        FederationError: of two sites they were not: one model cannot read both.
    """
    for one, other in combinations(capabilities.values(), 2):
        if differs := difference(one.patches, other.patches, f"those of {other.site}"):
            raise FederationError(
                f"the bags of site {one.site} have {differs}; say under [slides] of the study which it is to be, then"
                " sites with others are refused, or leave one of the two out"
            )


def check_like_others(capability: Capability, others: Mapping[str, Capability]) -> None:
    """Refuse a latecomer whose patches were made otherwise than those of the sites that the study began with."""
    for other in others.values():
        if differs := difference(capability.patches, other.patches, f"those of {other.site}"):
            raise ReplyRefused(capability.site, f"its bags have {differs}; it can take part without slides")


def _too_few(genes: Sequence[str], study: Study) -> bool:
    """Whether genes fill no set of a study that reads expression; a baseline needs one gene of one."""
    minimum = study.model.gene_minimum if study.model.kind == "modaltune" else 1
    return reads_expression(study) and not restrict(study.gene_sets, genes, minimum)


def reads_expression(study: Study) -> bool:
    """Whether expression is an input of the study's model."""
    return study.model.kind == "modaltune" or "expression" in study.model.needs


def reads_slides(study: Study) -> bool:
    """Whether slides are an input of the study's model."""
    return study.model.kind == "modaltune" or "slides" in study.model.needs


def versions() -> dict[str, str]:
    """Versions that must be the same everywhere: with others, results could not be reproduced."""
    return {"modaltune": __version__, "flwr": version("flwr"), "torch": version("torch")}


def check_versions(capability: Capability, expected: Mapping[str, str]) -> None:
    """Refuse a site with other versions than the coordinator's; builds of one version (``+cu130``) may differ."""
    for name, ours in expected.items():
        theirs = capability.versions.get(name, "none")
        if theirs.split("+")[0] != ours.split("+")[0]:
            raise ReplyRefused(
                capability.site,
                f"it runs {name} {theirs} and the coordinator {ours}; install the coordinator's version",
            )
