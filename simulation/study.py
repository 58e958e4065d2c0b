"""From site folders on one machine to a study: read every hospital once, check that they fit, fill in the rest."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from modaltune.data.cohort import Cohort
from modaltune.data.genesets import read_gene_sets
from modaltune.data.site import load_site
from modaltune.encoders.registry import encoder_digest
from modaltune.encoders.text import text_encoder
from modaltune.errors import CaseTableError, ConfigError, FeatureFileError
from modaltune.federation.inputs import SlideSpec, TextSpec
from modaltune.federation.settings import AggregationSpec, ModelSpec, PrivacySpec, ReleaseSpec, TrainingSpec
from modaltune.federation.study import Study, first_problem
from modaltune.federation.task import TaskSpec
from modaltune.tasks.vocabulary import configs_folder

_SCHEMAS: Mapping[str, type[BaseModel]] = {
    "model": ModelSpec,
    "training": TrainingSpec,
    "aggregation": AggregationSpec,
    "privacy": PrivacySpec,
    "release": ReleaseSpec,
}
TABLES = ("slides", *_SCHEMAS)
"""Tables of a study that an experiment may set."""
_NO_SLIDES_WIDTH = 8


def read_sites(folders: Sequence[Path], tasks: Sequence[TaskSpec], salt: str) -> dict[str, Cohort]:
    """Load all site folders; a patient in two of them, or bags of different width, is an error."""
    labels = {task.name: task.values for task in tasks if task.kind != "survival"}
    cohorts = {}
    for folder in folders:
        cohort = load_site(folder, split_salt=salt, labels=labels)
        if cohort.site in cohorts:
            raise ConfigError(
                f"{folder.name}: site name {cohort.site} is taken by another folder; rename it in site.toml"
            )
        cohorts[cohort.site] = cohort
    _require_disjoint(cohorts)
    _require_one_width(cohorts)
    return cohorts


def _require_disjoint(cohorts: Mapping[str, Cohort]) -> None:
    owner: dict[str, str] = {}
    for site, cohort in cohorts.items():
        for row, case_id in enumerate(cohort.cases.index, start=1):
            if case_id in owner:
                raise CaseTableError(
                    f"sites {owner[case_id]} and {site} both claim one patient (row {row} of {site}); patients must be"
                    " in one hospital only, or test cases of one leak into training of the other"
                )
            owner[str(case_id)] = site


def _require_one_width(cohorts: Mapping[str, Cohort]) -> None:
    widths = {site: cohort.patch_width for site, cohort in cohorts.items() if cohort.patch_width is not None}
    for site, width in widths.items():
        first = next(iter(widths))
        if width != widths[first]:
            raise FeatureFileError(
                f"site {site}: {width} features per patch, but site {first} has {widths[first]}; extract both with the"
                " same patch encoder"
            )


def checked_settings(kind: str, changes: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, dict[str, Any]]:
    """The settings of a kind of data, some of them changed, table by table.

    Args:
        kind: ``synthetic`` or ``tcga``, file in ``configs/studies``.
        where: who changed them, for the error.
    Raises:
        ConfigError: an unknown key, or a value out of range. Slides are checked later, with the site folders.
    """
    base = _load_settings(configs_folder() / "studies" / f"{kind}.toml")
    settings = {name: base.get(name, {}) | dict(changes.get(name, {})) for name in TABLES}
    if unknown := sorted({*settings["slides"]} - {*SlideSpec.model_fields}):
        known = ", ".join(SlideSpec.model_fields)
        raise ConfigError(f"{where}: [slides] unknown key {unknown[0]!r}; known keys: {known}")
    for name, schema in _SCHEMAS.items():
        try:
            schema.model_validate(settings[name])
        except ValidationError as error:
            raise ConfigError(f"{where}: [{name}] {problem(error, schema)}") from error
    return {name: table for name, table in settings.items() if table}


def problem(error: ValidationError, model: type[BaseModel], parts: Mapping[str, type[BaseModel]] | None = None) -> str:
    """The first problem in one line; an unknown key is met with the known ones of the model, or of its part."""
    first = error.errors(include_input=False, include_url=False)[0]
    if first["type"] != "extra_forbidden":
        return first_problem(error)
    owner = (parts or {}).get(str(first["loc"][0]), model) if len(first["loc"]) > 1 else model
    return f"unknown key {'.'.join(map(str, first['loc']))!r}; known keys: {', '.join(owner.model_fields)}"


def _load_settings(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML settings ({error})") from error


def draft_study(
    name: str,
    cohorts: Mapping[str, Cohort],
    tasks: Sequence[TaskSpec],
    gene_sets: Path | None,
    settings: Mapping[str, Any],
    *,
    seed: int,
) -> Study:
    """A study that these sites can run: their tasks, their bag width, the built-in encoders by hash."""
    held = [task for task in tasks if any(task.name in cohort.tasks for cohort in cohorts.values())]
    has_expression = any(cohort.expression is not None for cohort in cohorts.values())
    sets = read_gene_sets(gene_sets) if gene_sets is not None and gene_sets.is_file() and has_expression else {}
    try:
        return Study(
            name=name,
            seed=seed,
            tasks=tuple(held),
            roster=tuple(cohorts),
            slides=_slides(cohorts, settings.get("slides", {})),
            text=TextSpec(sha256=text_encoder().sha256),
            gene_sets=sets,
            **{part: settings[part] for part in TABLES if part in settings and part != "slides"},
        )
    except ValidationError as error:
        raise ConfigError(f"study {name}: {first_problem(error)}") from error


def _slides(cohorts: Mapping[str, Cohort], settings: Mapping[str, Any]) -> SlideSpec:
    if fixed := sorted({"in_width", "rows", "sha256"} & set(settings)):
        raise ConfigError(f"slides.{fixed[0]} follows from the site folders; leave it out")
    options = dict(settings)
    width = next((cohort.patch_width for cohort in cohorts.values() if cohort.patch_width), None)
    if width is None:
        options["standardise"] = "none"
    if options.get("standardise") == "position":
        bags = (bag for cohort in cohorts.values() for case in cohort.bags.values() for bag in case)
        options["rows"] = len(next(bags).features)
    try:
        spec = SlideSpec(in_width=width or _NO_SLIDES_WIDTH, sha256="0" * 64, **options)
    except ValidationError as error:
        raise ConfigError(f"[slides] {problem(error, SlideSpec)}") from error
    digest = encoder_digest(spec.encoder, in_width=spec.in_width, width=spec.width, depth=spec.depth)
    return spec.model_copy(update={"sha256": digest})
