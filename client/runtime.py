"""What a hospital's process does with a message, apart from Flower: load, verify, train, answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from client.memory import Memory, RoundMemory
from modaltune.data.batch import CaseTensors
from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import Preprocessing, prepare
from modaltune.data.site import load_site, read_site_config
from modaltune.errors import FeatureFileError, FederationError
from modaltune.evaluation.predictions import metric_rows, predict
from modaltune.federation.average import State
from modaltune.federation.manifest import Manifest, statistics_manifest
from modaltune.federation.statistics import Sums, site_statistics
from modaltune.federation.study import Study
from modaltune.federation.wire import Packed, decode_weights, encode_update, message_manifest
from modaltune.models.learner import Learner, build_learner, load_trainable
from modaltune.models.modaltune import trainable_state
from modaltune.models.prefix import with_cached_prefix
from modaltune.seeds import derive_seed
from modaltune.training import (
    epoch_steps,
    evaluation_loss,
    fit,
    labelled,
    make_optimiser,
    optimiser_state,
    restore_optimiser,
    training_device,
)

PACKAGES = ("flwr", "torch")


@dataclass(frozen=True, kw_only=True)
class TrainingReply:
    """A site's update with its metrics."""

    arrays: Packed
    examples: dict[str, int]
    metrics: dict[str, float]


class Site:
    """One hospital's data as one study sees it; :meth:`of` keeps it in memory between messages."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.config = read_site_config(folder)
        self.study = study
        self.state_folder = folder / ".state"
        self.memory = RoundMemory(self.state_folder / study.digest)
        self._cases: dict[str, list[CaseTensors]] = {}
        if self.config.name not in study.roster:
            raise FederationError(
                f"site {self.config.name} is not in the roster of study {study.name} ({', '.join(study.roster)})"
            )
        labels = {task.name: task.values for task in study.tasks if task.kind != "survival"}
        self.cohort: Cohort = load_site(folder, split_salt=study.digest, labels=labels)
        width = self.cohort.patch_width
        if width is not None and width != study.slides.in_width:
            raise FeatureFileError(
                f"site {self.cohort.site}: bags have {width} features per patch but study {study.name} needs"
                f" {study.slides.in_width}; extract them with the encoder that the study names"
            )

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
                *(["expression"] if self.cohort.expression is not None else []),
                *(["clinical"] if self.study.clinical else []),
                *(modality.name for modality in self.study.modalities if modality.name in self.cohort.modalities),
            ],
            **{f"cases-{name}": count if count >= self.minimum else 0 for name, count in splits.items()},
            **{f"version-{name}": version(name) for name in PACKAGES},
        }

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
        """Score the incoming model on validation cases, train it for one round, and return what may leave."""
        torch.set_num_threads(1)
        self._agree(preprocessing, round_number)
        learner = self._learner(preprocessing, arrays)
        received = _weights(learner)
        spec = self.study.training
        cases = self._prepared(learner, preprocessing)
        validation = evaluation_loss(learner, self._split(cases, "val"), spec.objective)
        train = labelled(self._split(cases, "train"))
        kept = self.memory.before(round_number)
        if not train:
            metrics = {"loss": 0.0, "steps": 0.0, "train-cases": 0.0}
            packed, _ = self._pack(learner, received, {})
            return self._reply(packed, dict.fromkeys(received, 0), metrics, validation)
        rounds, optimiser = spec.rounds, make_optimiser(learner, spec)
        if spec.keep_optimiser:
            restore_optimiser(learner, optimiser, kept.optimiser)
        outcome = fit(
            learner,
            train,
            spec,
            steps=epoch_steps(len(train), spec.batch_size) * spec.local_epochs,
            seed=derive_seed(self.study.seed, "train", self.cohort.site, round_number),
            start=(round_number - 1) / rounds,
            end=round_number / rounds,
            optimiser=optimiser,
        )
        packed, rounding = self._pack(learner, received, kept.rounding)
        state = optimiser_state(learner, optimiser) if spec.keep_optimiser else {}
        self.memory.keep(round_number, Memory(optimiser=state, rounding=rounding))
        metrics = {"loss": outcome.loss, "steps": float(outcome.steps), "train-cases": float(len(train))}
        return self._reply(packed, outcome.examples, metrics, validation)

    def evaluate(self, preprocessing: Preprocessing, arrays: Packed) -> dict[str, float]:
        """Metrics of the model on this site's own test cases, with intervals; small groups are held back."""
        torch.set_num_threads(1)
        self._agree(preprocessing, self.study.training.rounds + 1)
        learner = self._learner(preprocessing, arrays)
        table = predict(learner, self.study, preprocessing, self.cohort, self._prepared(learner, preprocessing))
        tables = {task.name: [table] for task in self.study.tasks if task.name in self.cohort.tasks}
        rows = metric_rows(
            tables, self.study, preprocessing, method="federated", hospital=self.cohort.site, seed=self.study.seed
        )
        out: dict[str, float] = {}
        for row in rows:
            if row["value"] is not None and row["low"] is not None and row["n"] >= self.minimum:
                out |= {
                    f"{row['task']}.{row['metric']}.{part}": float(row[part]) for part in ("value", "low", "high", "n")
                }
        return out

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
        return learner.to(training_device())

    def _prepared(self, learner: Learner, preprocessing: Preprocessing) -> list[CaseTensors]:
        key = preprocessing.digest
        if key not in self._cases:
            cases = prepare(self.cohort, self.study, preprocessing)
            cache = self.state_folder / "prefix"
            self._cases = {key: with_cached_prefix(learner.modaltune, self.study.slides.sha256, cases, cache)}
        return self._cases[key]

    def _split(self, cases: list[CaseTensors], split: str) -> list[CaseTensors]:
        inside = self.cohort.cases["split"] == split
        return [case for case, keep in zip(cases, inside, strict=True) if keep]

    def _pack(self, learner: Learner, received: State, rounding: State) -> tuple[Packed, State]:
        """The trained weights as they leave, checked, and what rounding keeps back for the next round."""
        form, weights = self.study.training.wire, _weights(learner)
        manifest = Manifest.of_training(learner, self.study)
        manifest.check(self.cohort.site, weights)
        packed, rest = encode_update(form, weights, received, rounding)
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
