"""Probes of a deployed federation: over the real client app and gate, equal to those that a simulation fits."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client import gate
from client.approvals import Approval
from client.home import Limits
from client.probes import count_probe
from client.questions import read_question
from client.runtime import Site
from client.usage import Usage
from modaltune.evaluation.probes.embeddings import as_probe_row
from modaltune.evaluation.probes.fit import ProbeQuestion
from modaltune.federation.probe_query import HELD_BACK
from modaltune.federation.settings import ProbesSpec
from modaltune.federation.study import Study
from modaltune.federation.task import HEADLINES
from modaltune.federation.wire import seal, unseal
from server.finish import metric_rows
from server.rounds import Federation, Result
from simulation.compare import Hospitals, Scene
from simulation.outcomes import Outcome, Scorer
from simulation.probes import embeddings_of, fit_probes, probe_tables, training_cases
from tests.integration.grids import LocalGrid, Passed, RecordingGrid, Tamper, honest
from tests.integration.helpers import SITES, read_rounds

SAME = 1e-9
DECIMALS = 0.5e-4 + SAME  # metrics leave with four


class Probed(Federation):
    """Keeps the probes that it fitted."""

    found: dict[str, ProbeQuestion]

    def _evaluate(self, weights: Any, probes: Any = None, **more: Any) -> Any:
        self.found = probes
        return super()._evaluate(weights, probes, **more)


@dataclass(frozen=True, kw_only=True)
class Run:
    result: Result
    probes: dict[str, ProbeQuestion]
    rows: list[dict[str, Any]]
    passed: list[Passed]

    def of(self, phase: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["phase"] == phase]


@pytest.fixture(scope="module")
def short(study: Study) -> Study:
    training = study.training.model_copy(update={"rounds": 1})
    changes = {"roster": SITES, "training": training, "deadline_seconds": 20.0, "probes": ProbesSpec(questions=40)}
    return study.model_copy(update=changes)


class Gated:
    """A client app behind the rules of its hospital's daemon."""

    def __init__(self, app: ClientApp, folder: Path, study: Study, usage: Path) -> None:
        self.app, self.study = app, study
        self.approval, self.usage = Approval.of(Site(folder, study), "b" * 64), Usage(usage, Limits())

    def __call__(self, message: Message, context: Context) -> Message:
        question = read_question(message, self.study)
        self.usage.check_agreed(self.approval.digest, question.agreed)
        if question.probe is not None:
            count_probe(self.usage, self.approval, question.probe)
        reply = self.app(message, context)
        reply.content = gate.released(question, self.approval, reply.content)
        self.usage.agree(self.approval.digest, question.agreed)
        return reply


def gated(folders: dict[str, Path], study: Study, usage: Path) -> LocalGrid:
    grid, apps = LocalGrid(folders), dict[int, Any]()
    for node, app in grid.apps.items():
        site = grid.sites[node]
        apps[node] = Gated(app, folders[site], study, usage / f"{site}.json")
    grid.apps = apps
    return grid


def federate(
    study: Study, folders: dict[str, Path], out: Path, tamper: Tamper = honest, grid: LocalGrid | None = None
) -> Run:
    passed = list[Passed]()
    federation = Probed(RecordingGrid(grid or LocalGrid(folders, tamper), passed), study, out)
    result = federation.run()
    return Run(result=result, probes=federation.found, rows=read_rounds(out), passed=passed)


