"""A hospital without a gate: speaks Flower's fleet protocol with a real key and answers as it likes.

``python -m tests.chaos.hostile ADDRESS KEY AUTHORITY`` only connects; with SITE_FOLDER and a comma-separated plan, it
answers round after round with one entry of the plan each.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from client.app import make_app
from simulation.scale.fleet import Node, connection
from tests.chaos.tampers import tampered
from tests.integration.grids import pack, unpack


class Hostile(Node):
    """Honest work by the real client app, tampered with before it leaves."""

    def __init__(self, line: Any, folder: Path, plan: list[str]) -> None:
        super().__init__(folder.name, line)
        self.app, self.plan = make_app(lambda _: folder), plan
        self.lied, self.kept = False, b""

    def reply(self, question: Message) -> Message:
        metadata = question.metadata
        context = Context(run_id=metadata.run_id, node_id=1, node_config={}, state=RecordDict(), run_config={})
        reply = self.app(question, context)
        if metadata.message_type == "query.capability" and not self.lied:
            self.lied, reply.content.config_records["capability"]["site"] = True, "H1"
        if metadata.message_type != "train":
            return reply
        name = self.plan[int(metadata.group_id) - 1]
        if name == "replay":
            self.deliver(unpack(self.kept))
        self.kept = pack(reply)
        try:
            tampered(name, question, reply.content)
        except RuntimeError as problem:
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(problem)), reply_to=question)
        return reply


def main(address: str, key: str, authority: str, folder: str = "", plan: str = "") -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 0, 0
    with connection(address, Path(key), Path(authority), max_retries=0 if not folder else None) as line:
        print("connected", flush=True)
        node = Hostile(line, Path(folder), plan.split(","))
        while folder:
            if not node.answer():
                time.sleep(0.5)


if __name__ == "__main__":
    main(*sys.argv[1:])
