"""A whole federation of commands, as a coordinator and three hospitals type them: nginx with TLS, node keys, process
isolation, SQLite, a process for everybody, on loopback."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modaltune.federation.settings import EvaluationSpec, LabelQuerySpec
from modaltune.federation.study import Study
from modaltune.models.learner import load_model
from modaltune.storage import read_json_lines, write_text
from simulation.study import read_sites
from tests.integration.grids import Passed, unpack
from tests.integration.helpers import make_study, run_script, vocabulary
from tests.integration.leaks import REPLIES, rules_of
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin") is None, reason="nginx is not installed"
    ),
]
SITES = ("H1", "H2", "H3")


@dataclass(frozen=True)
class Stack:
    """A folder with everybody's home, short as the names of Unix sockets have to be."""

    folder: Path
    study: Study

    def server(self, *arguments: object) -> Any:
        """A command of the coordinator that must succeed; its JSON document."""
        return self._document("modaltune-server", *arguments, "--home", self.folder / "s")

    def client(self, site: str, *arguments: object) -> Any:
        """A command of a hospital that must succeed; its JSON document."""
        return self._document("modaltune-client", *arguments, "--home", self.folder / site)

    def _document(self, script: str, *arguments: object) -> Any:
        ran = run_script(script, *arguments, "--json")
        assert ran.code == 0, ran.err
        return json.loads(ran.out)


@pytest.fixture(scope="module")
def stack(hospitals: dict[str, Path]) -> Iterator[Stack]:
    """Three hospitals with different tasks and modalities, enrolled; everything is stopped at the end."""
    folders = [hospitals[site] for site in SITES]
    drafted = make_study(read_sites(folders, vocabulary(), "unused"), folders[0].parent / "gene_sets.gmt")
    asked = {"evaluation": EvaluationSpec(counts=True), "label_queries": LabelQuerySpec(budget=1)}
    study = drafted.model_copy(update={"quorum": len(SITES), **asked})
    folder = Path(tempfile.mkdtemp(prefix="mt-", dir="/tmp"))
    write_text(folder / "study.json", study.to_json())
    found = Stack(folder, study)
    try:
        _enrol(found, hospitals)
        yield found
    finally:
        with ThreadPoolExecutor() as pool:
            ends = [("modaltune-client", "stop", "--home", folder / site) for site in SITES]
            list(pool.map(lambda end: run_script(*end), [*ends, ("modaltune-server", "stop", "--home", folder / "s")]))
        shutil.rmtree(folder)


def _enrol(stack: Stack, hospitals: dict[str, Path]) -> None:
    ports = [number for name in ("--port", "--superlink-port", "--health-port") for number in (name, _free_port())]
    stack.server("init", "--host", "localhost", "--listen", "127.0.0.1", *ports)
    stack.server("start")
    for site in SITES:
        stack.server("invite", site, "--out", stack.folder)
    with ThreadPoolExecutor() as hospitals_at_work:
        made = list(hospitals_at_work.map(lambda site: _join(stack, site, hospitals[site]), SITES))
        for site, fingerprint in zip(SITES, made, strict=True):
            assert stack.server("admit", stack.folder / f"{site}.pub")["fingerprint"] == fingerprint
        list(hospitals_at_work.map(lambda site: _open(stack, site), SITES))


def _join(stack: Stack, site: str, folder: Path) -> str:
    """Make a hospital's home; the fingerprint of its key."""
    invitation = stack.folder / f"{site}.invite"
    made = stack.client(site, "init", "--invitation", invitation, "--site-folder", folder, "--out", stack.folder)
    settings = stack.folder / site / "client.toml"
    settings.write_text(settings.read_text().replace("keep_sent = false", "keep_sent = true"))
    return str(made["fingerprint"])


def _open(stack: Stack, site: str) -> None:
    """Approve the study and start the hospital's programs."""
    stack.client(site, "approve", stack.folder / "study.json")
    ran = run_script("modaltune-client", "start", "--home", stack.folder / site)
    assert ran.code == 0, ran.err


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_three_hospitals_train_a_model_that_is_released_with_a_signature(stack: Stack) -> None:
    ran = stack.server("run", stack.folder / "study.json", "--name", "first")
    assert ran["status"] == "OK"
    run = Path(ran["folder"])
    rows = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["phase"] == "train"]
    assert [row["round"] for row in trained] == [1, 2]
    assert {site for row in rows for site in row["contributors"]} == set(SITES)
    assert all((run / name).exists() for name in ("model", "metrics.json", "report.html", "DONE"))
    scored = {(row["hospital"], row["task"]) for row in json.loads((run / "metrics.json").read_text())}
    assert {("all", task.name) for task in stack.study.tasks} <= scored
    shown = stack.server("status")
    assert {site["site"]: site["online"] for site in shown["sites"]} == dict.fromkeys(SITES, True)
    assert shown["run"]["bytes_up"] > 0
    refused = run_script("modaltune-server", "release", "first", "--home", stack.folder / "s")
    assert (refused.code, "rests on" in refused.err) == (2, True), "eighty cases are too few to release a model on"
    released = stack.server("release", "first", "--override", "a test of the programs, no model for anybody")
    checked = run_script(
        "modaltune", "release-check", released["release"], "--public-key", released["public_key"], "--json"
    )
    assert json.loads(checked.out)["study"] == stack.study.digest


