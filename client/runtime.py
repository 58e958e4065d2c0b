"""What a hospital's process does with a message, apart from Flower: load, verify, train, answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from client.memory import Memory, ProbeMemory, RoundMemory, TrainingReply
from client.prepared import PreparedCases
from modaltune.data.batch import CaseTensors
from modaltune.data.cohort import Cohort
from modaltune.data.fewer_patches import until_it_fits
from modaltune.data.preprocessing import Preprocessing
from modaltune.data.site import load_site, read_site_config, state_folder
from modaltune.data.slide_settings import SlideSettings, check_slides, stated
from modaltune.drift import Drift
from modaltune.errors import FederationError, ProbeError
from modaltune.evaluation.federated import site_counts
from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.predictions import Families, embed_cases, events_behind, metric_rows, outcome_groups, predict
from modaltune.evaluation.probes.embeddings import (
    as_probe_row,
    embedded,
    labelled_cases,
    numbers_of,
    probe_predictions,
    probe_spec,
)
from modaltune.evaluation.probes.fit import Probe, ProbeQuestion
from modaltune.evaluation.probes.sums import SiteCases
from modaltune.evaluation.survival import Censoring
from modaltune.federation import probe_query
from modaltune.federation.average import State
from modaltune.federation.capability import reads_slides, versions
from modaltune.federation.label_query import Answer, LabelQuery, site_answer
from modaltune.federation.manifest import METRIC_PARTS, Manifest, reported_metrics, statistics_manifest
from modaltune.federation.probe_query import Arrays, ProbeQuery
from modaltune.federation.statistics import Sums, site_statistics
from modaltune.federation.study import Study
from modaltune.federation.task import FURTHER, HEADLINES, TaskSpec
from modaltune.federation.wire import Packed, decode_weights, encode_update, message_manifest
from modaltune.models.learner import Learner, build_learner, load_trainable
from modaltune.models.modaltune import trainable_state
from modaltune.seeds import derive_seed
from modaltune.storage import canonical_json, digest_state, digest_text
from modaltune.suppression import has_small_group
from modaltune.training import (
    evaluation_loss,
    fit,
    labelled,
    make_optimiser,
    optimiser_state,
    restore_optimiser,
    round_steps,
    training_device,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")
Prepared = list[CaseTensors]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a site tells of its test cases: metrics by name, and counts where the study asks for them."""

    metrics: dict[str, float]
    counts: Arrays


