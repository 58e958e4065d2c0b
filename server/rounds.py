"""The federation as the coordinator runs it: capability, preprocessing, training rounds, evaluation.

Flower moves the messages; this file decides what is asked, which answer is accepted and what is written down.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.serverapp import Grid

from modaltune.data.preprocessing import Preprocessing
from modaltune.encoders.registry import weights_are_here
from modaltune.errors import FederationError, ModalTuneError, ReplyRefused, RunFailed
from modaltune.evaluation.probes.fit import ProbeQuestion
from modaltune.federation.average import State, Update
from modaltune.federation.capability import (
    Capability,
    check_alike,
    check_like_others,
    check_panel,
    check_versions,
    gene_panel,
    versions,
)
from modaltune.federation.manifest import Manifest, check_examples, check_training, statistics_manifest
from modaltune.federation.probe_query import model_name
from modaltune.federation.statistics import Sums, pooled_preprocessing
from modaltune.federation.statistics_check import problem_with_statistics, problems_beside_others
from modaltune.federation.study import Study
from modaltune.federation.wire import (
    Packed,
    decode_update,
    encode_weights,
    message_manifest,
    read_arrays,
    read_floats,
    seal,
)
from modaltune.models.learner import Learner, build_learner, load_trainable, save_model
from modaltune.models.modaltune import trainable_state
from modaltune.storage import append_json_line, digest_folder, digest_state, write_json, write_text
from server.aggregation import Gathering, ServerOptimiser
from server.disk import own_disk
from server.evaluation import Evaluation
from server.exchange import Exchange, Round
from server.probes import Prober, keep_probes, kept_probes, with_probes
from server.round_log import training_log
from server.state import Progress, ServerState, Validated

logger = logging.getLogger(__name__)
_NEWCOMER_SECONDS = 60.0
_BESIDE_ARRAYS = 32_000_000  # bytes of a reply that are no weights: names, counts, sums


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished federation leaves in memory; the same is on disk in the run folder."""

    learner: Learner
    preprocessing: Preprocessing
    capabilities: dict[str, Capability]
    evaluation: Evaluation
    status: str
    steps: int
    weights_hash: str


