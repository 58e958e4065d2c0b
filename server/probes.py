"""Probes of a deployed federation: each task's is fitted by asking the sites for sums, before the evaluation.

A fit needs the same sites in all its questions: without one that gives no answer it starts again, within the budget,
and the round log names who was left out. A probe that cannot be fitted has a reason there, and no scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from safetensors.numpy import load_file, save

from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import ProbeError, ReplyRefused
from modaltune.evaluation.probes.embeddings import probe_spec
from modaltune.evaluation.probes.fit import MOST_QUESTIONS, ProbeQuestion, fit_probe
from modaltune.evaluation.probes.sums import Sums, Tally, contributors
from modaltune.federation.capability import Capability
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
from modaltune.federation.study import Study
from modaltune.federation.task import TaskSpec
from modaltune.federation.wire import read_floats, seal
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
            if (optimum := self._fit(task, mine)) is not None:
                found[task.name] = optimum
        return found

    def _tally(self, weights: RecordDict, capabilities: Mapping[str, Capability]) -> dict[str, Arrays]:
        this, accepted = Round(number=self.study.training.rounds, phase="tally"), dict[str, Arrays]()
        manifest, least = tally_manifest(self.study, self.preprocessing), self.study.privacy.min_cell
        for site, reply in self.ask(this, "query.tally", weights, None):
            with this.judging(site):
                found = read_floats(reply.array_records["tally"], manifest, site)
                for task in self.study.tasks:
                    tally = tally_of(found, task.name)
                    if problem := problem_with_tally(task.name, tally, least, capabilities[site].train_cases):
                        raise ReplyRefused(site, problem)
                accepted[site] = found
        self.log(this, accepted)
        return accepted

    def _fit(self, task: TaskSpec, tallies: Mapping[str, Tally]) -> ProbeQuestion | None:
        """The probe of one task, and its row of the round log."""
        this = Round(number=self.study.training.rounds, phase="probe")
        inquiry, optimum, reason = _Inquiry(self, this, task, contributors(tallies)), None, ""
        try:
            optimum = self._settled(inquiry, tallies)
        except ProbeError as error:
            reason = str(error)
        facts: dict[str, Any] = {
            "task": task.name,
            "questions": inquiry.questions,
            "left_out": sorted(set(tallies) - set(inquiry.sites)),
            "held_back": sorted(inquiry.silent),
        }
        self.log(this, dict.fromkeys(inquiry.sites), **facts, **({"reason": reason} if reason else {}))
        return optimum

    def _settled(self, inquiry: _Inquiry, tallies: Mapping[str, Tally]) -> ProbeQuestion:
        """A fit over sites that answer every question: without one that does not, it starts again.

        Raises:
            ProbeError: too few sites are left, or questions; or see :func:`fit_probe`.
        """
        spec, allowed = probe_spec(inquiry.task, self.preprocessing.tasks[inquiry.task.name]), self.study.probes
        while True:
            known, needed = {site: tallies[site] for site in inquiry.sites}, self.study.privacy.min_contributors
            if len(known) < needed:
                raise ProbeError(f"{len(known)} of {len(tallies)} sites contribute, min_contributors = {needed}")
            left = allowed.questions - inquiry.questions
            if left < 1:
                raise ProbeError(f"probes.questions = {allowed.questions} are asked; no optimum was found with them")
            try:
                optimum = fit_probe(spec, known, inquiry, min(left, MOST_QUESTIONS)).optimum
            except _SiteLostError:
                continue
            except ValueError:  # sites wrote the sums
                raise ProbeError("the sums of the sites lead nowhere: no likelihood has all of them") from None
            if _size(optimum) > allowed.largest:  # the last step is taken without asking
                raise ProbeError(f"the optimum has a coefficient beyond probes.largest = {allowed.largest:g}")
            return optimum


class _SiteLostError(Exception):
    """A contributing site did not answer a question."""


class _Inquiry:
    """The questions about one probe: what :func:`fit_probe` asks with.

    Attributes:
        sites: those that have answered every question so far.
        silent: those that held an answer back.
    """

    def __init__(self, prober: Prober, this: Round, task: TaskSpec, sites: list[str]) -> None:
        self.prober, self.this, self.task, self.sites = prober, this, task, sites
        self.questions, self.silent = 0, set[str]()

    def __call__(self, question: ProbeQuestion) -> dict[str, Sums]:
        """Sums of every contributing site.

        Raises:
            _SiteLostError: one of them gave none, and is no longer among the sites.
        """
        if not _size(question) <= self.prober.study.probes.largest:
            return {"": Sums.loss_only(np.inf)}  # no site would answer: the fit takes half the step
        self.questions += 1
        manifest, found = sums_manifest(question), dict[str, Sums]()
        for site, reply in self.prober.ask(self.this, "query.probe", self._message(question), self.sites):
            with self.this.judging(site):
                arrays = read_floats(reply.array_records["sums"], manifest, site)
                if problem := problem_with_sums(arrays):
                    raise ReplyRefused(site, problem)
                if (sums := sums_of(arrays)) is None:
                    self.silent.add(site)
                elif math.isinf(sums.loss) and (self.task.kind != "survival" or not _size(question)):
                    raise ReplyRefused(site, "its loss is infinite where none can be")
                else:
                    found[site] = sums
        if len(found) < len(self.sites):
            self.sites = sorted(found)
            raise _SiteLostError
        return found

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


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in seal(arrays).items()})


def _size(question: ProbeQuestion) -> float:
    return float(np.abs(question.coefficients).max(initial=0))