class Site:
    """One hospital's data as one study sees it; :meth:`of` keeps it in memory between messages."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.config = read_site_config(folder)
        self.study = study
        self.state_folder = state_folder(folder)
        self.memory = RoundMemory(self.state_folder / study.digest)
        self.probe_memory = ProbeMemory(self.state_folder / study.digest / "probes")
        if self.config.name not in study.roster:
            raise FederationError(
                f"site {self.config.name} is not in the roster of study {study.name} ({', '.join(study.roster)})"
            )
        self.device = training_device(self.config.compute.device)
        labels = {task.name: task.values for task in study.tasks if task.kind != "survival"}
        self.cohort: Cohort = load_site(folder, split_salt=study.digest, labels=labels)
        self.prepared = PreparedCases(self.cohort, study, self.memory, self.state_folder / "prefix")
        check_slides(self.cohort, study)

    @staticmethod
    @lru_cache(maxsize=16)
    def of(folder: Path, study_json: str) -> Site:
        """The site of a folder in a study given as canonical JSON."""
        return Site(folder, Study.from_json(study_json))

    @property
    def minimum(self) -> int:
        """Counts below it do not leave."""
        return max(self.study.privacy.min_cell, self.config.policy.min_cell)

    def capability(self) -> dict[str, Any]:
        """What the server may know before the first round: names, versions, counts that are large enough."""
        cases = self.cohort.cases
        splits = {name: int((cases["split"] == name).sum()) for name in ("train", "val", "test")}
        return {
            "site": self.cohort.site,
            "tasks": [task.name for task in self.study.tasks if task.name in self.cohort.tasks],
            "genes": self._genes(),
            "modalities": [
                *(["slides"] if self.cohort.patch_width else []),
                *(["expression"] if self.cohort.expression is not None and self.study.gene_sets else []),
                *(["clinical"] if self.study.clinical else []),
                *(modality.name for modality in self.study.modalities if modality.name in self.cohort.modalities),
            ],
            **{f"cases-{name}": count if count >= self.minimum else 0 for name, count in splits.items()},
            **{f"version-{name}": value for name, value in versions().items()},
            **self.patches.told(),
        }

    @property
    def patches(self) -> SlideSettings:
        """How the slides that the study reads were cut and encoded, as far as their files say it."""
        return stated(self.cohort) if reads_slides(self.study) else SlideSettings()

    def _genes(self) -> list[str]:
        """Genes of the study's sets that this site measures; others are nobody's business."""
        if self.cohort.expression is None:
            return []
        named = {gene for members in self.study.gene_sets.values() for gene in members}
        return sorted(named & set(map(str, self.cohort.expression.columns)))

    def statistics(self, genes: list[str]) -> Sums:
        """Sums for the preprocessing round, checked against their manifest."""
        sums = site_statistics(self.cohort, self.study, genes, self.minimum)
        statistics_manifest(self.study, genes).check(self.cohort.site, sums)
        return sums

    def train(self, preprocessing: Preprocessing, arrays: Packed, round_number: int) -> TrainingReply:
        """Score the incoming model on validation cases, train it for one round, and return what may leave.

        The reply is journalled: the same question gets the same answer without training again.
        """
        torch.set_num_threads(1)
        self._agree(preprocessing, round_number)
        question = self._question(preprocessing, arrays, round_number)
        if (known := self.memory.journalled(question)) is not None:
            logger.warning("round %s was trained before; its reply is sent again", round_number)
            return known
        if round_number == 1:
            self.memory.limit_patches(None)
        reply = self._fitting(preprocessing, arrays, lambda learner, cases: self._train(learner, cases, round_number))
        self.memory.journal(question, reply)
        return reply

    def _train(self, learner: Learner, cases: Prepared, round_number: int) -> TrainingReply:
        received = _weights(learner)
        spec = self.study.training
        validation = evaluation_loss(learner, self._split(cases, "val"), spec.objective)
        train = labelled(self._split(cases, "train"))
        kept = self.memory.before(round_number)
        if len(train) < self.minimum:
            metrics = {"loss": 0.0, "steps": 0.0, "train-cases": 0.0}
            nobody = dict.fromkeys(received, 0)
            packed, _ = self._pack(learner, received, {}, nobody)
            return self._reply(packed, nobody, metrics, validation)
        rounds, optimiser = spec.rounds, make_optimiser(learner, spec)
        if spec.keep_optimiser:
            restore_optimiser(learner, optimiser, kept.optimiser)
        last = kept.drift if kept.round_number == round_number - 1 else {}
        drift = Drift(learner, optimiser, spec.drift, last) if spec.drift else None
        outcome = fit(
            learner,
            train,
            spec,
            steps=round_steps(len(train), spec),
            seed=derive_seed(self.study.seed, "train", self.cohort.site, round_number),
            start=(round_number - 1) / rounds,
            end=round_number / rounds,
            after_step=drift.after_step if drift else None,
            optimiser=optimiser,
            anchored=True,
        )
        examples = {name: count if count >= self.minimum else 0 for name, count in outcome.examples.items()}
        packed, rounding = self._pack(learner, received, kept.rounding, examples)
        memory = Memory(
            optimiser=optimiser_state(learner, optimiser) if spec.keep_optimiser else {},
            rounding=rounding,
            drift=drift.state(examples) if drift else {},
            round_number=round_number,
        )
        self.memory.keep(memory)
        metrics = {"loss": outcome.loss, "steps": float(outcome.steps), "train-cases": float(len(train))}
        return self._reply(packed, examples, metrics, validation)

    def _question(self, preprocessing: Preprocessing, arrays: Packed, round_number: int) -> str:
        """Digest of all that a round of training depends on, beside the bags."""
        weights = digest_state({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})
        facts = [self.study.digest, round_number, preprocessing.digest, weights, self.cohort.table_digest]
        return digest_text(canonical_json(facts))

    def evaluate(
        self, preprocessing: Preprocessing, arrays: Packed, probes: Mapping[str, ProbeQuestion] | None = None
    ) -> Evaluation:
        """Metrics of the model on this site's own test cases, with intervals; small groups are held back.

        Of a task that has a class (deaths, survivors) of some cases, but too few to be told, nothing leaves: its scores
        would tell how many these are, and how the model does on them.

        Args:
            probes: fitted on the model's embeddings, by task; scored beside it.
        """
        torch.set_num_threads(1)
        self._agree(preprocessing, self.study.training.rounds + 1)

        def scored(learner: Learner, cases: Prepared) -> tuple[dict[str, Tensor], pd.DataFrame]:
            found = embed_cases(learner, self._split(cases, "test"))
            return found, predict(learner, self.study, preprocessing, self.cohort, cases, embeddings=found)

        embeddings, table = self._fitting(preprocessing, arrays, scored)
        rows = self._rows(table, preprocessing)
        for name, optimum in (probes or {}).items():
            if name in self.cohort.tasks:
                found = self._probed(self.study.task(name), optimum, preprocessing, numbers_of(embeddings)[name])
                rows += map(as_probe_row, self._rows(found, preprocessing, (HEADLINES,)))
        out: dict[str, float] = {}
        events = self._events(table, preprocessing)
        for row in rows:
            task, metric = row["task"], row["metric"]
            defined = row["value"] is not None and row["low"] is not None
            if defined and task in events and metric in reported_metrics(self.study, self.study.task(task)):
                told = row | {"events": events[task]}
                out |= {f"{task}.{metric}.{part}": float(told[part]) for part in METRIC_PARTS}
        return Evaluation(metrics=out, counts=self._counts(table, preprocessing))

    def _events(self, table: pd.DataFrame, preprocessing: Preprocessing) -> dict[str, int]:
        """Deaths, or cases of the rarest class, of the tasks whose scores may leave."""
        found = {}
        for task in self.study.tasks:
            groups = outcome_groups(table, task, preprocessing.tasks[task.name].candidates)
            if not has_small_group(groups, self.minimum):
                found[task.name] = events_behind(groups, task)
        return found

    def _counts(self, table: pd.DataFrame, preprocessing: Preprocessing) -> Arrays:
        if not self.study.evaluation.counts:
            return {}
        counts = site_counts(table, self.study, preprocessing, self.minimum)
        if counts.suppressed:
            logger.info("not counted, too few test cases: %s", ", ".join(counts.suppressed))
        return dict(counts.arrays)

    def _rows(
        self, table: pd.DataFrame, preprocessing: Preprocessing, families: Families = (HEADLINES, FURTHER)
    ) -> list[dict[str, Any]]:
        return metric_rows(
            {task: [table] for task in set(table["task"])},
            self.study,
            preprocessing,
            method="federated",
            hospital=self.cohort.site,
            seed=self.study.seed,
            censoring=Censoring.of_training([self.cohort.cases], self.study.endpoints),
            families=families,
        )

    def _probed(
        self, task: TaskSpec, optimum: ProbeQuestion, preprocessing: Preprocessing, features: Floats
    ) -> pd.DataFrame:
        """Predictions of a fitted probe for the test cases."""
        space = preprocessing.tasks[task.name]
        probe = Probe(spec=probe_spec(task, space), optimum=optimum)
        frame = self.cohort.cases[self.cohort.cases["split"] == "test"]
        return probe_predictions(probe, frame, self.cohort.site, task, space, features)

    def tally(self, preprocessing: Preprocessing, arrays: Packed) -> Arrays:
        """Tallies of the training cases of each task under a model; their embeddings stay here, for the questions."""
        torch.set_num_threads(1)
        self._agree(preprocessing, self.study.training.rounds + 1)
        name = self._probed_model(probe_query.model_name(preprocessing, arrays))
        if (known := self.probe_memory.read(name)) is None:
            known = self._embedded(preprocessing, arrays)
            self.probe_memory.keep(name, known)
        groups = {task.name: probe_query.groups_of(task, preprocessing) for task in self.study.tasks}
        return probe_query.tally_arrays(
            {task: probe_query.told_tally(cases, groups[task], self.minimum) for task, cases in known.items()}
        )

    def probe(self, query: ProbeQuery) -> Arrays:
        """Sums over the training cases of a task at given coefficients.

        Raises:
            ProbeError: the model is not the one that was tallied, or see :func:`probe_query.site_answer`.
        """
        torch.set_num_threads(1)
        known = self.probe_memory.read(self._probed_model(query.model))
        if known is None:
            raise ProbeError("no embeddings of the training cases under this model are kept here; ask for a tally")
        return probe_query.site_answer(known[query.task], query.question, self.minimum)

    def _probed_model(self, name: str) -> str:
        return digest_text(canonical_json([name, self.cohort.table_digest]))

    def _embedded(self, preprocessing: Preprocessing, arrays: Packed) -> dict[str, SiteCases]:
        def tallied(learner: Learner, cases: Prepared) -> dict[str, SiteCases]:
            cases = self._split(cases, "train")
            frame, features = self.cohort.cases[self.cohort.cases["split"] == "train"], embedded(learner, cases)
            return {task.name: labelled_cases(task, cases, frame, features[task.name]) for task in self.study.tasks}

        return self._fitting(preprocessing, arrays, tallied)

    def label_query(self, preprocessing: Preprocessing, arrays: Packed, query: LabelQuery) -> Answer:
        """How the candidate texts of a task that nobody labelled divide this site's cases."""
        torch.set_num_threads(1)
        self._agree(preprocessing, self.study.training.rounds + 1)

        def answer(learner: Learner, cases: Prepared) -> Answer:
            return site_answer(learner.eval(), self.study, cases, self.cohort, query, self.minimum)

        return self._fitting(preprocessing, arrays, answer)

    def _agree(self, preprocessing: Preprocessing, round_number: int) -> None:
        """Refuse a preprocessing of another study, or another one than this study's first round had."""
        if preprocessing.study != self.study.digest:
            raise FederationError(
                f"the server sent the preprocessing of study {preprocessing.study[:12]}..., not of"
                f" {self.study.digest[:12]}...; it has to start the study again"
            )
        if not self.memory.agree(round_number, preprocessing.digest):
            raise FederationError(
                f"round {round_number}: the preprocessing is not the one that this study began with; the server has to"
                " go on with the first one, or to start the study again"
            )

    def _learner(self, preprocessing: Preprocessing, arrays: Packed) -> Learner:
        learner, form = build_learner(self.study, preprocessing), self.study.training.wire
        manifest = Manifest.of_training(learner, self.study)
        message_manifest(form, manifest).check("the server", arrays)
        weights = decode_weights(form, arrays, _weights(learner))
        manifest.check("the server", weights)
        load_trainable(learner, {name: torch.from_numpy(value.copy()) for name, value in weights.items()})
        return learner.to(self.device)

    def _fitting(self, preprocessing: Preprocessing, arrays: Packed, work: Callable[[Learner, Prepared], T]) -> T:
        """Work on the received model and all cases, of which the GPU may have room for fewer patches.

        That number is remembered: what was trained on fewer patches is evaluated on as many.
        """

        def attempt() -> T:
            learner = self._learner(preprocessing, arrays)
            return work(learner, self.prepared.of(learner, preprocessing))

        return until_it_fits(attempt, self.prepared.with_fewer_patches)

    def _split(self, cases: Prepared, split: str) -> Prepared:
        inside = self.cohort.cases["split"] == split
        return [case for case, keep in zip(cases, inside, strict=True) if keep]

    def _pack(
        self, learner: Learner, received: State, rounding: State, examples: dict[str, int]
    ) -> tuple[Packed, State]:
        """The trained weights as they leave, checked, and what rounding keeps back for the next round.

        A parameter that too few cases trained leaves as it came.
        """
        form, trained = self.study.training.wire, _weights(learner)
        weights = {name: value if examples[name] else received[name] for name, value in trained.items()}
        manifest = Manifest.of_training(learner, self.study)
        manifest.check(self.cohort.site, weights)
        kept = {name: value for name, value in rounding.items() if examples[name]}
        packed, rest = encode_update(form, weights, received, kept)
        message_manifest(form, manifest).check(self.cohort.site, packed)
        return packed, rest

    def _reply(
        self, packed: Packed, examples: dict[str, int], metrics: dict[str, float], validation: tuple[float, int]
    ) -> TrainingReply:
        total, count = validation if validation[1] >= self.minimum else (0.0, 0)
        metrics = metrics | {"val-loss-sum": total, "val-cases": float(count)}
        return TrainingReply(arrays=packed, examples=examples, metrics=metrics)


def _weights(learner: Learner) -> State:
    return {name: value.cpu().numpy().copy() for name, value in trainable_state(learner).items()}
