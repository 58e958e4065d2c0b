"""Attacks by messages: a malicious client app behind the hospital's gate, and a hostile hospital without one."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.cli.build import build_fab_from_files

from modaltune.errors import RunFailed
from modaltune.federation.study import Study
from modaltune.storage import write_bytes
from server.coordinator.bundle import Bundle
from server.coordinator.link import connected
from simulation.study import read_sites
from tests.chaos.case import Case, Seen, require
from tests.chaos.stack import STRANGER, Stack, until
from tests.chaos.tampers import PATIENT, TAMPERS
from tests.client.conversation import CAPABILITY, TRAIN, Conversation
from tests.client.stack import PROBE
from tests.integration.grids import pack, unpack
from tests.integration.helpers import make_study, vocabulary

HERE = Path(__file__).parent
GATED = {**dict.fromkeys(TAMPERS, "ReplyRefused"), "exception": "ClientAppFailed", "other-name": "ReplyRefused"}
STOPPED = ("reply refused", "error replaced")
SERVED = [*TAMPERS, "replay", "norm-x1000"]


def bundle(variant: str) -> Bundle:
    """A Flower bundle whose server asks what a folder holds and whose client app lies."""
    files: dict[str, Any] = {
        "pyproject.toml": PROBE / "pyproject.toml",
        "probe/__init__.py": b"",
        "probe/asking.py": PROBE / "probe" / "asking.py",
        "probe/answering.py": HERE / "answering.py",
        "probe/tampers.py": HERE / "tampers.py",
        "probe/variant.py": f'NAME = "{variant}"\n'.encode(),
    }
    content, _ = build_fab_from_files(files)
    return Bundle(content, sha256(content).hexdigest())


def ask(stack: Stack, asking: Bundle, questions: Mapping[str, Message]) -> dict[str, Message]:
    """Replies of H1 to questions, as the coordinator sees them."""
    stack.count += 1
    folder = stack.folder / f"ask-{stack.count}"
    for number, question in enumerate(questions.values()):
        write_bytes(folder / f"{number:02d}.question", pack(question))
    with connected(stack.server) as link:
        run = link.start(asking, {"folder": str(folder), "node": str(stack.node("H1"))})
        until(lambda: link.run(run).finished, "the malicious app's run does not end")
    replies = [unpack(path.read_bytes()) for path in sorted(folder.glob("*.reply"))]
    return dict(zip(questions, replies, strict=True))


def alone(stack: Stack, seed: int) -> Conversation:
    """A study of its own for H1, and what a coordinator asks in it."""
    study = stack.study.model_copy(update={"roster": ("H1",), "quorum": 1, "seed": seed})
    return Conversation(stack.data["H1"], study)


def at_the_gate(stack: Stack) -> dict[str, tuple[Message, str, float]]:
    """H1 approved a bundle whose client app tampers with its replies: what leaves, the gate's reason, and seconds."""
    talk, malicious = alone(stack, 7), bundle("approved")
    stack.approve("H1", talk.study, malicious.sha256)
    wanted = [name for name in GATED if f"gate-{name}" in stack.wanted]
    kinds = {name: CAPABILITY if name == "other-name" else TRAIN for name in ("honest", *wanted)}
    before, since = len(stack.audit("H1")), time.monotonic()
    replies = ask(stack, malicious, {name: talk.message(kind, behave=name) for name, kind in kinds.items()})
    seconds = (time.monotonic() - since) / len(replies)
    assert "failure" not in replies.pop("honest").content, "the gate stops honest replies too"
    stopped = [line["facts"] for line in stack.audit("H1")[before:] if line["event"] in STOPPED]
    reasons = [str(facts.get("reason", "an exception")) for facts in stopped]
    return {name: (replies[name], reason, seconds) for name, reason in zip(wanted, reasons, strict=True)}


def gate(name: str, stack: Stack) -> Seen:
    reply, reason, seconds = stack.once(at_the_gate)[name]
    require(set(reply.content) == {"failure"}, f"it left: records {sorted(reply.content)}")
    code = str(reply.content.config_records["failure"]["code"])
    require(code == GATED[name], code)
    require(PATIENT.encode() not in pack(reply) + stack.homes["H1"].audit.read_bytes(), "an identifier was let out")
    return Seen(f"{code} leaves; the hospital's log says: {reason}", seconds=seconds)


