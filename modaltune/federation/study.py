"""The study: everything a federation agrees on, in one file with one digest."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from modaltune.errors import ConfigError
from modaltune.federation.label_names import labels_in_disguise
from modaltune.federation.settings import (
    MOST_COEFFICIENTS,
    AggregationSpec,
    EvaluationSpec,
    LabelQuerySpec,
    ModelSpec,
    Part,
    PrivacySpec,
    ProbesSpec,
    ReleaseSpec,
    TrainingSpec,
)
from modaltune.storage import canonical_json, digest_text

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
HORIZONS = (12, 36, 60)  # months at which survival is scored
AT_HORIZONS: dict[str, dict[str, int]] = {
    "nominal": {},
    "ordinal": {},
    "survival": {f"{name}_{months}m": months for name in ("auc", "brier") for months in HORIZONS},
}
"""Metrics at a time -> that time in months."""
HEADLINES = {
    "nominal": ("auc", "balanced_accuracy"),
    "ordinal": ("auc", "balanced_accuracy"),
    "survival": ("c_index",),
}
FURTHER = {
    "nominal": ("macro_f1", "brier", "ece"),
    "ordinal": ("macro_f1", "brier", "ece"),
    "survival": ("c_index_ipcw", *AT_HORIZONS["survival"]),
}
METRICS = {kind: HEADLINES[kind] + FURTHER[kind] for kind in HEADLINES}
REPORTED = {kind: tuple(name for name in names if name not in AT_HORIZONS[kind]) for kind, names in METRICS.items()}
"""What leaves a hospital: at a horizon, a score can rest on a single death."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Label(Part):
    """One value of a task and the text that stands for it.

    Attributes:
        value: as sites write it, or map their codes to it.
        text: what is embedded, in the prompt of the task.
        scale: ordinal tasks: labels are ordered within a scale, scales are not (the stages of several cancers).
    """

    value: str
    text: str
    scale: str = ""


def _takes_text(template: str) -> bool:
    """Whether a template is filled with a text, and with nothing else."""
    marks = template.replace("{text}", "")
    return marks != template and not {"{", "}"} & set(marks)


class TaskSpec(Part):
    """A task: its kind, its prompt and its labels.

    Attributes:
        name: of the task, and of its column in the cases table.
        kind: ``survival`` reads ``time_months`` and ``event``.
        template: prompt with ``{text}``.
        labels: nominal and ordinal tasks; ordinal ones from low to high.
        positive: ordinal tasks are scored as these levels against the others.
        bins: survival tasks: one text per time bin, earliest death first.
    """

    name: Name
    kind: Literal["nominal", "ordinal", "survival"]
    template: str
    labels: tuple[Label, ...] = ()
    positive: tuple[str, ...] = ()
    bins: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not _takes_text(self.template):
            raise ValueError(f"task {self.name}: template must contain {{text}} once, and no other braces")
        if self.kind == "survival" and len(set(self.bins)) < max(2, len(self.bins)):
            raise ValueError(f"task {self.name}: a survival task needs at least two bins, each once")
        if len({label.value.casefold() for label in self.labels}) < len(self.labels):
            raise ValueError(f"task {self.name}: labels must differ by more than upper and lower case")
        if self.kind != "survival" and len(self.labels) < 2:
            raise ValueError(f"task {self.name}: needs at least two labels")
        if len({label.text for label in self.labels}) < len(self.labels):
            raise ValueError(f"task {self.name}: two labels have the same text; nothing could tell them apart")
        if self.kind == "survival" and self.labels:
            raise ValueError(f"task {self.name}: a survival task has bins, not labels; leave labels out")
        if self.kind == "ordinal" and not set() < set(self.positive) < {label.value for label in self.labels}:
            raise ValueError(f"task {self.name}: positive must name some of its labels, and not all")
        scales = [label.scale for label in self.labels]
        if len(list(groupby(scales))) > len(set(scales)):
            raise ValueError(f"task {self.name}: the labels of a scale must stand one after the other")
        if any(scales) and self.kind != "ordinal":
            raise ValueError(f"task {self.name}: only the labels of an ordinal task have a scale")
        return self

    @property
    def values(self) -> tuple[str, ...]:
        """Label values in the order of the vocabulary."""
        return tuple(label.value for label in self.labels)

    @property
    def probe_rows(self) -> int:
        """Rows of coefficients of its probe: one of survival and of two classes."""
        return 1 if len(self.labels) <= 2 else len(self.labels)