@pytest.fixture(scope="module")
def run(short: Study, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    grid = gated(folders, short, tmp_path_factory.mktemp("daemons"))
    return federate(short, folders, tmp_path_factory.mktemp("probed"), grid=grid)


@pytest.fixture(scope="module")
def simulated(run: Run, short: Study, folders: dict[str, Path]) -> Hospitals:
    """The same hospitals as a simulation sees them, with the preprocessing of the run."""
    preprocessing = run.result.preprocessing.to_json()
    return Hospitals(Scene(sites=folders, truth=folders, study=short.to_json(), preprocessing=preprocessing))


def test_deployed_probes_have_the_coefficients_that_a_simulation_fits(run: Run, simulated: Hospitals) -> None:
    cases = training_cases(simulated, embeddings_of(run.result.learner), SITES)
    expected = fit_probes(simulated, cases, together=False).probes
    assert run.result.status == "OK"
    assert set(run.probes) == set(expected) == {task.name for task in simulated.study.tasks}
    for task, probe in expected.items():
        np.testing.assert_allclose(run.probes[task].coefficients, probe.optimum.coefficients, rtol=0, atol=SAME)
        np.testing.assert_allclose(run.probes[task].mean, probe.optimum.mean, rtol=0, atol=SAME)
        (row,) = [row for row in run.of("probe") if row["task"] == task]
        assert (row["questions"], tuple(row["left_out"])) == (probe.questions, probe.left_out)
        assert sorted([*row["contributors"], *row["left_out"]]) == list(SITES)


def test_the_scores_of_each_hospital_are_those_that_a_simulation_computes(run: Run, simulated: Hospitals) -> None:
    tables = probe_tables(simulated, embeddings_of(run.result.learner), SITES, together=False).table
    outcome = Outcome()
    Scorer(simulated, outcome).record_probes("federated", {"": tables})
    expected = {
        (row["hospital"], row["task"], row["metric"]): row
        for row in outcome.rows
        if row["hospital"] != "all" and row["value"] is not None
    }
    rows = [row for row in metric_rows(run.result.evaluation, simulated.study) if row["metric"].endswith("_probe")]
    assert {(row["hospital"], row["task"], row["metric"]) for row in rows} == set(expected)
    assert {row["metric"] for row in rows} == {
        as_probe_row({"metric": name})["metric"] for names in HEADLINES.values() for name in names
    }
    for row in rows:
        other = expected[row["hospital"], row["task"], row["metric"]]
        assert [row[part] for part in ("value", "low", "high")] == pytest.approx(
            [other[part] for part in ("value", "low", "high")], abs=DECIMALS
        )
        assert row["n"] == other["n"]


def test_what_is_asked_about_probes_has_no_weights_and_no_text_but_the_study(run: Run) -> None:
    asked = [message for message in run.passed if message.down and message.kind == "query.probe"]
    assert asked
    for message in asked:
        assert set(message.content) == {"study", "question"}
        assert set(message.content.config_records["study"]) == {"study", "task", "model", "derivatives"}


@pytest.fixture(scope="module")
def one_task(short: Study) -> Study:
    """Diagnosis alone: the fastest federation that has a probe."""
    return short.model_copy(update={"tasks": short.tasks[:1], "deadline_seconds": 2.0})


def row_of(run: Run) -> dict[str, Any]:
    (row,) = run.of("probe")
    return row


def at_question(site: str, number: int, change: Any) -> Tamper:
    """Changes one answer of a site: to its n-th question about a probe."""
    asked = {"so far": 0}

    def tamper(who: str, reply: Message) -> list[Message]:
        if (who, reply.metadata.message_type) == (site, "query.probe"):
            asked["so far"] += 1
            if asked["so far"] == number:
                return change(reply)  # type: ignore[no-any-return]
        return [reply]

    return tamper


def not_a_number(reply: Message) -> list[Message]:
    record = reply.content.array_records["sums"]
    arrays = dict(unseal(record, "H2"))
    arrays["loss"] = np.array([np.nan])
    reply.content["sums"] = ArrayRecord({name: Array(value) for name, value in seal(arrays).items()})
    return [reply]


def lying(reply: Message) -> list[Message]:
    """Sums that some cases might have, and these do not."""
    record = reply.content.array_records["sums"]
    arrays = {name: np.zeros_like(value) for name, value in unseal(record, "H2").items()}
    arrays["gradient"] = arrays["gradient"] + 1e14
    reply.content["sums"] = ArrayRecord({name: Array(value) for name, value in seal(arrays).items()})
    return [reply]


def test_sums_that_lead_nowhere_end_a_probe_and_not_the_run(
    one_task: Study, folders: dict[str, Path], tmp_path: Path
) -> None:
    found = federate(one_task, folders, tmp_path, at_question("H2", 1, lying))
    assert row_of(found)["reason"]
    assert found.result.status == "OK"
    assert found.result.evaluation.metrics["H1"]


def failure(reply: Message) -> list[Message]:
    reply.content = RecordDict({"failure": ConfigRecord({"code": "ProbeError"})})
    return [reply]


def held_back(reply: Message) -> list[Message]:
    record = reply.content.array_records["sums"]
    arrays = {name: np.zeros_like(value) for name, value in unseal(record, "H2").items()}
    arrays["loss"] = np.array([HELD_BACK])
    reply.content["sums"] = ArrayRecord({name: Array(value) for name, value in seal(arrays).items()})
    return [reply]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (held_back, ({}, [])),
        (not_a_number, ({"H2": "loss is not finite"}, [])),
        (failure, ({"H2": "site reported ProbeError"}, [])),
        (lambda reply: [], ({}, ["H2"])),
    ],
    ids=["held back", "not a number", "failure", "silence"],
)
def test_a_site_that_fails_in_the_middle_is_named_and_the_fit_starts_again_without_it(
    change: Any, named: tuple[dict[str, str], list[str]], one_task: Study, folders: dict[str, Path], tmp_path: Path
) -> None:
    found = federate(one_task, folders, tmp_path, at_question("H2", 3, change))
    row = row_of(found)
    assert (row["refused"], row["missing"]) == named
    assert row["status"] == found.result.status == ("DEGRADED" if any(named) else "OK")
    assert row["held_back"] == ([] if any(named) else ["H2"])
    assert (row["contributors"], row["left_out"]) == (["H1", "H5"], ["H2"])
    scene = Scene(
        sites={site: folders[site] for site in ("H1", "H5")},
        truth=folders,
        study=one_task.to_json(),
        preprocessing=found.result.preprocessing.to_json(),
    )
    simulated = Hospitals(scene)
    cases = training_cases(simulated, embeddings_of(found.result.learner), ("H1", "H5"))
    expected = fit_probes(simulated, cases, together=False).probes["diagnosis"]
    assert row["questions"] == 3 + expected.questions
    np.testing.assert_allclose(found.probes["diagnosis"].coefficients, expected.optimum.coefficients, rtol=0, atol=SAME)


