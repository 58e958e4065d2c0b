"""The daemon against a real SuperLink: TLS, node keys, process isolation, a client app that lies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from flwr.app import Message

from client.approvals import Approvals
from client.disclosure import embed_labels
from client.enrol import enrol
from client.home import Home
from modaltune.invitation import Invitation
from modaltune.trust.audit import verify_log
from modaltune.trust.keys import SigningKey
from server.coordinator.bundle import Bundle
from tests.client.conversation import CAPABILITY, EVALUATE, STATISTICS, TRAIN, Conversation
from tests.client.stack import Stack, probe_bundle
from tests.integration.grids import pack

pytestmark = pytest.mark.integration
PATIENT = b"SYN-H1-0007"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return probe_bundle()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack"))
    try:
        stack.start_superlink()
        yield stack
    finally:
        for name in list(stack.running):
            stack.end(name)


@pytest.fixture(scope="module")
def home(stack: Stack, conversation: Conversation, bundle: Bundle) -> Home:
    """A hospital's home, enrolled with an invitation, with one approved study."""
    home = Home(stack.folder / "home")
    invitation = Invitation(
        site="H1",
        coordinator=stack.address,
        ca=stack.authority.read_text(),
        public_key=SigningKey.create(stack.folder / "coordinator.key").public_pem,
    )
    enrol(home, invitation, conversation.folder, stack.folder)
    with home.app_cache():
        embed_labels(conversation.study)
    Approvals(home.approvals).add(conversation.approval.model_copy(update={"bundle": bundle.sha256}))
    return home


@pytest.fixture(scope="module")
def node(stack: Stack, home: Home) -> int:
    node = stack.register(stack.folder / "H1.pub")
    stack.start_hospital(home)
    return node


def events(home: Home) -> list[dict[str, Any]]:
    return [json.loads(line) for line in home.audit.read_text().splitlines()]


def code(reply: Message) -> str:
    return str(reply.content.config_records["failure"]["code"])


def test_honest_replies_pass_and_all_others_become_a_code(
    stack: Stack, home: Home, node: int, bundle: Bundle, conversation: Conversation
) -> None:
    misbehaviour = ["extra key", "raise"]
    honest = [CAPABILITY, STATISTICS, TRAIN, EVALUATE]
    stranger = conversation.study.model_copy(update={"seed": 99})
    replies = stack.ask(
        bundle,
        node,
        [
            *(conversation.message(kind) for kind in honest),
            *(conversation.message(TRAIN, behave=told) for told in misbehaviour),
            conversation.message(CAPABILITY, behave="address"),
            conversation.message(CAPABILITY, study=stranger.to_json()),
            conversation.message("query.patients"),
        ],
    )
    for kind, reply in zip(honest, replies, strict=False):
        assert reply.content == conversation.released(kind), kind
    assert [code(reply) for reply in replies[4:6]] == ["ReplyRefused", "ClientAppFailed"]
    assert replies[6].content == conversation.released(CAPABILITY)
    assert [code(reply) for reply in replies[7:]] == ["StudyNotApproved", "QuestionUnknown"]
    assert not any(PATIENT in pack(reply) for reply in replies)
    assert PATIENT not in home.audit.read_bytes()
    counted = Counter(entry["event"] for entry in events(home))
    assert counted["question"] == 7
    assert counted["question refused"] == 2
    assert counted["reply"] + counted["reply refused"] == 7
    verify_log(home.audit, home.audit_public.read_text())


def test_an_unknown_bundle_is_not_unpacked(stack: Stack, home: Home, node: int, conversation: Conversation) -> None:
    before = sorted((home.app / "apps").iterdir())
    (reply,) = stack.ask(probe_bundle("another"), node, [conversation.message(CAPABILITY)])
    assert code(reply) == "BundleNotApproved"
    assert sorted((home.app / "apps").iterdir()) == before
