"""The models a federation is compared with: local-only, pooled and linear, on the same cases with the same budget.

Pooled data exist only in a simulation. Each model runs in a process of its own, one thread each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from modaltune.data import case_table
from modaltune.data.batch import CaseTensors, readable
from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import Preprocessing, TaskSpace, prepare
from modaltune.data.site import load_site, state_folder
from modaltune.encoders.text import verified_text_encoder
from modaltune.evaluation.linear import fit_linear
from modaltune.evaluation.predictions import COLUMNS, predict, prediction_table
from modaltune.federation.label_query import zero_shot
from modaltune.federation.study import Study
from modaltune.federation.task import TaskSpec
from modaltune.models.learner import Learner, build_learner, load_trainable
from modaltune.models.prefix import with_cached_prefix
from modaltune.seeds import derive_seed
from modaltune.storage import canonical_json, digest_text, load_state, write_bytes
from modaltune.training import fit_and_average, fit_and_select, labelled, round_steps
from simulation.engine import cores, end_with_parent
from simulation.probes import embeddings_of, probe_tables

PERSONAL_SHARE = 0.25
"""Of a hospital's own steps in the federation, the last ones, which ``personalised`` repeats on its own cases alone."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything a comparison needs, as paths and text so that other processes can open it.

    Attributes:
        sites: site name -> folder the hospital trains on.
        truth: site name -> folder with every label, for scoring test cases only.
        study, preprocessing: canonical JSON.
        weights: of the federated model, for comparisons that go on from them.
        kept: folder that receives the predictions of each model as soon as it is trained; those in it stand.
        cancers: site name -> its cohort, where those of several form one federation.
    """

    sites: Mapping[str, Path]
    truth: Mapping[str, Path]
    study: str
    preprocessing: str
    weights: Path | None = None
    kept: Path | None = None
    cancers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model to train: ``pooled`` on everybody's training cases, ``local`` on one hospital's, or ``personalised``.

    ``personalised`` goes on from the federated weights on one hospital's own cases.
    """

    method: str
    hospital: str = ""
    steps: int = 0


class Predicted(NamedTuple):
    """Predictions of one model for everybody's test cases: its own, and of probes on its embeddings."""

    table: pd.DataFrame
    probes: pd.DataFrame

    @classmethod
    def read(cls, folder: Path) -> Predicted:
        """What :meth:`write` left."""
        return cls(*(pd.read_parquet(folder / f"{name}.parquet") for name in cls._fields))

    def write(self, folder: Path) -> None:
        """Both tables, complete or not at all."""
        for name in reversed(self._fields):  # who finds the first finds the other
            write_bytes(folder / f"{name}.parquet", getattr(self, name).to_parquet(index=False))


