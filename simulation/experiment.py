"""A whole comparison for one seed: federation, local, pooled and linear models, rows and tables of a run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from modaltune.errors import ConfigError, FederationError
from modaltune.federation.study import Study
from modaltune.federation.task import TaskSpec
from modaltune.models.learner import Learner
from modaltune.tasks.head import TextHead
from server.aggregation import check_rule
from simulation.baselines import remarks, run_baselines
from simulation.compare import (
    PERSONAL_SHARE,
    Hospitals,
    Job,
    Scene,
    everybodys_test_cases,
    linear_predictions,
    predict_site,
    run_jobs,
    texts_alone,
    trainable,
)
from simulation.cross_site import Trained, influence_rows, matrix_rows, study_without
from simulation.engine import Progress, run_federation
from simulation.federated import Federated, finished
from simulation.gene_sets import gene_set_contributions
from simulation.outcomes import Outcome, Scorer, embedding_map, training_risk_cuts
from simulation.probes import embeddings_of, probe_tables
from simulation.run_folder import COMPARED

COMPARISONS = ("pooled", "local", "linear", "linear_local")
ABLATIONS = ("separate_heads", "per_task", "texts_alone")
"""What else hospitals could do that label different tasks."""
ON_REQUEST = ("personalised", "per_task_same_cost")
"""Comparisons that are made only when asked for."""
Say = Callable[[str], None]


class Experiment:
    """Runs the methods of one study over site folders and collects their rows."""

    def __init__(
        self,
        study: Study,
        sites: Mapping[str, Path],
        truth: Mapping[str, Path],
        out: Path,
        say: Say,
        cancers: Mapping[str, str] | None = None,
    ) -> None:
        self.study, self.sites, self.truth, self.out, self.say = study, sites, truth, out, say
        self.cancers = cancers or {}
        self.outcome = Outcome()

    def run(self, *, comparisons: Sequence[str] = COMPARISONS, cross_site: bool = False) -> Outcome:
        """Federate, compare, and fill ``out``."""
        check_rule(self.study)
        started = time.monotonic()
        result = self._federate(self.study, self.out, self._round_line)
        scene = Scene(
            sites=self.sites,
            truth=self.truth,
            study=self.study.to_json(),
            preprocessing=result.preprocessing.to_json(),
            weights=self.out / "model" / "weights.safetensors",
            kept=self.out / COMPARED,
            cancers=self.cancers,
        )
        data = Hospitals(scene)
        budget = data.budget(self.study.model.needs)
        if budget != result.steps and result.status == "OK":
            raise ConfigError(f"the federation took {result.steps} steps, the fair budget is {budget}")
        scorer = Scorer(data, self.outcome)
        self.outcome.notes += remarks(self.study.model.kind, data)
        federated = everybodys_test_cases(data, lambda s: predict_site(data, result.learner, s))
        scorer.record("federated", {"": federated})
        if self.study.model.kind == "modaltune":
            embed = embeddings_of(result.learner)
            probed = probe_tables(data, embed, sorted(self.sites), together=False, cancer=True)
            scorer.record_probes("federated", {"": probed.table})
            if isinstance(result.learner.head, TextHead):
                plain = everybodys_test_cases(data, lambda s: predict_site(data, result.learner, s, temperature=False))
                scorer.record_cosines("federated", {"": plain})
            self.outcome.notes += probed.notes
        if cross_site:
            self._cross_site(data, Trained(study=self.study, preprocessing=data.preprocessing, table=federated))
        self._ablations(scorer, comparisons)
        self._comparisons(scorer, scene, result.steps, comparisons)
        for found in run_baselines(comparisons, data, scene, lambda study: self._other(study).table, self.say):
            scorer.record(found.method, found.tables, everybody=found.everybody)
            self.outcome.notes += [note for note in found.notes if note not in self.outcome.notes]
        self.outcome.embeddings = embedding_map(data, result.learner)
        self.outcome.gene_sets = gene_set_contributions(data, result.learner)
        self.outcome.summary = self._summary(data, result, time.monotonic() - started)
        return self.outcome

    def _comparisons(self, scorer: Scorer, scene: Scene, steps: int, comparisons: Sequence[str]) -> None:
        data = scorer.data
        local = trainable(data, self.study.model.needs)
        jobs = [Job(method="pooled", steps=steps)] if "pooled" in comparisons else []
        jobs += [Job(method="local", hospital=site, steps=steps) for site in local if "local" in comparisons]
        if "personalised" in comparisons:
            own = {site: max(1, round(PERSONAL_SHARE * data.own_steps(site))) for site in local}
            jobs += [Job(method="personalised", hospital=site, steps=count) for site, count in own.items()]
        tables: dict[str, dict[str, pd.DataFrame]] = {}
        probes: dict[str, dict[str, pd.DataFrame]] = {}
        if jobs:
            self.say(f"training {len(jobs)} models for comparison, up to {max(job.steps for job in jobs)} steps each")
            for job, found in run_jobs(scene, jobs, lambda job: self.say(f"  {job.method} {job.hospital} done")):
                tables.setdefault(job.method, {})[job.hospital] = found.table
                probes.setdefault(job.method, {})[job.hospital] = found.probes
        if "linear" in comparisons:
            tables["linear"] = {"": linear_predictions(data, sorted(self.sites))}
        if "linear_local" in comparisons:
            tables["linear_local"] = {site: linear_predictions(data, [site]) for site in local}
        for method, models in tables.items():
            scorer.record(method, models)
        for method, models in probes.items():
            scorer.record_probes(method, models)

    def _ablations(self, scorer: Scorer, comparisons: Sequence[str]) -> None:
        """Separate heads instead of label texts, one federation per task, and texts of tasks that nobody trained."""
        if "separate_heads" in comparisons:
            self._separate_heads(scorer)
        rounds = self.study.training.rounds
        if "per_task" in comparisons:
            self._per_task(scorer, "per_task", rounds)
        if "per_task_same_cost" in comparisons:
            exchanges = sum(len(self._holders(scorer, task)) for task in self.study.tasks)
            self._per_task(scorer, "per_task_same_cost", max(1, rounds * len(self.study.roster) // exchanges))
        if "texts_alone" in comparisons:
            self._texts_alone(scorer)

    def _holders(self, scorer: Scorer, task: TaskSpec) -> tuple[str, ...]:
        """Hospitals that label a task."""
        return tuple(site for site in self.study.roster if task.name in scorer.data.cohorts[site].tasks)

    def _separate_heads(self, scorer: Scorer) -> None:
        spec = self.study.model_copy(update={"name": f"{self.study.name}-separate"})
        spec = spec.model_copy(update={"model": self.study.model.model_copy(update={"head": "separate"})})
        self.say("federating once more with separate heads")
        scorer.record("separate_heads", {"": self._other(spec).table})

    def _per_task(self, scorer: Scorer, method: str, rounds: int) -> None:
        """One federation a task among the hospitals that label it."""
        training, tables = self.study.training.model_copy(update={"rounds": rounds}), []
        for task in self.study.tasks:
            holders = self._holders(scorer, task)
            self.say(f"federating {task.name} alone over {', '.join(holders)}, {rounds} rounds")
            name = f"{self.study.name}-{task.name}{method.removeprefix('per_task').replace('_', '-')}"
            alone = self.study.among(holders, name=name, tasks=(task,), training=training)
            tables.append(self._other(alone).table)
        scorer.record(method, {"": pd.concat(tables, ignore_index=True)})

    def _texts_alone(self, scorer: Scorer) -> None:
        """Tasks that one hospital alone labels: federate without it, and score by the task's texts, never trained."""
        tables, model = [], self.study.model
        for task in self.study.tasks if (model.kind, model.head) == ("modaltune", "text") else ():
            holders = self._holders(scorer, task)
            if len(holders) > 1:
                continue
            self.say(f"federating without {holders[0]}, which alone labels {task.name}")
            try:
                others, learner = self._trained(study_without(self.study, holders[0], scorer.data.cohorts))
            except FederationError as error:  # the others lack labels
                self.say(f"  not possible without {holders[0]}: {error}")
                continue
            tables.append(texts_alone(others, learner, task, scorer.data.preprocessing.tasks[task.name]))
        if tables:
            scorer.record("texts_alone", {"": pd.concat(tables, ignore_index=True)})

    def _cross_site(self, data: Hospitals, everybody: Trained) -> None:
        """Federate once more without each hospital in turn."""
        without = {}
        for site in sorted(self.sites):
            self.say(f"federating once more without {site}")
            try:
                without[site] = self._other(study_without(self.study, site, data.cohorts))
            except FederationError as error:  # the others lack labels for one of the tasks
                self.say(f"  not possible without {site}: {error}")
        self.outcome.rows += matrix_rows(everybody, without)
        self.outcome.influence += influence_rows(everybody, without)

    def _other(self, study: Study) -> Trained:
        """Federate a variant of the study and predict everybody's test cases."""
        others, learner = self._trained(study)
        table = everybodys_test_cases(others, lambda site: predict_site(others, learner, site))
        return Trained(study=study, preprocessing=others.preprocessing, table=table)

    def _trained(self, study: Study) -> tuple[Hospitals, Learner]:
        """Federate a variant of the study in a folder of its own; the hospitals as it prepares them, and the model."""
        folder = self.out / "variants" / study.name
        folder.mkdir(parents=True, exist_ok=True)
        result = self._federate(study, folder)
        preprocessing = result.preprocessing.to_json()
        scene = Scene(sites=self.sites, truth=self.truth, study=study.to_json(), preprocessing=preprocessing)
        return Hospitals(scene), result.learner

    def _federate(self, study: Study, folder: Path, progress: Progress | None = None) -> Federated:
        """Run a federation, or go on with it where it was interrupted; one that had ended is read."""
        if not finished(folder, study):
            if progress is not None:
                self.say("starting Flower's engine; a line follows each exchange with the hospitals")
            run_federation(study, {site: self.sites[site] for site in study.roster}, folder, progress)
        return Federated.read(folder)

    def _round_line(self, row: Mapping[str, Any]) -> None:
        loss = "" if row.get("loss") is None else f"  loss {row['loss']:.3f}"
        trouble = "".join(f"  {name} missing" for name in row["missing"]) + "".join(
            f"  {name} refused: {why}" for name, why in row["refused"].items()
        )
        number = f"round {row['round']}/{self.study.training.rounds} " if row["phase"] == "train" else ""
        sent = f"{row['bytes_down'] / 1e6:.2f} MB down, {row['bytes_up'] / 1e6:.2f} MB up"
        self.say(f"{number}{row['phase']} {row['status']}  {row['seconds']:.1f} s  {sent}{loss}{trouble}")

    def _summary(self, data: Hospitals, result: Federated, seconds: float) -> dict[str, Any]:
        sites = {}
        for site, cohort in data.cohorts.items():
            counts = cohort.cases["split"].value_counts()
            sites[site] = {
                "cases": len(cohort.cases),
                **{split: int(counts.get(split, 0)) for split in ("train", "val", "test")},
                "tasks": list(cohort.tasks),
                "modalities": list(result.modalities.get(site, ())),
            }
        return {
            "status": result.status,
            "sites": sites,
            "seconds": round(seconds, 1),
            "digest": self.study.digest,
            "weights": result.weights_hash,
            "budget": {"steps": result.steps},
            "risk_cuts": training_risk_cuts(data, result.learner),
        }