class ClinicalColumn(Part):
    """A clinical input; labels in disguise (see docs/data.md) are refused.

    Attributes:
        name: of its column in the cases table.
        values: categories; none = a number.
    """

    name: Literal["age", "sex"]
    values: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name == "age" and self.values:
            raise ValueError("clinical input age: it is a number, leave out values")
        if self.name == "sex" and sorted(self.values) != ["female", "male"]:
            raise ValueError('clinical input sex: values must be "female" and "male"')
        return self


class SlideSpec(Part):
    """The frozen slide encoder and the bags it reads.

    Attributes:
        encoder: ``small`` is built in, random and says nothing about slides; ``vit`` is a plain vision transformer.
        in_width: features per patch.
        patch_encoder: name of the patch encoder that made them, as feature files state it; not given = not compared.
        mpp: micrometres per pixel of the patches, likewise.
        patch_size: edge of a patch in those pixels, likewise.
        width, depth: of the frozen encoder.
        sha256: digest of the frozen weights, checked at every site.
        standardise: ``none``, ``feature`` (pooled mean and deviation of each feature) or ``position`` (the same per
            row of the bag, for bags whose rows mean the same thing in every case).
        rows: patches per bag when ``standardise = "position"``.
        max_patches: of a case; one with more is subsampled, by a seed.
        resample: training draws another subset of a larger bag in each epoch; evaluation always sees the same one.
        cache_embedding: embed patches once and keep them on the site's disk in half precision.
    """

    encoder: Literal["small", "longnet", "titan", "vit"] = "small"
    in_width: Annotated[int, Field(gt=0)]
    patch_encoder: Annotated[str, Field(pattern=r"^[\w.+/:@-]{1,64}$")] | None = None
    mpp: Annotated[float, Field(ge=0.05, le=10)] | None = None
    patch_size: Annotated[int, Field(gt=0)] | None = None
    width: Annotated[int, Field(gt=0, multiple_of=4)] = 64
    depth: Annotated[int, Field(gt=0)] = 2
    sha256: Digest
    standardise: Literal["none", "feature", "position"] = "none"
    rows: Annotated[int, Field(ge=0)] = 0
    max_patches: Annotated[int, Field(gt=0)] = 4096
    resample: bool = False
    cache_embedding: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.standardise == "position") != (self.rows > 0):
            raise ValueError('rows is needed with standardise = "position", and only there')
        if self.resample and self.cache_embedding:
            raise ValueError("resample draws other patches in each epoch: it cannot go with cache_embedding")
        return self

    @model_serializer(mode="wrap")
    def _what_it_says(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what it does not say, so that studies from before there was a field keep their digest."""
        return {name: value for name, value in serialise(self).items() if value is not None}


class TextSpec(Part):
    """The frozen text encoder that embeds labels.

    Attributes:
        encoder: its name.
        sha256: digest of its weights, checked at every site.
    """

    encoder: str = "minilm"
    sha256: Digest


class ModalitySpec(Part):
    """A further modality: one vector a case, from a table that a site names under ``[paths.modalities]``.

    Attributes:
        name: by which a site names its table.
        columns: numeric columns, standardised over the federation; none = a column ``text`` (reports), embedded at the
            site by a frozen text encoder.
        text: that encoder.
        width: of the vector: the text encoder's, or the number of columns.
        tokens: what the adapters see of it.
    """

    name: Name
    columns: tuple[str, ...] = ()
    text: TextSpec | None = None
    width: Annotated[int, Field(gt=0)]
    tokens: Annotated[int, Field(gt=0)] = 1

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name in ("slides", "expression", "clinical"):
            raise ValueError(f"modality {self.name} has a part of its own in the study; choose another name")
        if bool(self.columns) == (self.text is not None):
            raise ValueError(f"modality {self.name}: give either columns or a text encoder")
        if self.columns and (len(self.columns) != self.width or len(set(self.columns)) != self.width):
            raise ValueError(f"modality {self.name}: width {self.width} but {len(set(self.columns))} different columns")
        return self


class Study(Part):
    """A study. Its canonical JSON has a SHA-256, the digest, which names it.

    Attributes:
        name: of the study.
        seed: of every random draw.
        roster: names of the sites.
        quorum: sites that a round needs; a round with fewer is repeated, ``attempts`` times in all.
        deadline_seconds: how long a round waits for its sites.
        attempts: of a round.
        site_cases: most cases of a split that a site may claim, and so most weight that it can have.
        gene_sets: name -> genes; without any, expression is not used.
        gene_panel: genes of the sets that all sites with expression measure, or that any does. In a union, a gene that
            a site does not measure is the pooled mean there, with a flag beside it; flags can give the site away.
    """

    name: Name
    seed: Annotated[int, Field(ge=0)] = 0
    tasks: tuple[TaskSpec, ...]
    roster: tuple[Name, ...]
    quorum: Annotated[int, Field(ge=1)] = 1
    deadline_seconds: Annotated[float, Field(gt=0)] = 600.0
    attempts: Annotated[int, Field(ge=1)] = 3
    site_cases: dict[Name, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    slides: SlideSpec
    text: TextSpec
    gene_sets: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    gene_panel: Literal["intersection", "union"] = "intersection"
    clinical: tuple[ClinicalColumn, ...] = (
        ClinicalColumn(name="age"),
        ClinicalColumn(name="sex", values=("female", "male")),
    )
    modalities: tuple[ModalitySpec, ...] = ()
    model: ModelSpec = ModelSpec()
    training: TrainingSpec = TrainingSpec()
    aggregation: AggregationSpec = AggregationSpec()
    privacy: PrivacySpec = PrivacySpec()
    release: ReleaseSpec = ReleaseSpec()
    label_queries: LabelQuerySpec = LabelQuerySpec()
    probes: ProbesSpec = ProbesSpec()
    evaluation: EvaluationSpec = EvaluationSpec()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"tasks must be named once each, got {names}")
        if len({modality.name for modality in self.modalities}) != len(self.modalities):
            raise ValueError("modalities must be named once each")
        if len({column.name for column in self.clinical}) != len(self.clinical):
            raise ValueError("clinical inputs must be named once each")
        self._check_modalities()
        if not self.roster or len(set(self.roster)) != len(self.roster):
            raise ValueError("roster must name each site once")
        if self.slides.resample and self.model.groups[0][0] > 0:
            raise ValueError(
                "slides.resample needs adapters from the first layer on: with later ones the frozen layers before them"
                " are computed once for each case"
            )
        baseline = self.model.kind != "modaltune"
        if not baseline:
            self._check_adapters()
        if baseline != (self.training.objective == "hazards") or (baseline and self.model.head != "separate"):
            raise ValueError(
                'a baseline needs model.head = "separate" and training.objective = "hazards", and only a baseline has'
                " hazards"
            )
        if self.training.drift and self.aggregation.optimiser != "none":
            raise ValueError(
                "training.drift takes the next weights for the average of the updates, which they are not with"
                f" aggregation.optimiser = {self.aggregation.optimiser!r}; set one of the two to its default"
            )
        if self.aggregation.extrapolate:
            self._check_extrapolation()
        if self.probes.questions:
            self._check_probes()
        if strangers := sorted(set(self.site_cases) - set(self.roster)):
            raise ValueError(f"site_cases names {strangers[0]}, which the roster does not")
        if self.quorum > len(self.roster):
            raise ValueError(f"quorum {self.quorum} exceeds the roster of {len(self.roster)} sites")
        return self

    def _check_modalities(self) -> None:
        """Refuse labels in disguise."""
        tasks = [task.name for task in self.tasks]
        for modality in self.modalities:
            for column in labels_in_disguise(modality.columns, tasks)[:1]:
                raise ValueError(f"modality {modality.name}: {column} is a label in disguise and never an input")

    def _check_adapters(self) -> None:
        """Whether adapters of these sizes fit the frozen encoder."""
        model, last = self.model, self.slides.depth - 1
        if model.groups[-1][1] != last:
            raise ValueError(
                f"model.groups end at layer {model.groups[-1][1]}, but the last of slides.depth = {last + 1} layers is"
                f" {last}; end the last group there"
            )
        inner = int(self.slides.width * model.width_ratio)
        if inner == 0 or inner % model.heads:
            raise ValueError(
                f"model.heads {model.heads} does not divide the width inside an adapter, {inner} (slides.width"
                f" {self.slides.width} times model.width_ratio {model.width_ratio:g}); change one of the three"
            )

    def _check_extrapolation(self) -> None:
        if self.aggregation.rule != "mean" or self.aggregation.optimiser != "none" or self.training.drift:
            raise ValueError(
                "aggregation.extrapolate lengthens the step of a plain mean; it goes neither with another"
                " aggregation.rule or aggregation.optimiser nor with training.drift"
            )

    def _check_probes(self) -> None:
        if self.model.kind != "modaltune":
            raise ValueError('probes need model.kind = "modaltune"; set probes.questions = 0 for a baseline')
        for task in self.tasks:
            count = task.probe_rows * (self.model.output_width + 1)
            if count > MOST_COEFFICIENTS:
                raise ValueError(
                    f"task {task.name}: a probe has {count} coefficients (classes times model.output_width + 1), more"
                    f" than {MOST_COEFFICIENTS}; answers grow with their square: set probes.questions = 0"
                )

    def task(self, name: str) -> TaskSpec:
        """The task called ``name``."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise ConfigError(f"study {self.name} has no task {name!r}; it has {', '.join(t.name for t in self.tasks)}")

    def to_json(self) -> str:
        """Canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    def among(self, roster: Sequence[str], **changes: Any) -> Study:
        """The same study among some of its hospitals, with other fields as given."""
        cases = {name: most for name, most in self.site_cases.items() if name in roster}
        narrowed = {"roster": tuple(roster), "quorum": min(self.quorum, len(roster)), "site_cases": cases}
        return self.model_copy(update=narrowed | changes)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return digest_text(self.to_json())

    @classmethod
    def from_json(cls, text: str) -> Study:
        """Parse canonical JSON."""
        return _validated(text, "study")

    @classmethod
    def load(cls, path: Path) -> Study:
        """Read ``study.toml`` or ``study.json``."""
        if not path.is_file():
            raise ConfigError(f"{path}: no such study file; write one or copy study.json from a run folder")
        try:
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".toml":
                text = canonical_json(tomllib.loads(text))
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: not UTF-8 text; expected study.toml or study.json") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from error
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: holds a date, NaN or infinity, which no field of a study takes") from error
        return _validated(text, str(path))


def _validated(text: str, where: str) -> Study:
    try:
        return Study.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """One line about the first thing pydantic found, without the offending input."""
    problem: Any = error.errors(include_input=False, include_url=False)[0]
    field, said = ".".join(map(str, problem["loc"])), str(problem["msg"]).removeprefix("Value error, ")
    more = error.error_count() - 1
    return (f"{field}: {said}" if field else said) + (f" (and {more} more)" if more else "")