class Federation:
    """Runs one study over a Flower grid, from its beginning or from where the folder says it stopped.

    Args:
        out: run folder; ``rounds.jsonl``, ``status.json``, ``state/`` and at the end ``model/`` are written into it.
        progress: called with each row of the round log.
        nodes: site -> Flower node, as the coordinator admitted them; None (simulation) believes what a node says.
    """

    def __init__(
        self,
        grid: Grid,
        study: Study,
        out: Path,
        progress: Callable[[Mapping[str, Any]], None] | None = None,
        nodes: Mapping[str, int] | None = None,
    ) -> None:
        self.grid, self.study, self.out = grid, study, out
        self.progress, self.admitted = progress, nodes
        self.exchange = Exchange(grid, study.deadline_seconds)
        self.state = ServerState(out, study)
        self.nodes: dict[str, int] = {}
        self.capabilities: dict[str, Capability] = {}
        self.degraded = False
        self.panel: tuple[str, ...] = ()
        self.preprocessing: Preprocessing
        self.learner: Learner
        self.manifest: Manifest
        self.start: State

    def run(self, finish: Callable[[Result], None] | None = None) -> Result:
        """The whole study.

        Args:
            finish: what else belongs to the end; only then is the run over and the state for going on removed.
        Raises:
            FederationError: the sites do not fit the study.
            RunFailed: a round fell below the quorum in every attempt, or the coordinator's disk failed.
        """
        self.state.begin()
        try:
            with own_disk(self.out):
                result = self._run()
                model = digest_folder(self.out / "model")
                self._say(result.status, number=self.study.training.rounds, weights=result.weights_hash, model=model)
                if finish is not None:
                    finish(result)
        except Exception as error:
            with suppress(OSError):  # a full disk may be why
                self._say("FAILED", reason=str(error) if isinstance(error, ModalTuneError) else type(error).__name__)
            raise
        self.state.done()
        return result

    def _run(self) -> Result:
        done = self.state.newest()
        if done is None:
            write_text(self.out / "rounds.jsonl", "")
            self._enrol()
            done = self._begin()
        else:
            self.degraded = done.degraded
            self._build(self.state.preprocessing())
            self._enrol()
        optimiser = ServerOptimiser(self.study.aggregation, done.moments)
        while done.number < self.study.training.rounds:
            self._admit_newcomers(done.number + 1)
            done = self._train(done, optimiser)
            self.state.keep(done)
        ended = done.weights if done.best is None else done.best.weights
        load_trainable(self.learner, {name: torch.from_numpy(value.copy()) for name, value in ended.items()})
        probes = self._probe(done, ended) if self.study.probes.questions else None
        evaluation = self._evaluate(ended, probes, weights_of=done.number if done.best is None else done.best.number)
        save_model(self.out / "model", self.learner, self.study, self.preprocessing)
        return Result(
            learner=self.learner.eval(),
            preprocessing=self.preprocessing,
            capabilities=self.capabilities,
            evaluation=evaluation,
            status="DEGRADED" if self.degraded else "OK",
            steps=done.steps,
            weights_hash=digest_state(trainable_state(self.learner)),
        )

    def _begin(self) -> Progress:
        """Preprocessing and the initial weights."""
        panel = gene_panel(self.capabilities, self.study)
        preprocessing = self._preprocess(panel)
        write_text(self.out / "preprocessing.json", preprocessing.to_json())
        self._build(preprocessing)
        first = Progress(number=0, weights=self.start, degraded=self.degraded, lines=self.state.log_lines())
        self.state.keep(first)
        return first

    def _build(self, preprocessing: Preprocessing | None) -> None:
        if preprocessing is None:
            raise FederationError(f"{self.out}: preprocessing.json is gone; restore it from a backup or start anew")
        self.preprocessing, self.panel = preprocessing, preprocessing.genes
        self.learner = build_learner(self.study, preprocessing, frozen=weights_are_here(self.study.slides.encoder))
        self.manifest = Manifest.of_training(self.learner, self.study)
        self.start = {name: value.numpy().copy() for name, value in trainable_state(self.learner).items()}

    def _enrol(self) -> None:
        """Ask every connected node who it is; keep the roster's sites, once each."""
        for this in self._attempts(0, "capability"):
            self._introduce(this, self._connected(), self.study.deadline_seconds)
            if self._enough(this, self.capabilities, sites=self._introduced()):
                break
        check_alike(self.capabilities)

    def _admit_newcomers(self, number: int) -> None:
        """A site of the roster that was away at the beginning takes part from the round after it is back."""
        absent = {site: node for site, node in self._expected().items() if site not in self.nodes}
        online = set(self.grid.get_node_ids()) if absent else set()
        if back := {site: node for site, node in absent.items() if node in online}:
            this = Round(number=number, phase="capability")
            self._introduce(this, back, min(_NEWCOMER_SECONDS, self.study.deadline_seconds))
            self._log(this, self.capabilities, sites=self._introduced())

    def _introduce(self, this: Round, nodes: Mapping[str, int], patience: float) -> None:
        answers = self.exchange.ask(this, "query.capability", nodes, lambda _: self._message(), seconds=patience)
        for label, reply in sorted(answers, key=lambda answer: answer[0]):
            with this.judging(label):
                found = Capability.parse(reply.config_records["capability"], self.study)
                if self.admitted is not None and found.site != label:
                    raise ReplyRefused(label, "it claims the name of another site")
                if found.site in self.capabilities:
                    raise ReplyRefused(found.site, "a second node claims this site")
                check_versions(found, versions())
                check_panel(found, self.panel, self.study)
                if this.number:
                    check_like_others(found, self.capabilities)
                self.capabilities = dict(sorted({**self.capabilities, found.site: found}.items()))
                self.nodes = dict(sorted({**self.nodes, found.site: nodes[label]}.items()))
        this.missing = [site for site in self.study.roster if site not in {*self.nodes, *this.refused}]

    def _expected(self) -> dict[str, int]:
        """Nodes of the roster's sites, as far as the coordinator admitted them."""
        return {site: node for site, node in sorted((self.admitted or {}).items()) if site in self.study.roster}

    def _connected(self) -> dict[str, int]:
        """Nodes that have not introduced themselves yet, once the whole roster is there or patience is at its end."""
        wanted = None if self.admitted is None else self._expected()
        online = self.exchange.wait_for_nodes(len(self.study.roster), self.study.deadline_seconds, wanted)
        labels = {f"node {node}": node for node in sorted(online)} if wanted is None else wanted
        known = set(self.nodes.values())
        return {label: node for label, node in labels.items() if node in online - known}

    def _introduced(self) -> dict[str, Any]:
        return {
            site: asdict(found) | {"genes": len(found.genes), "patches": found.patches.told()}
            for site, found in self.capabilities.items()
        }

    def _preprocess(self, panel: list[str]) -> Preprocessing:
        manifest = statistics_manifest(self.study, panel)
        named: dict[str, Any] = {"genes": panel} if panel else {}  # Flower cannot count an empty list
        for this in self._attempts(0, "preprocess"):
            accepted = {}
            for site, reply in self._ask(this, "query.statistics", self._message(**named)):
                with this.judging(site):
                    accepted[site] = self._sums(site, reply, manifest)
            for site, problem in problems_beside_others(accepted).items():
                this.refuse(site, problem)
                del accepted[site]
            if self._enough(this, accepted):
                break
        return pooled_preprocessing({site: accepted[site] for site in sorted(accepted)}, self.study, panel)

    def _sums(self, site: str, reply: RecordDict, manifest: Manifest) -> Sums:
        """A site's reply to the preprocessing round, checked."""
        sums = read_floats(reply.array_records["statistics"], manifest, site)
        announced = self.capabilities[site].train_cases
        if problem := problem_with_statistics(sums, self.study, self.study.privacy.min_cell, announced):
            raise ReplyRefused(site, problem)
        return sums

    def _train(self, done: Progress, optimiser: ServerOptimiser) -> Progress:
        number = done.number + 1
        question = self._weights_message(done.weights, round=number)
        for this in self._attempts(number, "train"):
            gathering = Gathering(self.study, done.weights, self.nodes, done.usual, self.out / "spool")
            metrics: dict[str, dict[str, float]] = {}
            for site, reply in self._ask(this, "train", question):
                with this.judging(site):
                    update, metrics[site] = self._update(site, reply, done.weights)
                if site in this.refused:
                    gathering.give_up(site)
                else:
                    gathering.accept(site, update)
                del reply
            for outlier in gathering.outliers():
                this.refuse(outlier.site, outlier.reason)
                del metrics[outlier.site]
            metrics = dict(sorted(metrics.items()))
            more = training_log(gathering.examples, metrics) | {"influence": gathering.report()}
            if self._enough(this, gathering.examples, **more):
                break
            gathering.close()
        weights = optimiser.step(number, done.weights, gathering.finish())
        return Progress(
            number=number,
            weights=weights,
            moments=optimiser.moments,
            usual=gathering.usual_length,
            steps=done.steps + int(sum(row["steps"] for row in metrics.values())),
            degraded=self.degraded,
            lines=self.state.log_lines(),
            best=self._best(done, metrics),
        )

    def _best(self, done: Progress, metrics: Mapping[str, Mapping[str, float]]) -> Validated | None:
        """The weights that hospitals were sent, if they validate better than all before; ``metrics``: of each."""
        losses = {site: (row["val-loss-sum"], row["val-cases"]) for site, row in metrics.items() if row["val-cases"]}
        if self.study.training.keep == "last" or not done.number or not losses:
            return done.best
        sent = Validated(number=done.number, weights=done.weights, losses=losses)
        return sent if sent.beats(done.best) else done.best

    def _update(self, site: str, reply: RecordDict, weights: State) -> tuple[Update, dict[str, float]]:
        """A site's reply to a training round, checked."""
        form = self.study.training.wire
        arrays = read_arrays(reply.array_records["arrays"], message_manifest(form, self.manifest), site)
        trained = decode_update(form, arrays, weights)
        self.manifest.check(site, trained)
        largest = max(self.capabilities[site].train_cases, self.study.privacy.min_cell - 1)
        examples = check_examples(site, reply.metric_records["examples"], self.manifest.shapes, largest)
        validated = max(self.capabilities[site].val_cases, self.study.privacy.min_cell - 1)
        metrics = check_training(site, reply.metric_records["metrics"], largest, validated)
        return Update(arrays=trained, examples=examples), metrics

    def _probe(self, done: Progress, weights: State) -> dict[str, ProbeQuestion]:
        """Fitted probes by task: those of before, if the run was cut off between them and its end."""
        model = model_name(self.preprocessing, self._packed(weights))
        path = self.state.folder / "probes" / f"{model}.safetensors"
        if (known := kept_probes(path, self.study, self.preprocessing)) is not None:
            return known
        self._say("RUNNING", phase="probe", number=done.number)
        prober = Prober(self.study, self.preprocessing, model, ask=self._ask, message=self._message, log=self._log)
        found = prober.fit(self._weights_message(weights), self.capabilities)
        self.state.keep(replace(done, degraded=self.degraded, lines=self.state.log_lines()))
        keep_probes(path, found)
        return found

    def _evaluate(self, weights: State, probes: Mapping[str, ProbeQuestion] | None, *, weights_of: int) -> Evaluation:
        """Ask for test scores, once.

        Args:
            weights_of: the round that they come from.
        """
        this = Round(number=self.study.training.rounds, phase="evaluate")
        evaluation, question = Evaluation(self.study, self.preprocessing), self._weights_message(weights)
        for site, reply in self._ask(this, "evaluate", question if probes is None else with_probes(question, probes)):
            with this.judging(site):
                evaluation.accept(site, reply, self.capabilities[site].test_cases)
        self._log(this, evaluation.metrics, weights_of=weights_of, **evaluation.log)
        return evaluation

    def _message(self, **config: Any) -> RecordDict:
        return RecordDict({"study": ConfigRecord({"study": self.study.to_json()} | config)})

    def _weights_message(self, weights: State, **config: Any) -> RecordDict:
        records = self._message(preprocessing=self.preprocessing.to_json(), **config)
        packed = self._packed(weights)
        records["arrays"] = ArrayRecord({name: Array(value) for name, value in seal(packed).items()})
        return records

    def _packed(self, weights: State) -> Packed:
        return encode_weights(self.study.training.wire, weights, self.start)

    def _ask(
        self, this: Round, kind: str, question: RecordDict, sites: Collection[str] | None = None
    ) -> Iterable[tuple[str, RecordDict]]:
        """Answers of the enrolled sites (or some) as they arrive; each gets records of its own with the same arrays."""
        nodes = self.nodes if sites is None else {site: self.nodes[site] for site in sites}
        absent = [site for site in self.study.roster if site not in self.nodes] if sites is None else []
        size = sum(record.count_bytes() for record in question.array_records.values())
        yield from self.exchange.ask(
            this, kind, nodes, lambda _: RecordDict(dict(question)), most_bytes=2 * size + _BESIDE_ARRAYS
        )
        this.missing = sorted({*this.missing, *absent})

    def _attempts(self, number: int, phase: str) -> Iterator[Round]:
        """A round, again and again; :meth:`_enough` ends it."""
        for attempt in range(1, self.study.attempts + 1):
            self._say("RUNNING", phase=phase, number=number)
            yield Round(number=number, phase=phase, attempt=attempt)

    def _enough(self, this: Round, accepted: Mapping[str, object], **more: Any) -> bool:
        """Write the round down; whether it has its quorum. The last attempt without one ends the run."""
        short = len(accepted) < self.study.quorum
        this.repeated = short and this.attempt < self.study.attempts
        self._log(this, accepted, **more)
        if short and not this.repeated:
            raise RunFailed(
                f"round {this.number} ({this.phase}): {len(accepted)} of {self.study.quorum} sites needed answered"
                f" ({this.why_short()}); see the log of those sites"
            )
        return not short

    def _log(self, this: Round, accepted: Mapping[str, object], **more: Any) -> None:
        row = this.as_row(accepted, **more)
        self.degraded |= row["status"] == "DEGRADED"
        append_json_line(self.out / "rounds.jsonl", row)
        logger.info(
            "round %s %s %s sites=%s down=%.2fMB up=%.2fMB %.1fs",
            *(row["round"], row["phase"], row["status"], ",".join(row["contributors"])),
            *(row["bytes_down"] / 1e6, row["bytes_up"] / 1e6, row["seconds"]),
        )
        if self.progress is not None:
            self.progress(row)

    def _say(self, status: str, *, phase: str = "", number: int = 0, reason: str = "", **ended: str) -> None:
        """Tell whoever looks at the run folder where the run is; ``ended``: digests of what it ended with."""
        said = {
            "status": status,
            "phase": phase,
            "round": number,
            "rounds": self.study.training.rounds,
            "reason": reason,
            "weights": "",
        }
        write_json(self.out / "status.json", said | ended)