def at_the_server(stack: Stack) -> tuple[Path, dict[str, dict[str, Any]]]:
    """One run of H1 and a hostile hospital, which lies in another way in every round: the run folder and its rounds."""
    plan = ["honest", *(name for name in SERVED if f"server-{name}" in stack.wanted)]
    study = _with_stranger(stack, len(plan))
    stack.approve("H1", study)
    with _hostile(stack, plan):
        run = stack.submit("hostile", study)
        try:
            stack.follow(run)
        finally:
            rows = run.rounds()
    trained = {row["round"]: row for row in rows if row["phase"] == "train"}
    enrolled = {"other-name": next(row for row in rows if row["phase"] == "capability")}
    return run.folder, {name: trained[number] for number, name in enumerate(plan, start=1)} | enrolled


def server(name: str, stack: Stack) -> Seen:
    folder, rows = stack.once(at_the_server)
    row = rows[name]
    require(row["contributors"] == ["H1"], f"it counted: {row['contributors']}")
    reason = str(row["refused"].get(STRANGER))
    pattern = "it claims the name of another site" if name == "other-name" else TAMPERS[name].refused
    require(re.search(pattern, reason), f"refused for another reason: {reason}")
    require(not _mentioned(folder), "the run folder holds an identifier")
    require((folder / "DONE").exists(), "the run did not end well")
    return Seen(f"refused: {reason}; the round went on", seconds=row["seconds"])


def replay(stack: Stack) -> Seen:
    """The reply to the round before, sent again: it must not count in the next."""
    _, rows = stack.once(at_the_server)
    row = rows["replay"]
    require(row["contributors"] == ["H1", STRANGER] and not row["refused"], f"{row['contributors']} {row['refused']}")
    return Seen("dropped; the site's reply to this round's question counted once", seconds=row["seconds"])


def times_1000(stack: Stack) -> Seen:
    _, rows = stack.once(at_the_server)
    row = rows["norm-x1000"]
    kept = row["influence"][STRANGER]["kept"]
    require(kept < 0.05, f"kept {kept} of its length")
    return Seen(f"shortened to {kept:.4f} of its length, as the influence report says", seconds=row["seconds"])


def unknown_bundle(stack: Stack) -> Seen:
    apps = stack.homes["H1"].app / "apps"
    before = sorted(apps.glob("*"))
    (reply,) = ask(stack, bundle("unknown"), {"": alone(stack, 8).message(CAPABILITY)}).values()
    require(str(reply.content.config_records["failure"]["code"]) == "BundleNotApproved", f"{reply.content}")
    require(sorted(apps.glob("*")) == before, "it was unpacked")
    return Seen("BundleNotApproved; nothing was unpacked")


def unapproved_study(stack: Stack) -> Seen:
    study = stack.study.model_copy(update={"seed": 99, "quorum": 2, "attempts": 1})
    try:
        status = stack.follow(stack.submit("unapproved", study))
    except RunFailed as stop:
        require(str(stop).count("StudyNotApproved") == 2, str(stop))
        return Seen("both hospitals answer StudyNotApproved; the run stops and says so")
    raise AssertionError(f"it ran: {status['status']}")


def _with_stranger(stack: Stack, rounds: int) -> Study:
    folders = [stack.data["H1"], stack.data[STRANGER]]
    drafted = make_study(read_sites(folders, vocabulary(), "unused"), stack.folder / "cohort" / "gene_sets.gmt")
    training = drafted.training.model_copy(update={"rounds": rounds})
    return drafted.model_copy(update={"training": training, "quorum": 1, "deadline_seconds": 300.0})


@contextmanager
def _hostile(stack: Stack, plan: list[str]) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.chaos.hostile", stack.address, str(stack.key(STRANGER))]
    command += [str(stack.server.ca_certificate), str(stack.data[STRANGER]), ",".join(plan)]
    with (stack.folder / "hostile.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _mentioned(folder: Path) -> bool:
    return any(PATIENT.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def cases() -> Iterator[Case]:
    """Attacks by messages, at the gate and at the server."""
    stops = "the gate lets a code out and nothing else"
    refuses = "the server refuses it and names the site; the round goes on"
    table: list[tuple[str, str, Callable[[Stack], Seen]]] = [
        ("unknown-bundle", "the hospital answers with a code and unpacks nothing", unknown_bundle),
        ("unapproved-study", "hospitals answer with a code; the run stops with one line", unapproved_study),
        *((f"gate-{name}", stops, partial(gate, name)) for name in GATED),
        *((f"server-{name}", refuses, partial(server, name)) for name in (*TAMPERS, "other-name")),
        ("server-replay", "an old reply sent again does not count", replay),
        ("server-norm-x1000", "the update is shortened, and the influence report shows it", times_1000),
    ]
    for name, expected, run in table:
        yield Case(name=name, kind="attack", expected=expected, run=run)
