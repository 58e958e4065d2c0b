"""Probes of a deployed federation: each task's is fitted by asking the sites for sums, before the evaluation.

A probe needs every contributing site in every question: when one fails, that task has no probe, and the round log says
why. Nothing is fitted on other cases than those that were tallied.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from safetensors.numpy import load_file, save

from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import ProbeError, ReplyRefused
from modaltune.evaluation.probes.embeddings import probe_spec
from modaltune.evaluation.probes.fit import (
    MOST_QUESTIONS,
    Probe,
    ProbeQuestion,
    enough_contributors,
    fit_probe,
)
from modaltune.evaluation.probes.sums import Sums, Tally, contributors
from modaltune.federation.capability import Capability
from modaltune.federation.manifest import Manifest
from modaltune.federation.probe_query import (
    Arrays,
    probe_arrays,
    probes_of,
    problem_with_sums,
    problem_with_tally,
    question_arrays,
    sums_manifest,
    sums_of,
    tally_manifest,
    tally_of,
)
from modaltune.federation.study import Study, TaskSpec
from modaltune.federation.wire import seal, sealed_size, unseal
from modaltune.storage import write_bytes
from server.exchange import Round

Ask = Callable[[Round, str, RecordDict, Collection[str] | None], Iterable[tuple[str, RecordDict]]]
"""Puts a question to those sites, or to all that are enrolled."""
Message = Callable[..., RecordDict]
Log = Callable[..., None]


class Prober:
    """Fits the probes of a study on the embeddings of one model.

    Args:
        model: names weights and preprocessing in the questions.
        ask, message, log: of the federation.
    """

    def __init__(
        self, study: Study, preprocessing: Preprocessing, model: str, *, ask: Ask, message: Message, log: Log
    ) -> None:
        self.study, self.preprocessing, self.model = study, preprocessing, model
        self.ask, self.message, self.log = ask, message, log

    def fit(self, weights: RecordDict, capabilities: Mapping[str, Capability]) -> dict[str, ProbeQuestion]:
        """Probes by task; a task whose probe could not be fitted is absent.

        Args:
            weights: message with the model.
        """
        tallies = self._tally(weights, capabilities)
        found = {}
        for task in self.study.tasks:
            mine = {site: tally_of(arrays, task.name) for site, arrays in tallies.items()}
            if (probe := self._fit(task, mine)) is not None:
                found[task.name] = probe.optimum
        return found

    def _tally(self, weights: RecordDict, capabilities: Mapping[str, Capability]) -> dict[str, Arrays]:
        this, accepted = Round(number=self.study.training.rounds, phase="tally"), dict[str, Arrays]()
        manifest, least = tally_manifest(self.study, self.preprocessing), self.study.privacy.min_cell
        for site, reply in self.ask(this, "query.tally", weights, None):
            with this.judging(site):
                found = _read(site, reply, "tally", manifest)
                for task in self.study.tasks:
                    tally = tally_of(found, task.name)
                    if problem := problem_with_tally(task.name, tally, least, capabilities[site].train_cases):
                        raise ReplyRefused(site, problem)
                accepted[site] = found
        self.log(this, accepted)
        return accepted

    def _fit(self, task: TaskSpec, tallies: Mapping[str, Tally]) -> Probe | None:
        """The probe of one task, and its row of the round log."""
        this = Round(number=self.study.training.rounds, phase="probe")
        inquiry = _Inquiry(self, this, task, contributors(tallies))
        probe, reason = None, ""
        try:
            enough_contributors(tallies, self.study.privacy.min_contributors)
            spec = probe_spec(task, self.preprocessing.tasks[task.name])
            probe = fit_probe(spec, tallies, inquiry, min(self.study.probes.questions, MOST_QUESTIONS))
            inquiry.check_size(probe.optimum)
        except ProbeError as error:
            probe, reason = None, f"{error}{inquiry.held_back()}"
        left_out = sorted(set(tallies) - set(inquiry.sites))
        facts = {"task": task.name, "questions": inquiry.questions, "left_out": left_out}
        contributing = inquiry.sites if probe else [s for s in inquiry.sites if s not in {*this.missing, *this.refused}]
        self.log(this, dict.fromkeys(contributing), **facts, **({"reason": reason} if reason else {}))
        return probe


class _Inquiry:
    """The questions about one probe: what :func:`fit_probe` asks with."""

    def __init__(self, prober: Prober, this: Round, task: TaskSpec, sites: list[str]) -> None:
        self.prober, self.this, self.task, self.sites = prober, this, task, sites
        self.questions, self.silent = 0, set[str]()

    def __call__(self, question: ProbeQuestion) -> dict[str, Sums]:
        """Sums of every contributing site.

        Raises:
            ProbeError: one of them gave none.
        """
        if _size(question) > self.prober.study.probes.largest:
            return {"": Sums.loss_only(np.inf)}  # no site would answer: the fit takes half the step
        self.questions += 1
        manifest, found = sums_manifest(question), dict[str, Sums]()
        for site, reply in self.prober.ask(self.this, "query.probe", self._message(question), self.sites):
            with self.this.judging(site):
                arrays = _read(site, reply, "sums", manifest)
                if problem := problem_with_sums(arrays):
                    raise ReplyRefused(site, problem)
                found[site] = sums_of(arrays)
        if len(found) < len(self.sites):
            raise ProbeError(f"question {self.questions} was not answered by all ({self.this.why_short()})")
        self.silent |= {site for site, sums in found.items() if not np.isfinite(sums.loss)}
        if self.silent and not question.coefficients.any():
            raise ProbeError("nothing was told at the first question")
        return found

    def check_size(self, optimum: ProbeQuestion) -> None:
        """Refuse an optimum that sites would not score; the last step is taken without asking them."""
        if _size(optimum) > (largest := self.prober.study.probes.largest):
            raise ProbeError(f"the optimum has a coefficient beyond probes.largest = {largest:g}")

    def held_back(self) -> str:
        """Who held answers back, as an addition to a reason."""
        return f"; too few cases carry weight at {', '.join(sorted(self.silent))}" if self.silent else ""

    def _message(self, question: ProbeQuestion) -> RecordDict:
        named = {"task": self.task.name, "model": self.prober.model, "derivatives": question.derivatives}
        content = self.prober.message(**named)
        content["question"] = _record(question_arrays(question))
        return content


def with_probes(message: RecordDict, probes: Mapping[str, ProbeQuestion]) -> RecordDict:
    """An evaluation that scores probes, too."""
    message["probes"] = _record(probe_arrays(probes))
    return message


def keep_probes(path: Path, probes: Mapping[str, ProbeQuestion]) -> None:
    """Write fitted probes: sites score one set of them, also when the coordinator starts again in between."""
    write_bytes(path, save(probe_arrays(probes)))


def kept_probes(path: Path, study: Study, preprocessing: Preprocessing) -> dict[str, ProbeQuestion] | None:
    """Fitted probes from a file; None when there is none."""
    return probes_of(dict(load_file(path)), study, preprocessing) if path.is_file() else None


def _read(site: str, reply: RecordDict, record: str, manifest: Manifest) -> Arrays:
    found = unseal(reply.array_records[record], site, *sealed_size(manifest))
    manifest.check(site, found)
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in seal(arrays).items()})


def _size(question: ProbeQuestion) -> float:
    return float(np.abs(question.coefficients).max(initial=0))
