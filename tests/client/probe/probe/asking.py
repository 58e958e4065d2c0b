"""A coordinator that asks one node what the files of a folder say, one question after another."""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    folder, node = Path(str(context.run_config["folder"])), int(str(context.run_config["node"]))
    while node not in set(grid.get_node_ids()):
        time.sleep(0.2)
    for path in sorted(folder.glob("*.question")):
        asked = message_from_proto(ProtoMessage.FromString(path.read_bytes()))
        message = Message(asked.content, dst_node_id=node, message_type=asked.metadata.message_type)
        waiting = set(grid.push_messages([message]))
        replies: list[Message] = []
        while not replies:
            time.sleep(0.1)
            replies = list(grid.pull_messages(waiting))
        path.with_suffix(".reply").write_bytes(message_to_proto(replies[0]).SerializeToString())