def test_a_site_with_too_few_cases_is_left_out_and_named(
    one_task: Study, folders: dict[str, Path], cohorts: dict[str, Any], tmp_path: Path
) -> None:
    counts = {site: cohorts[site].cases.query("split == 'train'")["diagnosis"].value_counts().min() for site in folders}
    least = int(min(counts.values())) + 1
    small = sorted(site for site, count in counts.items() if count < least)
    assert 0 < len(small) < len(SITES)
    strict = one_task.model_copy(update={"privacy": one_task.privacy.model_copy(update={"min_cell": least})})
    row = row_of(federate(strict, folders, tmp_path))
    assert set(small) <= set(row["left_out"])
    assert row["status"] == "OK"
    assert sorted([*row["contributors"], *row["left_out"]]) == list(SITES)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"privacy": {"min_contributors": 4}}, "3 of 3 sites contribute, min_contributors = 4"),
        ({"probes": {"questions": 2}}, "no optimum after 2 questions"),
        ({"probes": {"questions": 40, "largest": 0.01}}, "no optimum after"),
    ],
)
def test_a_probe_that_cannot_be_fitted_has_a_reason_and_no_scores(
    changes: dict[str, Any], reason: str, one_task: Study, folders: dict[str, Path], tmp_path: Path
) -> None:
    parts = {name: getattr(one_task, name).model_copy(update=new) for name, new in changes.items()}
    found = federate(one_task.model_copy(update=parts), folders, tmp_path)
    assert reason in row_of(found)["reason"]
    assert (found.probes, found.result.status) == ({}, "OK")
    assert found.result.evaluation.metrics["H1"]
    assert "_probe" not in json.dumps(found.result.evaluation.metrics)
    asked = [message for message in found.passed if message.down and message.kind == "query.probe"]
    assert len(asked) <= len(SITES) * parts.get("probes", one_task.probes).questions


class Killed(Exception):
    """The coordinator ends here."""


class DyingGrid(LocalGrid):
    """Dies at the n-th question of a kind."""

    kind, left = "query.probe", 10**9

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.left -= sum(message.metadata.message_type == self.kind for message in messages)
        if self.left < 0:
            raise Killed
        return super().push_messages(messages)


@pytest.mark.parametrize(("kind", "left"), [("query.probe", 8), ("evaluate", 1)])
def test_a_coordinator_that_starts_again_asks_the_same_and_scores_the_same_probes(
    kind: str, left: int, one_task: Study, folders: dict[str, Path], tmp_path: Path
) -> None:
    grid, before = DyingGrid(folders), list[Passed]()
    grid.kind, grid.left = kind, left
    with pytest.raises(Killed):
        Federation(RecordingGrid(grid, before), one_task, tmp_path).run()
    again = federate(one_task, folders, tmp_path)
    first, second = (
        {message.data.split(b"question")[-1] for message in passed if message.down and message.kind == "query.probe"}
        for passed in (before, again.passed)
    )
    assert first
    assert (first <= second) if kind == "query.probe" else not second
    assert [row["phase"] for row in again.rows if row["phase"] in ("tally", "probe")] == ["tally", "probe"]
    (scored, *_), (old, *_) = (
        [message.content["probes"] for message in passed if message.down and message.kind == "evaluate"] or [None]
        for passed in (again.passed, before)
    )
    assert scored is not None
    assert old in (None, scored)
    assert again.result.status == "OK"


def test_a_study_without_probes_asks_for_none(one_task: Study, folders: dict[str, Path], tmp_path: Path) -> None:
    none = one_task.model_copy(update={"probes": ProbesSpec()})
    found = federate(none, folders, tmp_path)
    assert [row["phase"] for row in found.rows] == ["capability", "preprocess", "train", "evaluate"]
    assert found.probes is None
    assert all("probes" not in message.content for message in found.passed)