class Hospitals:
    """All hospitals of a scene in memory, prepared."""

    def __init__(self, scene: Scene) -> None:
        self.study = Study.from_json(scene.study)
        self.preprocessing = Preprocessing.from_json(scene.preprocessing)
        self.weights, self.cancers, self.folders = scene.weights, scene.cancers, scene.sites
        self.cohorts = {site: self._load(folder) for site, folder in scene.sites.items()}
        self.cases = {site: self._prepare(cohort) for site, cohort in self.cohorts.items()}
        same = scene.truth == scene.sites
        self.truth = self.cohorts if same else {site: self._load(folder) for site, folder in scene.truth.items()}
        self.truth_cases = self.cases if same else {site: self._prepare(cohort) for site, cohort in self.truth.items()}

    @property
    def groups(self) -> dict[str, list[str]]:
        """Hospitals that share probes, by the name of their rows: each cohort of several, else ``all``."""
        sites = sorted(self.truth)
        if not self.cancers:
            return {"all": sites}
        names = sorted({self.cancers[site] for site in sites})
        return {name: [site for site in sites if self.cancers[site] == name] for name in names}

    def split(self, site: str, split: str) -> list[CaseTensors]:
        """Prepared cases of one split of a hospital."""
        inside = self.cohorts[site].cases["split"] == split
        return [case for case, keep in zip(self.cases[site], inside, strict=True) if keep]

    def shown(self, learner: Learner, site: str, split: str) -> list[CaseTensors]:
        """The same, with cached tokens in place of patches where the hospital's client trains on those."""
        spec, folder = self.study.slides, state_folder(self.folders[site]) / "prefix"
        cases = self.split(site, split)
        return with_cached_prefix(learner.modaltune, spec.sha256, cases, folder, embedding=spec.cache_embedding)

    def budget(self, needs: Sequence[str] = ()) -> int:
        """Optimiser steps of the federated run, summed over hospitals, for a model that needs some modalities."""
        return sum(self.own_steps(site, needs) for site in self.cohorts)

    def own_steps(self, site: str, needs: Sequence[str] = ()) -> int:
        """Optimiser steps that one hospital takes in the federated run."""
        spec = self.study.training
        count = sum(readable(case, needs) for case in labelled(self.split(site, "train")))
        if count < self.study.privacy.min_cell:
            return 0
        return round_steps(count, spec) * spec.rounds

    def _load(self, folder: Path) -> Cohort:
        return load_site(folder, split_salt=self.study.digest)

    def _prepare(self, cohort: Cohort) -> list[CaseTensors]:
        return prepare(cohort, self.study, self.preprocessing)


def trainable(data: Hospitals, needs: Sequence[str]) -> list[str]:
    """Hospitals with a labelled training case that a model with these needs can read."""
    return [
        site
        for site in sorted(data.cohorts)
        if any(case.targets and readable(case, needs) for case in data.split(site, "train"))
    ]


def run_jobs(
    scene: Scene, jobs: Sequence[Job], done: Callable[[Job], None] | None = None
) -> list[tuple[Job, Predicted]]:
    """Train every job's model and predict all hospitals' test cases, in as many processes as :func:`cores`.

    Jobs whose predictions ``scene.kept`` has are not run.
    """
    places = {job: _place(scene, job) for job in jobs}
    found = {job: Predicted.read(at) for job, at in places.items() if at and (at / "table.parquet").is_file()}
    waiting = [job for job in jobs if job not in found]
    if not waiting:
        return list(found.items())
    workers = min(len(waiting), cores())
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_open, initargs=(scene,)) as pool:
        for job, predicted in zip(waiting, pool.map(_run, waiting, map(places.get, waiting)), strict=True):
            found[job] = predicted
            if done is not None:
                done(job)
    return [(job, found[job]) for job in jobs]


def _place(scene: Scene, job: Job) -> Path | None:
    """Folder of the predictions of a job's model, if they are to be kept."""
    if scene.kept is None:
        return None
    return scene.kept / digest_text(canonical_json([scene.study, scene.preprocessing, vars(job)]))


_hospitals: Hospitals


def _open(scene: Scene) -> None:
    global _hospitals
    end_with_parent()
    torch.set_num_threads(1)
    _hospitals = Hospitals(scene)


def _run(job: Job, place: Path | None) -> Predicted:
    found = _predicted(job)
    if place is None:
        return found
    found.write(place)
    return Predicted.read(place)


def _predicted(job: Job) -> Predicted:
    data = _hospitals
    study, learner = data.study, build_learner(data.study, data.preprocessing)
    seed = derive_seed(study.seed, job.method, job.hospital)
    if job.method == "pooled":
        everyone = [case for site in sorted(data.cohorts) for case in data.shown(learner, site, "train")]
        fit_and_average(learner, everyone, study.training, steps=job.steps, seed=seed)
    else:
        start = 0.0
        if job.method == "personalised" and data.weights is not None:
            load_trainable(learner, load_state(data.weights))
            start = 1 - PERSONAL_SHARE
        train, validation = (data.shown(learner, job.hospital, split) for split in ("train", "val"))
        fit_and_select(learner, train, validation, study.training, steps=job.steps, seed=seed, start=start)
    own = everybodys_test_cases(data, lambda site: predict_site(data, learner, site))
    if study.model.kind != "modaltune":
        return Predicted(own, pd.DataFrame(columns=list(COLUMNS)))
    fitted_on = [job.hospital] if job.hospital else sorted(data.cohorts)
    probed = probe_tables(data, embeddings_of(learner), fitted_on, together=True, cancer=True)
    return Predicted(own, probed.table)


