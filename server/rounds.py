"""The federation as the coordinator runs it: capability, preprocessing, training rounds, evaluation.

Flower moves the messages; this file decides who is asked, which reply is accepted and what is written down.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from modaltune.data.preprocessing import Preprocessing
from modaltune.encoders.registry import weights_are_here
from modaltune.errors import FederationError, ReplyRefused, RunFailed
from modaltune.federation.average import State, Update, contributors, keywise_average
from modaltune.federation.capability import Capability, check_versions, gene_panel
from modaltune.federation.manifest import (
    TRAIN_METRICS,
    Manifest,
    check_examples,
    check_metrics,
    evaluation_metrics,
    statistics_manifest,
)
from modaltune.federation.statistics import pooled_preprocessing
from modaltune.federation.study import Study
from modaltune.federation.wire import decode_update, encode_weights, message_manifest
from modaltune.models.learner import Learner, build_learner, load_trainable, save_model
from modaltune.models.modaltune import trainable_state
from modaltune.storage import append_json_line, digest_state, write_text

logger = logging.getLogger(__name__)
_POLL_SECONDS = 0.05


@dataclass(kw_only=True)
class Round:
    """One exchange with the roster: who answered, who is missing, who was refused and why, and what it cost."""

    number: int
    phase: str
    started: float = field(default_factory=time.monotonic)
    missing: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0

    def as_row(self, accepted: Mapping[str, object], **more: Any) -> dict[str, Any]:
        """One object of ``rounds.jsonl``."""
        return {
            "round": self.number,
            "phase": self.phase,
            "status": "DEGRADED" if self.missing or self.refused else "OK",
            "seconds": round(time.monotonic() - self.started, 3),
            "contributors": sorted(accepted),
            "missing": self.missing,
            "refused": self.refused,
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
            **more,
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished federation leaves in memory; the same is on disk in the run folder."""

    learner: Learner
    preprocessing: Preprocessing
    capabilities: dict[str, Capability]
    status: str
    steps: int
    weights_hash: str


