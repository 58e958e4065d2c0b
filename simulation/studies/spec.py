"""What a study file says: data, settings, axes, methods and seeds of a grid of experiments."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from modaltune.data.tcga import DIAGNOSES
from modaltune.errors import ConfigError
from modaltune.federation.settings import Name
from modaltune.tasks.vocabulary import configs_folder
from simulation.baselines import PROBES
from simulation.experiment import ABLATIONS, COMPARISONS, ON_REQUEST
from simulation.study import problem
from simulation.synthetic import DEFAULT_CASES, FEWEST_CASES

METHODS = ("federated", *COMPARISONS, *ON_REQUEST, *ABLATIONS, *PROBES)

_SETTINGS = {"synthetic", "tcga"}  # of the folder's files, those that are no studies
Modality = Literal["expression", "slides"]
Table = dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSpec(_Part):
    """Whose cases, and what is done to them before they are handed to the hospitals.

    Attributes:
        kind: ``synthetic`` or ``tcga``.
        cases: synthetic: patients over all hospitals.
        cohorts: TCGA: one, or several whose hospitals (``BRCA-H1``) form one federation.
        cancers: several cohorts: tasks are theirs ``together``, with the labels of all, or diagnosis, stage and grade
            stand ``apart``, as ``kidney_stage``.
        features: TCGA: feature files ``DIR/COHORT/features/NAME/SLIDE_ID.h5`` in place of the image tables.
        modalities: what the federation uses at all.
        hospitals: which of them (``H1``), default all.
        leave_out: hospitals that do not train; their test cases are scored all the same.
        tasks: hospital -> tasks it labels, or ``disjoint``; default all that it has labels for.
        labelled: share of its labels of each task that a hospital keeps for training and validation.
        without: hospital -> modalities taken away.
        fill: a modality that a case lacks is filled with the mean over the training cases that have it.
        sites: all cases dealt anew to this many sites; each case keeps its split.
        skew: concentration of the Dirichlet draw that deals each diagnosis to the sites; smaller = more skewed.
        probe: further TCGA cohorts, on which linear probes of the frozen federated model are fitted and tested.
    """

    kind: Literal["synthetic", "tcga"]
    cases: Annotated[int, Field(ge=FEWEST_CASES)] = DEFAULT_CASES
    cohorts: tuple[str, ...] = ()
    cancers: Literal["together", "apart"] = "together"
    features: Name | None = None
    modalities: Annotated[tuple[Modality, ...], Field(min_length=1)] = ("expression", "slides")
    hospitals: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    tasks: Literal["disjoint"] | dict[str, tuple[str, ...]] = {}
    labelled: Annotated[float, Field(gt=0, le=1)] = 1.0
    without: dict[str, tuple[Modality, ...]] = {}
    fill: bool = False
    sites: Annotated[int, Field(ge=1, le=50)] | None = None
    skew: Annotated[float, Field(gt=0)] | None = None
    probe: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.kind == "tcga") != bool(self.cohorts):
            raise ValueError('cohorts belong to kind = "tcga", which needs at least one')
        if self.kind == "synthetic" and (self.features or self.probe):
            raise ValueError('features and probe need kind = "tcga"')
        if unknown := [name for name in (*self.cohorts, *self.probe) if name not in DIAGNOSES]:
            raise ValueError(f"unknown cohort {unknown[0]!r}; choose from {', '.join(sorted(DIAGNOSES))}")
        if self.cancers == "apart" and len(self.cohorts) < 2:
            raise ValueError('cancers = "apart" needs several cohorts')
        if twice := {*self.cohorts} & {*self.probe}:
            raise ValueError(f"{min(twice)} is both trained on and probed")
        if self.skew is not None and self.sites is None:
            raise ValueError("skew says how cases are dealt to sites; give their number too")
        if self.sites is not None and (self.tasks or self.without or self.leave_out or len(self.cohorts) > 1):
            raise ValueError("sites deals the cases of one cohort anew; tasks, without and leave_out name hospitals")
        return self


RESULT_COLUMNS = frozenset(
    [
        "cell",
        "setting",
        "method",
        "task",
        "metric",
        "hospital",
        "value",
        "low",
        "high",
        "n",
        "seed",
        "seeds",
        "undefined",
        "status",
        "steps",
        "seconds",
        "megabytes",
    ]
)


class Axis(_Part):
    """One direction of the grid.

    Attributes:
        name: a setting with a dot (``training.wire``, ``data.sites``), or any name when there are variants.
        values: of that setting.
        variants: label -> settings that go together, table by table.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$")]
    values: tuple[Any, ...] = ()
    variants: dict[str, dict[str, Table]] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.values) == bool(self.variants):
            raise ValueError(f"axis {self.name}: give either values or variants")
        if self.name in RESULT_COLUMNS:
            raise ValueError(f"axis {self.name}: a column of the results has this name; choose another")
        if self.values and self.name.count(".") != 1:
            raise ValueError(f"axis {self.name}: values are of one setting, e.g. training.wire; or give variants")
        return self