def test_hospitals_answer_a_label_query_within_what_they_approved(stack: Stack) -> None:
    question = ("query", "first", "--task", "necrosis", "--template", "a slide with {text}")
    answer = stack.server(*question, "--candidate", "much necrosis", "--candidate", "little necrosis")
    assert set(answer["sites"]) == set(SITES)
    for found in answer["sites"].values():
        assert sum(found["counts"]) == found["cases"] > 0
        assert sum(found["probability"]) == pytest.approx(1, abs=1e-3)
    other = (*question, "--candidate", "one more", "--candidate", "than approved")
    refused = run_script("modaltune-server", *other, "--home", stack.folder / "s")
    assert (refused.code, "LimitReached" in refused.err) == (4, True), refused.err


def test_both_sides_have_written_down_what_happened_and_name_the_same_replies(stack: Stack) -> None:
    events = stack.server("audit", "verify")["events"]
    assert {"run-started", "run-ended", "release-refused", "model-released"} <= set(events)
    rounds = [line["facts"] for line in _audit(stack, "s") if line["event"] == "round"]
    exchanges = [row["replies"] for row in rounds if "replies" in row]
    assert len(exchanges) == 5 + 2 + 1  # a run of two rounds; a query; who is there, before a query that is refused
    for site in SITES:
        assert stack.client(site, "audit", "verify")["lines"] > 0
        sent = [line["facts"]["sha256"] for line in _audit(stack, site) if line["event"] == "reply"]
        assert [digest for replies in exchanges for digest in replies[site]] == sent


def test_what_left_each_hospital_holds_nothing_of_a_patient_and_nothing_frozen(
    stack: Stack, hospitals: dict[str, Path]
) -> None:
    learner, study, preprocessing = load_model(stack.folder / "s" / "runs" / "first" / "model")
    folders = [hospitals[site] for site in SITES]
    rules = rules_of(learner, preprocessing, study, read_sites(folders, vocabulary(), study.digest), folders)
    for site in SITES:
        sent = [path.read_bytes() for path in (stack.folder / site / "sent").iterdir()]
        replies = [Passed(down=False, kind=unpack(data).metadata.message_type, data=data) for data in sent]
        answers = [reply for reply in replies if set(reply.content) != {"failure"}]
        counted = {**dict.fromkeys(REPLIES, 1), "train": 2, "query.capability": 3}
        assert Counter(reply.kind for reply in answers) == counted
        assert len(replies) - len(answers) <= 1  # the query beyond the budget
        assert [(reply.kind, found) for reply in answers if (found := rules.problems(reply))] == []


def test_a_cancelled_run_ends_at_once_and_goes_on_to_the_same_weights(stack: Stack) -> None:
    submitted = stack.server("run", stack.folder / "study.json", "--name", "second", "--no-wait")
    log = Path(submitted["folder"]) / "rounds.jsonl"
    wait_for(lambda: any(row["phase"] == "capability" for row in read_json_lines(log)))
    assert stack.server("cancel", "second")["status"] == "FAILED"
    shown = stack.server("status")["run"]
    assert (shown["status"], shown["reason"]) == ("FAILED", "cancelled")
    again = run_script("modaltune-server", "cancel", "second", "--home", stack.folder / "s")
    assert (again.code, "run second is not going on" in again.err) == (2, True)
    resumed = stack.server("resume", "second")
    assert resumed["status"] == "OK"
    first = json.loads((stack.folder / "s" / "runs" / "first" / "status.json").read_text())
    assert resumed["weights"] == first["weights"]
    assert [line["event"] for line in _audit(stack, "s")].count("run-cancelled") == 1


def _audit(stack: Stack, home: str) -> list[Any]:
    return [json.loads(line) for line in (stack.folder / home / "audit.jsonl").read_text().splitlines()]