def predict_site(data: Hospitals, learner: Learner, site: str, *, temperature: bool = True) -> pd.DataFrame:
    """Predictions of a model for the test cases of one hospital, with the labels that only the simulation knows."""
    cohort, cases = data.truth[site], data.truth_cases[site]
    return predict(learner, data.study, data.preprocessing, cohort, cases, temperature=temperature)


def everybodys_test_cases(data: Hospitals, predict_one: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
    """Predictions for all hospitals' test cases, in one table."""
    tables = [predict_one(site) for site in sorted(data.truth)]
    return pd.concat([table for table in tables if len(table)] or tables, ignore_index=True)


def texts_alone(data: Hospitals, learner: Learner, task: TaskSpec, space: TaskSpace) -> pd.DataFrame:
    """Predictions for everybody's test cases of a task that the model's study lacks, by the task's texts alone."""
    vectors = verified_text_encoder(data.study.text).embed(space.texts)

    def predict_one(site: str) -> pd.DataFrame:
        inside = (data.truth[site].cases["split"] == "test").to_numpy()
        cases = [case for case, keep in zip(data.truth_cases[site], inside, strict=True) if keep]
        chances = zero_shot(learner, data.study, cases, vectors).double().softmax(dim=-1).numpy()
        return prediction_table(data.truth[site].cases[inside], site, task, space, chances)

    return everybodys_test_cases(data, predict_one)


def linear_predictions(data: Hospitals, hospitals: Sequence[str]) -> pd.DataFrame:
    """The linear models of some hospitals together, scored on everybody's test cases; unfitted tasks are absent."""
    names = sorted(hospitals)
    train = [case for site in names for case in data.split(site, "train")]
    survival = {
        task: [outcome for site in names for outcome in _outcomes(data.cohorts[site], task)]
        for task in data.study.endpoints
    }
    candidates = {task: space.candidates for task, space in data.preprocessing.tasks.items()}
    tests = {site: (data.truth[site].cases["split"] == "test").to_numpy() for site in sorted(data.truth)}
    asked = [case for site, keep in tests.items() for case, k in zip(data.truth_cases[site], keep, strict=True) if k]
    scores = fit_linear(train, survival, asked, data.study, candidates)
    tables, start = [], 0
    for site, keep in tests.items():
        rows = slice(start, start + int(keep.sum()))
        start = rows.stop
        frame = data.truth[site].cases[keep]
        for task in data.study.tasks:
            if task.name not in scores or task.name not in data.truth[site].tasks:
                continue
            part, space = scores[task.name][rows], data.preprocessing.tasks[task.name]
            if task.kind == "survival":
                table = prediction_table(frame, site, task, space, np.zeros((len(frame), len(space.candidates))))
                known = case_table.labelled(frame, task.name).to_numpy()
                table["risk"], table["probabilities"] = part[known, 0], None
            else:
                table = prediction_table(frame, site, task, space, part)
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))


def _outcomes(cohort: Cohort, task: str) -> list[tuple[float, bool] | None]:
    train = cohort.cases[cohort.cases["split"] == "train"]
    of_time, of_event = case_table.task_columns(task)
    if of_time not in train:
        return [None] * len(train)
    pairs = zip(train[of_time], train[of_event], strict=True)
    return [None if pd.isna(months) or pd.isna(event) else (float(months), bool(event)) for months, event in pairs]