class ShowSpec(_Part):
    """What the table and the figures show; the results file always holds everything.

    Attributes:
        hospitals: whose test cases: ``all``, a hospital, a cohort of several, or ``each``, the mean over hospitals of
            their own scores.
        metrics: default the first of each task.
    """

    hospitals: tuple[str, ...] = ("all",)
    metrics: tuple[str, ...] = ("auc", "c_index", "auc_probe", "c_index_probe")


class StudyFile(_Part):
    """A study file.

    Attributes:
        name: of the study; its results go to ``runs/NAME`` unless told otherwise.
        like: a study file, seen from this one's folder, or a ready-made study; its keys hold where this one has none.
        title: heading of the page.
        note: what it is for, in a sentence or two.
        seeds: of every cell; each draws split, weights and batches.
        methods: what is scored in every cell; the federation itself always is.
        trackers: where results are sent beside the log: ``tensorboard``, ``mlflow``, ``wandb``.
        data, slides, model, training, aggregation, privacy, release: the settings that all cells share.
        axes: the grid is their product.
        show: what is shown.
    """

    name: Name
    like: str = ""
    title: str = ""
    note: str = ""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    methods: tuple[str, ...] = ("federated",)
    trackers: tuple[str, ...] = ()
    data: Table
    slides: Table = {}
    model: Table = {}
    training: Table = {}
    aggregation: Table = {}
    privacy: Table = {}
    release: Table = {}
    axes: tuple[Axis, ...] = ()
    show: ShowSpec = ShowSpec()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise ValueError(f"unknown method {unknown[0]!r}; choose from {', '.join(METHODS)}")
        for what, names in (("seed", self.seeds), ("axis", tuple(axis.name for axis in self.axes))):
            if len(set(names)) < len(names):
                raise ValueError(f"the same {what} is given twice")
        return self


_PARTS: dict[str, type[BaseModel]] = {"axes": Axis, "show": ShowSpec}


def load_study_file(path: Path) -> StudyFile:
    """Read a study file, or a ready-made one of ``configs/studies`` by its name.

    Raises:
        ConfigError: absent, not TOML, or a key is unknown or wrong.
    """
    found = _existing(path)
    try:
        return StudyFile.model_validate(_content(found))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{found}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{found}: {problem(error, StudyFile, _PARTS)}") from error


def _existing(path: Path) -> Path:
    ready = configs_folder() / "studies"
    if not path.is_file() and (ready / f"{path.name}.toml").is_file():
        path = ready / f"{path.name}.toml"
    if not path.is_file():
        names = ", ".join(sorted({file.stem for file in ready.glob("*.toml")} - _SETTINGS))
        raise ConfigError(f"{path}: no such study file; write one (docs/studies.md) or name a ready-made one: {names}")
    return path


def _content(path: Path) -> dict[str, Any]:
    """What a file says, on top of the one that it is ``like``: tables key by key, anything else as a whole."""
    own = tomllib.loads(path.read_text(encoding="utf-8"))
    if not isinstance(own.get("like", ""), str) or not own.get("like"):
        return own
    base = tomllib.loads(_existing(path.parent / own["like"]).read_text(encoding="utf-8"))
    if "like" in base:
        raise ConfigError(f"{path}: like = {own['like']!r} is like another one itself; name that one")
    tables = [key for key, value in own.items() if isinstance(value, dict) and isinstance(base.get(key), dict)]
    return base | own | {key: base[key] | own[key] for key in tables}
