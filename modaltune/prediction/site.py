"""A released model beside the cases of one site: the contract between them, checked once for all commands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modaltune.data.batch import CaseTensors
from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import Preprocessing, prepare
from modaltune.data.site import SiteConfig, load_site, read_cases, read_site_config
from modaltune.data.slide_settings import difference, stated
from modaltune.errors import ConfigError, DataError, FeatureFileError
from modaltune.evaluation.external import panel_expression
from modaltune.federation.study import Study
from modaltune.models.learner import Learner, load_model
from modaltune.storage import digest_file
from modaltune.training import training_device

RESEARCH_ONLY = "research use only, not a medical device"
UNKNOWN_SPLIT = "unknown"


@dataclass(frozen=True, kw_only=True)
class ModelAtSite:
    """A model and the cases that it is shown. No label column of the site was read.

    Attributes:
        model: first twelve digits of the SHA-256 of the trained weights.
        folder: of the site.
        cases: every case of ``cohort``, in its order; patches stay on disk.
        notes: one line each, for a person to read.
    """

    learner: Learner
    study: Study
    preprocessing: Preprocessing
    model: str
    folder: Path
    config: SiteConfig
    cohort: Cohort
    cases: list[CaseTensors]
    notes: tuple[str, ...] = ()

    @property
    def minimum(self) -> int:
        """Smallest group of patients that is reported."""
        return max(self.study.privacy.min_cell, self.config.policy.min_cell)

    def reported(self, count: int) -> int | None:
        """A count of patients as it may be printed; None for a small group."""
        return count if count == 0 or count >= self.minimum else None

    @property
    def genes_absent(self) -> int:
        """Genes of the model's panel that the site does not measure; all of them without expression."""
        return len(self.preprocessing.genes) - int(self.measured.sum())

    @property
    def measured(self) -> NDArray[np.bool_]:
        """``[G]`` which genes of the panel the site measures."""
        columns = [] if self.cohort.expression is None else list(self.cohort.expression.columns)
        return np.isin(np.array(self.preprocessing.genes, dtype=object), columns)

    def rows(self, split: str) -> list[int]:
        """Places of the cases of a split, ``all`` or ``test``.

        Raises:
            DataError: there is none, or nobody knows which cases the model was trained on.
        """
        if split == "all":
            return list(range(len(self.cases)))
        splits = self.cohort.cases["split"]
        if (splits == UNKNOWN_SPLIT).any():
            raise DataError(
                f"site {self.cohort.site}: the model was trained here alone and the cases have no column 'split', so"
                " nobody can tell which ones it saw; take --split all, or write the splits into the cases table"
            )
        found = np.flatnonzero(splits == split).tolist()
        if not found:
            raise DataError(f"site {self.cohort.site}: none of {len(splits)} cases is in split {split!r}; try all")
        return found


def model_at_site(model: Path, folder: Path, public_pem: str | None = None) -> ModelAtSite:
    """Load a model folder and a site folder, and check that they fit.

    Args:
        model: ``model/`` folder of a run.
        folder: site folder; its label columns are not read.
        public_pem: the model must be signed by the owner of this public key.
    Raises:
        ModalTuneError: one line that says what is wrong where, and how to correct it.
    """
    learner, study, preprocessing = load_model(model, public_pem)
    config = read_site_config(folder)
    cohort = load_site(folder, split_salt=study.digest, with_labels=False)
    _require_width(cohort, study)
    cohort = replace(cohort, expression=panel_expression(cohort.expression, study, preprocessing, cohort.site))
    cohort = _with_known_split(cohort, folder, config, study)
    cases = prepare(cohort, study, preprocessing, memory_limit=0)
    found = ModelAtSite(
        learner=learner.to(training_device(config.compute.device)),
        study=study,
        preprocessing=preprocessing,
        model=digest_file(model / "weights.safetensors")[:12],
        folder=folder,
        config=config,
        cohort=cohort,
        cases=cases,
    )
    return replace(found, notes=tuple(_notes(found)))


def require_extractors(study: Study) -> None:
    """Refuse a published row: what explains a prediction are ModalTune's extractors and gene tokens."""
    if study.model.kind != "modaltune":
        raise ConfigError(
            f"the model is a baseline ({study.model.kind}), which has no extractors to look into;"
            " give the model of a study with model.kind = 'modaltune'"
        )


def require_task(study: Study, task: str) -> None:
    """Refuse a task that the model does not have."""
    names = [spec.name for spec in study.tasks]
    if task not in names:
        raise ConfigError(f"--task {task!r}: the model has {', '.join(names)}")


def _require_width(cohort: Cohort, study: Study) -> None:
    width = cohort.patch_width
    if width is not None and width != study.slides.in_width:
        raise FeatureFileError(
            f"site {cohort.site}: bags have {width} features per patch but the model needs {study.slides.in_width};"
            " extract them with the patch encoder that the model was trained with"
        )
    if differs := difference(stated(cohort), study.slides):
        raise FeatureFileError(f"site {cohort.site}: the bags have {differs} of the model; extract them as it says")


def _with_known_split(cohort: Cohort, folder: Path, config: SiteConfig, study: Study) -> Cohort:
    """A model of ``modaltune train`` names this site alone, and not the study whose digest split the cases."""
    if study.roster != (cohort.site,) or config.splits is not None:
        return cohort
    if config.columns.get("split", "split") in read_cases(folder, config).columns:
        return cohort
    return replace(cohort, cases=cohort.cases.assign(split=UNKNOWN_SPLIT))


def _notes(found: ModelAtSite) -> list[str]:
    site, genes = found.cohort.site, len(found.preprocessing.genes)
    notes = []
    if found.cohort.expression is not None and found.genes_absent:
        notes.append(f"{found.genes_absent} of {genes} genes are not measured here and count as average")
    known = {modality.name for modality in found.study.modalities}
    notes += [f"modality {name} is no input of this model" for name in found.cohort.modalities if name not in known]
    if site in found.study.roster:
        splits = found.cohort.cases["split"]
        seen = f"the {int((splits != 'test').sum())} cases that are not in split test"
        if (splits == UNKNOWN_SPLIT).any():
            seen = "the cases that it saw, and nobody can tell which these are,"
        notes.append(
            f"{site} took part in the training: what the model says about {seen} is better than it would be for new"
            " patients"
        )
    return notes