class Federation:
    """Runs one study over a Flower grid and writes ``rounds.jsonl`` and ``model/`` into a folder."""

    def __init__(
        self, grid: Grid, study: Study, out: Path, progress: Callable[[Mapping[str, Any]], None] | None = None
    ) -> None:
        self.grid, self.study, self.out = grid, study, out
        self.progress = progress
        self.nodes: dict[str, int] = {}
        self.capabilities: dict[str, Capability] = {}
        self.degraded = False

    def run(self) -> Result:
        """The whole study.

        Raises:
            FederationError: the sites do not fit the study.
            RunFailed: a round fell below the quorum.
        """
        write_text(self.out / "study.json", self.study.to_json())
        self._enrol()
        panel = gene_panel(self.capabilities, self.study)
        preprocessing = self._preprocess(panel)
        write_text(self.out / "preprocessing.json", preprocessing.to_json())
        learner = build_learner(self.study, preprocessing, frozen=weights_are_here(self.study.slides.encoder))
        manifest = Manifest.of_training(learner, self.study)
        start: State = {name: value.numpy().copy() for name, value in trainable_state(learner).items()}
        state, steps = start, 0
        for number in range(1, self.study.training.rounds + 1):
            message = self._weights_message(state, start, preprocessing, round=number)
            state, done = self._train(number, state, message, manifest)
            steps += done
        load_trainable(learner, {name: torch.from_numpy(value.copy()) for name, value in state.items()})
        self._evaluate(self._weights_message(state, start, preprocessing))
        save_model(self.out / "model", learner, self.study, preprocessing)
        return Result(
            learner=learner.eval(),
            preprocessing=preprocessing,
            capabilities=self.capabilities,
            status="DEGRADED" if self.degraded else "OK",
            steps=steps,
            weights_hash=digest_state(trainable_state(learner)),
        )

    def _enrol(self) -> None:
        """Ask every connected node who it is; keep the roster's sites, once each."""
        this = Round(number=0, phase="capability")
        found: dict[str, Capability] = {}
        deadline = time.monotonic() + self.study.deadline_seconds
        nodes: list[int] = []
        while len(nodes) < len(self.study.roster) and time.monotonic() < deadline:
            nodes = sorted(self.grid.get_node_ids())
            time.sleep(_POLL_SECONDS)
        content = {f"node {node}": self._message() for node in nodes}
        names = dict(zip(content, nodes, strict=True))
        for label, reply in self._exchange(this, content, names, "query.capability").items():
            this.missing = [name for name in this.missing if name != label]
            try:
                capability = Capability.parse(reply.config_records["capability"], self.study)
                if capability.site in found:
                    raise ReplyRefused(capability.site, "a second node claims this site")
            except (ReplyRefused, KeyError) as error:
                this.refused[label] = _reason(error)
                continue
            found[capability.site] = capability
            self.nodes[capability.site] = names[label]
        this.missing = [site for site in self.study.roster if site not in found]
        self.capabilities = {site: found[site] for site in sorted(found)}
        self._log(this, found, sites={site: vars(value) | {"genes": len(value.genes)} for site, value in found.items()})
        self._require_quorum(this, found)
        check_versions(self.capabilities)

    def _preprocess(self, panel: list[str]) -> Preprocessing:
        this = Round(number=0, phase="preprocess")
        manifest = statistics_manifest(self.study, panel)
        named: dict[str, Any] = {"genes": panel} if panel else {}  # Flower cannot count an empty list
        accepted = {}
        for site, reply in self._ask(this, "query.statistics", lambda: self._message(**named)).items():
            try:
                sums = _numpy(site, reply, "statistics")
                manifest.check(site, sums)
                accepted[site] = {name: value.astype(np.float64) for name, value in sums.items()}
            except (ReplyRefused, KeyError) as error:
                this.refused[site] = _reason(error)
        self._log(this, accepted)
        self._require_quorum(this, accepted)
        return pooled_preprocessing(accepted, self.study, panel)

    def _train(
        self, number: int, state: State, content: Callable[[], RecordDict], manifest: Manifest
    ) -> tuple[State, int]:
        this = Round(number=number, phase="train")
        form = self.study.training.wire
        travelling = message_manifest(form, manifest)
        updates: dict[str, Update] = {}
        metrics: dict[str, dict[str, float]] = {}
        for site, reply in self._ask(this, "train", content).items():
            try:
                arrays = _numpy(site, reply, "arrays")
                travelling.check(site, arrays)
                weights = decode_update(form, arrays, state)
                manifest.check(site, weights)
                largest = max(self.capabilities[site].train_cases, self.study.privacy.min_cell - 1)
                examples = check_examples(site, reply.metric_records["examples"], manifest.shapes, largest)
                metrics[site] = check_metrics(site, reply.metric_records["metrics"], TRAIN_METRICS)
                updates[site] = Update(arrays=weights, examples=examples)
            except (ReplyRefused, KeyError) as error:
                this.refused[site] = _reason(error)
        self._require_quorum(this, updates)
        new = keywise_average(updates, state, self.study.privacy.min_contributors)
        self._log(this, updates, **_training_log(updates, metrics))
        return new, int(sum(row["steps"] for row in metrics.values()))

    def _evaluate(self, content: Callable[[], RecordDict]) -> None:
        this = Round(number=self.study.training.rounds, phase="evaluate")
        accepted = {}
        for site, reply in self._ask(this, "evaluate", content).items():
            try:
                accepted[site] = check_metrics(site, reply.metric_records["metrics"], evaluation_metrics(self.study))
            except (ReplyRefused, KeyError) as error:
                this.refused[site] = _reason(error)
        self._log(this, accepted, metrics=accepted)

    def _message(self, **config: Any) -> RecordDict:
        return RecordDict({"study": ConfigRecord({"study": self.study.to_json()} | config)})

    def _weights_message(
        self, state: State, start: State, preprocessing: Preprocessing, **config: Any
    ) -> Callable[[], RecordDict]:
        """Makes the message that carries the weights, once for each site."""
        packed = encode_weights(self.study.training.wire, state, start)

        def content() -> RecordDict:
            records = self._message(preprocessing=preprocessing.to_json(), **config)
            records["arrays"] = ArrayRecord({name: Array(value) for name, value in packed.items()})
            return records

        return content

    def _ask(self, this: Round, kind: str, content: Callable[[], RecordDict]) -> dict[str, RecordDict]:
        absent = [site for site in self.study.roster if site not in self.nodes]
        replies = self._exchange(this, {site: content() for site in sorted(self.nodes)}, self.nodes, kind)
        this.missing = sorted({*this.missing, *absent})
        return replies

    def _exchange(
        self, this: Round, contents: Mapping[str, RecordDict], nodes: Mapping[str, int], kind: str
    ) -> dict[str, RecordDict]:
        """Send one message to each name and collect replies until the deadline; replies are ordered by name."""
        sites = {nodes[name]: name for name in contents}
        this.bytes_down += sum(_size(content) for content in contents.values())
        messages = [
            Message(content, dst_node_id=nodes[name], message_type=kind, group_id=str(this.number))
            for name, content in contents.items()
        ]
        waiting = set(self.grid.push_messages(messages))
        deadline = time.monotonic() + self.study.deadline_seconds
        replies: dict[str, RecordDict] = {}
        while waiting and time.monotonic() < deadline:
            for reply in self.grid.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                self._receive(this, sites, reply, replies)
            time.sleep(_POLL_SECONDS)
        this.missing += sorted(set(contents) - set(replies) - set(this.refused))
        return {name: replies[name] for name in sorted(replies)}

    def _receive(self, this: Round, sites: Mapping[int, str], reply: Message, replies: dict[str, RecordDict]) -> None:
        name = sites.get(reply.metadata.src_node_id)
        if name is None or name in replies:
            logger.warning("a reply from an unknown node, or a second one, was dropped")
        elif reply.has_error():
            this.refused[name] = f"Flower error {reply.error.code}"
        elif "failure" in reply.content:
            this.refused[name] = f"site reported {_code(reply.content)}"
        else:
            this.bytes_up += _size(reply.content)
            replies[name] = reply.content

    def _require_quorum(self, this: Round, accepted: Mapping[str, object]) -> None:
        if len(accepted) < self.study.quorum:
            why = "; ".join(
                [*(f"{k}: {v}" for k, v in this.refused.items()), *(f"{s}: no reply" for s in this.missing)]
            )
            raise RunFailed(
                f"round {this.number} ({this.phase}): {len(accepted)} of {self.study.quorum} sites needed answered"
                f" ({why}); see the log of those sites"
            )

    def _log(self, this: Round, accepted: Mapping[str, object], **more: Any) -> None:
        row = this.as_row(accepted, **more)
        self.degraded |= row["status"] != "OK"
        append_json_line(self.out / "rounds.jsonl", row)
        logger.info(
            "round %s %s %s sites=%s down=%.2fMB up=%.2fMB %.1fs",
            *(row["round"], row["phase"], row["status"], ",".join(row["contributors"])),
            *(row["bytes_down"] / 1e6, row["bytes_up"] / 1e6, row["seconds"]),
        )
        if self.progress is not None:
            self.progress(row)


