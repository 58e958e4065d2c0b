"""The study: everything a federation agrees on, in one file with one digest."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from modaltune.errors import ConfigError
from modaltune.federation.inputs import ClinicalColumn, ModalitySpec, SlideSpec, TextSpec
from modaltune.federation.label_names import labels_in_disguise
from modaltune.federation.settings import (
    MOST_COEFFICIENTS,
    AggregationSpec,
    EvaluationSpec,
    LabelQuerySpec,
    ModelSpec,
    Name,
    Part,
    PrivacySpec,
    ProbesSpec,
    ReleaseSpec,
    TrainingSpec,
)
from modaltune.federation.task import TaskSpec
from modaltune.storage import canonical_json, digest_text


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

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Its survival tasks."""
        return tuple(task.name for task in self.tasks if task.kind == "survival")

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