def parameter_group(key: str) -> str:
    """The part of the model a parameter belongs to, as reports name it."""
    parts = key.split(".")
    if parts[1] in ("missing", "interactions") or parts[0] == "head":
        return ".".join(parts[1:3]) if parts[0] != "head" else ".".join(parts[:3])
    return f"task_tokens.{parts[3]}" if parts[1:3] == ["task_tokens", "vectors"] else parts[1]


def _training_log(updates: Mapping[str, Update], metrics: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    groups: dict[str, dict[str, int]] = {}
    for key in next(iter(updates.values())).arrays:
        row = groups.setdefault(parameter_group(key), dict.fromkeys(updates, 0))
        for site in contributors(updates, key):
            row[site] = max(row[site], updates[site].examples[key])
    trained = {site: row for site, row in metrics.items() if row["train-cases"]}
    cases = sum(row["train-cases"] for row in trained.values())
    checked = sum(row["val-cases"] for row in metrics.values())
    return {
        "loss": sum(row["loss"] * row["train-cases"] for row in trained.values()) / cases if cases else None,
        "losses": {site: row["loss"] for site, row in trained.items()},
        "val_loss": sum(row["val-loss-sum"] for row in metrics.values()) / checked if checked else None,
        "steps": {site: int(row["steps"]) for site, row in metrics.items()},
        "keys": groups,
    }


def _numpy(site: str, content: RecordDict, name: str) -> dict[str, Any]:
    record = content.array_records[name]
    try:
        arrays: dict[str, Any] = {key: value.numpy() for key, value in record.items()}
    except (ValueError, TypeError, EOFError, OSError, MemoryError, BadZipFile):
        raise ReplyRefused(site, f"record {name!r} holds an unreadable array") from None
    if not all(isinstance(value, np.ndarray) for value in arrays.values()):
        raise ReplyRefused(site, f"record {name!r} holds something that is no array")
    return arrays


def _size(content: RecordDict) -> int:
    arrays = sum(record.count_bytes() for record in content.array_records.values())
    metrics = sum(record.count_bytes() for record in content.metric_records.values())
    return arrays + metrics + sum(record.count_bytes() for record in content.config_records.values())


def _code(content: RecordDict) -> str:
    code = str(content.config_records["failure"].get("code", ""))
    return code if code.isidentifier() and len(code) < 64 else "an unreadable failure"


def _reason(error: ReplyRefused | KeyError) -> str:
    return error.reason if isinstance(error, ReplyRefused) else f"record {error} is missing"


__all__ = ["Federation", "FederationError", "Result", "parameter_group"]
